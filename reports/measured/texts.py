"""Texts and per-token values of single samples, and the questions inside their prompts.

Reads only the row groups that hold an asked sample. Knows nothing of how they are chosen or shown.

Shape letters: T CoT tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from softeval.runs.parquet_files import row_groups, sequences
from softeval.runs.run import RecordedMode, Run
from softeval.runs.tables import mixtures_place

if TYPE_CHECKING:
    import pyarrow as pa

KEY = ("task", "mode", "doc_id", "sample")
TEXTS = (
    "cot_text", "prefill", "answer_text", "answer", "correct", "verdict", "stop_reason", "target",
)  # fmt: skip
TextKey = tuple[str, str, int, int]  # (task, mode, doc_id, sample)
MIXTURE_TOP = 3
CERTAIN = 0.995
"""A first entry of this weight is shown as the one token that is fed."""
LEAST_WEIGHT = 5e-4
"""Entries of a mixture below it would print as 0.0 %; they are left out."""
BEFORE_QUESTION = re.compile(r"[.:?!]\s+|\n+|(?<=[|｜])>")
AFTER_QUESTION = re.compile(r"^(?=<)|[.?!](?=[\s<])|\n"), re.compile(r"^(?=[\s<])")
"""Where in what all prompts share the question may begin and end, so that no word is cut."""


@dataclass(eq=False)
class SampleText:
    """Everything that is shown of one sample.

    Attributes:
        mode: its mode.
        fields: texts of samples.parquet by column.
        tokens: text of each CoT token; empty where no positions were recorded.
        entropy_T: nats at temperature 1.
        top1_T: largest probability at temperature 1.
        kl_T: KL(base‖checkpoint) on the sample's own prefixes, or None.
        mixtures: (token text, weight) of the largest entries of the mode's distribution at each
            position, at the mode's temperature; empty where none were recorded.
    """

    mode: RecordedMode
    fields: dict[str, Any]
    tokens: list[str] = field(default_factory=list)
    entropy_T: NDArray[np.float32] | None = None
    top1_T: NDArray[np.float32] | None = None
    kl_T: NDArray[np.float32] | None = None
    mixtures: list[list[tuple[str, float]]] = field(default_factory=list)

    @property
    def feeds_mixtures(self) -> bool:
        """Whether there is a mixture to see: recorded, and of a mode that feeds more than tokens."""
        return bool(self.mixtures) and not self.mode.feeds_tokens

    def mixes(self, position: int) -> bool:
        """Whether more than one token is fed there."""
        return self.feeds_mixtures and any(w < CERTAIN for _, w in self.mixtures[position][:1])

    def fed(self, position: int) -> list[tuple[str, float]]:
        """Tokens and weights of a position; its token alone where no mixture is to be seen."""
        return (self.feeds_mixtures and self.mixtures[position]) or [(self.tokens[position], 1.0)]


def temperature_of(mode: RecordedMode) -> str:
    """`` at temperature 0.5``: that of the mode's weights; empty for a mode without."""
    value = mode.options.get("temperature")
    return "" if value is None else f" at temperature {value:g}"


def read_texts(run: Run, keys: Collection[TextKey]) -> dict[TextKey, SampleText]:
    """Texts and values of the samples that are there.

    Raises:
        UserError: a table is damaged.
    """
    texts = {
        key: SampleText(run.mode(key[1]), fields) for key, fields in _read_fields(run, keys).items()
    }
    names = _token_texts(run)
    _read_positions(run, texts, names)
    _read_mixtures(run, texts, names)
    _read_kl(run, texts)
    return texts


