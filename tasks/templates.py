r"""Jinja templates over the fields of a row: how a benchmark's YAML says question and answer.

The environment is sandboxed and changes nothing it is given, so that a definition from somebody
else can put texts together and do nothing more. Beside Jinja's own filters there are

* ``after(mark)`` and ``before(mark)``: what stands after or before the last `mark`, which must be
  there; GSM8K's answers stand after ``"#### "``;
* ``regex_replace(pattern, replacement)``, as lm-eval has it.

Knows nothing of data sets or tasks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from softeval.errors import UserError


class Template:
    """A template, or the bare name of a field.

    Args:
        name: what it is of, for messages: "question".
        source: its text; a single word is the name of a field.
        constants: names that are the same for every row.

    Raises:
        UserError: no Jinja.
    """

    def __init__(self, name: str, source: str, constants: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.source = source
        self._constants = constants or {}
        self._bare = source.isidentifier() and source not in self._constants
        text = f"{{{{ {source} }}}}" if source.isidentifier() else source
        try:
            self._tree, self._template = _parsed(text), _compiled(text)
        except TemplateSyntaxError as error:
            raise UserError(f"{name} is no Jinja template ({error.message}); mend it") from None

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Fields that every row must have, as they are met; not those with a ``default``."""
        asked = meta.find_undeclared_variables(self._tree) - {*self._optional(), *self._constants}
        met = [node.name for node in self._tree.find_all(nodes.Name) if node.name in asked]
        return tuple(dict.fromkeys(met))

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for a row.

        Raises:
            UserError: it cannot be made from this row, or would do what a template may not.
        """
        if self._bare and isinstance(text := row.get(self.source), str):
            return text  # as Jinja would, in a fraction of its time
        try:
            return self._template.render(row, **self._constants)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.name}: {reason}; mend the row or the template") from error

    def _optional(self) -> Iterator[str]:
        for node in self._tree.find_all(nodes.Filter):
            if node.name in ("default", "d") and isinstance(node.node, nodes.Name):
                yield node.node.name


def _parted(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.rpartition(mark)
    if not found:
        raise ValueError(f"no {mark!r} in {text[:40]!r}")
    return before, after


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.filters |= {
    "after": lambda text, mark: _parted(text, mark)[1],
    "before": lambda text, mark: _parted(text, mark)[0],
    "regex_replace": lambda text, pattern, replacement="": re.sub(pattern, replacement, text),
}
_parsed, _compiled = cache(_ENVIRONMENT.parse), cache(_ENVIRONMENT.from_string)  # once a text
