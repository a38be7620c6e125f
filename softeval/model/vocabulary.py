"""Which token ids there are, and how a text becomes ids.

An id counts if the tokenizer knows it and the embedding has a row for it. Tokenizers may leave ids
out, name an id twice, or know more than the model; checkpoints pad their rows. Whatever the model
makes of the others, they are never chosen and never mixed in.

Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from softeval.errors import UserError


class Vocabulary:
    """The ids of one tokenizer with one embedding.

    Args:
        tokenizer: of the checkpoint.
        rows: rows of its embedding.

    Attributes:
        size: V, one more than the largest id that counts.
        gaps: ids below V that the tokenizer does not know, ascending.
    """

    def __init__(self, tokenizer: Any, rows: int) -> None:
        known = set(tokenizer.get_vocab().values())
        self.tokenizer = tokenizer
        self.rows = rows
        self.size = min(max(known, default=-1) + 1, rows)
        self.gaps = tuple(sorted(set(range(self.size)) - known))

    def __contains__(self, id: int) -> bool:
        return 0 <= id < self.size and id not in self.gaps

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Ids of a text that a model is to continue.

        Args:
            text: the text. One that begins with the BOS token, as chat templates write it, gets no
                second one.
            special: add the tokenizer's special tokens or not; None decides by the text.

        Returns:
            Its ids, without what the tokenizer appends to every text: a model continues an EOS
            with another text.

        Raises:
            UserError: a token that the embedding has no row for, or a text that is no Unicode.
        """
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(
                "the text holds half a character (a lone surrogate), which no tokenizer takes;"
                " mend it: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            )
        if special is None:
            bos = self.tokenizer.bos_token
            special = not (bos and text.startswith(bos))
        ids = list(self.tokenizer.encode(text, add_special_tokens=special))
        if special and self.appended:
            ids = ids[: -len(self.appended)]
        self._check(ids)
        return ids

    @cached_property
    def appended(self) -> tuple[int, ...]:
        """Ids that the tokenizer puts behind every text, EOS as a rule; mostly none."""
        bare = self.tokenizer.encode("x", add_special_tokens=False)
        whole = self.tokenizer.encode("x", add_special_tokens=True)
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[start + len(bare) :])
        return ()

    def _check(self, ids: Sequence[int]) -> None:
        beyond = next((id for id in ids if id >= self.rows), None)
        if beyond is not None:
            token = self.tokenizer.convert_ids_to_tokens(beyond)
            raise UserError(
                f"the text holds the token {token!r} (id {beyond}), the checkpoint's embedding has"
                f" {self.rows} rows: take the tokenizer that belongs to it, or resize the embedding"
                " (resize_token_embeddings)"
            )

    def eos_ids(self, *named: Any) -> frozenset[int]:
        """Ids that end a sequence: the tokenizer's own and those that configs name.

        Raises:
            UserError: none of them can ever be chosen, or not the tokenizer's own.
        """
        own = self.tokenizer.eos_token_id
        lists = [value if isinstance(value, list | tuple) else [value] for value in (own, *named)]
        ids = {id for some in lists for id in some if id is not None and id >= 0}
        reached = frozenset(id for id in ids if id in self)
        lost = own if own is not None and own not in reached else None
        if lost is None and ids and not reached:
            lost = min(ids)
        if lost is not None:
            raise UserError(
                f"the end-of-sequence id {lost} is not among the {self.size} ids that tokenizer and"
                f" embedding ({self.rows} rows) share, so no sample could end; take the tokenizer"
                " that belongs to the checkpoint"
            )
        return reached