def read_prompts(
    runs: Sequence[Run], wanted: Collection[tuple[str, int]]
) -> dict[tuple[str, int], tuple[str, str]]:
    """(prompt, label) of each (task, doc_id), from the first run that has it."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for run in runs:
        if not run.table_path("prompts").is_file():
            continue
        for batch in run.batches("prompts", ("task", "doc_id", "prompt", "target")):
            rows = zip(*(batch.column(i).to_pylist() for i in range(4)), strict=True)
            for task, doc_id, prompt, target in rows:
                if (task, doc_id) in wanted:
                    found.setdefault((task, doc_id), (prompt, target))
    return found


def shared_frame(prompts: Sequence[str]) -> tuple[str, str]:
    """What all prompts of a task begin and end with; the questions stand between.

    Of a single prompt nothing is known to be shared.
    """
    if len(prompts) < 2:
        return "", ""
    begun = [found.end() for found in BEFORE_QUESTION.finditer(_beginning(prompts))]
    rests = [prompt[begun[-1] if begun else 0 :] for prompt in prompts]
    ending = _beginning([rest[::-1] for rest in rests])[::-1]
    ended = next(filter(None, (pattern.search(ending) for pattern in AFTER_QUESTION)), None)
    return prompts[0][: begun[-1] if begun else 0], ending[ended.end() :] if ended else ""


def _beginning(texts: Sequence[str]) -> str:
    pairs = zip(min(texts), max(texts), strict=False)
    return "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def question_of(prompt: str, frame: tuple[str, str]) -> str:
    """The part of a prompt that is its own; the whole prompt where there is none."""
    return prompt.removeprefix(frame[0]).removesuffix(frame[1]).strip() or prompt


def _read_fields(run: Run, keys: Collection[TextKey]) -> dict[TextKey, dict[str, Any]]:
    groups = row_groups(run.table_path("samples"), (*KEY, *TEXTS), _docs(keys))
    return {
        key: {name: value.as_py() for name, value in row.items()}
        for key, row in _matching(groups, keys)
    }


def _docs(keys: Iterable[TextKey]) -> list[int]:
    return sorted({key[2] for key in keys})


def _matching(
    groups: Iterable[pa.Table], keys: Collection[TextKey]
) -> Iterator[tuple[TextKey, dict[str, Any]]]:
    """Rows of the named samples, as Arrow's scalars by column."""
    for group in groups:
        names = zip(*(group[column].to_pylist() for column in KEY), strict=True)
        for row, key in enumerate(names):
            if key in keys:
                yield key, {column: group[column][row] for column in group.column_names}


def _lists(
    path: Path, columns: Sequence[str], keys: Collection[TextKey], more: Sequence[str] = ()
) -> Iterator[tuple[TextKey, dict[str, Any]]]:
    """Lists of the named samples as arrays, and further columns of their key as they are."""
    for key, row in _matching(sequences(path, (*KEY, *more), columns, _docs(keys)), keys):
        lists = {name: row[name].values.to_numpy() for name in columns}
        yield key, lists | {name: row[name].as_py() for name in more}


def _token_texts(run: Run) -> dict[int, str]:
    if not run.table_path("tokens").is_file():
        return {}
    texts: dict[int, str] = {}
    for batch in run.batches("tokens", ("token_id", "text")):
        texts.update(zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True))
    return texts


def _read_positions(
    run: Run, texts: Mapping[TextKey, SampleText], names: Mapping[int, str]
) -> None:
    """Shadow tokens and per-token values."""
    if not run.has("positions"):
        return
    columns = ("entropy", "top1_prob", "shadow_id")
    for key, lists in _lists(run.table_path("positions"), columns, texts):
        texts[key].entropy_T, texts[key].top1_T = lists["entropy"], lists["top1_prob"]
        texts[key].tokens = [names.get(token, "\ufffd") for token in lists["shadow_id"].tolist()]


def _read_mixtures(run: Run, texts: Mapping[TextKey, SampleText], names: Mapping[int, str]) -> None:
    """Largest mixture entries of each position, where they were recorded."""
    path, ids, probs = mixtures_place(run.path)
    if not path.is_file():
        return
    for key, lists in _lists(path, (ids, probs), texts):
        entries = [
            (names.get(token, "\ufffd"), prob)
            for token, prob in zip(lists[ids].tolist(), lists[probs].tolist(), strict=True)
        ]
        top = max(len(entries) // max(len(texts[key].tokens), 1), 1)
        shown = min(top, MIXTURE_TOP)
        texts[key].mixtures = [
            [entry for entry in entries[start : start + shown] if entry[1] >= LEAST_WEIGHT]
            for start in range(0, len(entries), top)
        ]


def _read_kl(run: Run, texts: Mapping[TextKey, SampleText]) -> None:
    """KL(base‖checkpoint) along the sample itself, where `softeval diagnose` replayed it."""
    if not run.table_path("kl").is_file():
        return
    for key, row in _lists(run.table_path("kl"), ["forward"], texts, more=["prefix_set"]):
        text, forward_T = texts[key], row["forward"]
        if row["prefix_set"] == "own" and len(forward_T) == len(text.tokens):
            text.kl_T = forward_T
