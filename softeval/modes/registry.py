"""Which modes there are, how one is chosen and set, and how others join.

A mode of somebody else's package joins by the entry point group ``softeval.modes`` (a name pointing
to its class), one of a single file by `load_mode_file`, one of a session by `register_mode`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from softeval.errors import UserError
from softeval.files import run_python
from softeval.modes.coconut import Coconut
from softeval.modes.mixture_of_inputs import MixtureOfInputs
from softeval.modes.multiplex import Multiplex
from softeval.modes.noise_placement import HiddenNoise, LogitNoise, TopLogitNoise
from softeval.modes.noisy_soft_thinking import Dirichlet, Gumbel
from softeval.modes.paper import PAPER_MODES
from softeval.modes.seam import Mode, mode_record
from softeval.modes.soft_thinking import SoftThinking

ENTRY_POINTS = "softeval.modes"
ALL = tuple(mode.name for mode in PAPER_MODES)
"""What "all" means on the command line: the paper's six."""
OTHERS: tuple[Mode, ...] = (
    SoftThinking(),
    MixtureOfInputs(),
    Gumbel(),
    Dirichlet(),
    Multiplex(),
    Coconut(),
    HiddenNoise(),
    LogitNoise(),
    TopLogitNoise(),
)
"""Modes of other papers, asked for by name."""
FAMILIES = tuple(dict.fromkeys(mode.family for mode in PAPER_MODES))
"""The paper's families in the order of every list and table: hard, soft, fuzzy."""

LEAST_TEMPERATURE = 1e-30
"""Divided by less, logits are infinite in float32."""

_Class = TypeVar("_Class", bound=type[Mode])


def mode_order(mode: Any) -> tuple[int, str, bool, str]:
    """Sort key of (recorded) modes: `FAMILIES`, then others by name; greedy before sampled."""
    rank = FAMILIES.index(mode.family) if mode.family in FAMILIES else len(FAMILIES)
    return rank, mode.family, not mode.is_greedy, mode.name


class _Modes(Mapping[str, Mode]):
    """Every known mode by name; installed packages are asked when one is looked up."""

    def __init__(self) -> None:
        self._known = {mode.name: mode for mode in (*PAPER_MODES, *OTHERS)}
        self._asked = False

    def add(self, mode: Mode) -> None:
        if self._known.get(mode.name, mode) != mode:
            raise UserError(f"there is a mode {mode.name!r} already; give yours another name")
        self._known[mode.name] = mode

    def forget(self, module: str) -> None:
        self._known = {n: m for n, m in self._known.items() if type(m).__module__ != module}

    def __getitem__(self, name: str) -> Mode:
        if name not in self._known:
            self._ask()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        self._ask()
        return iter(self._known)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _ask(self) -> None:
        """Take in the modes of installed packages, once."""
        if not self._asked:
            self._asked = True
            for point in entry_points(group=ENTRY_POINTS):
                register_mode(point.load())


_MODES = _Modes()
MODES: Mapping[str, Mode] = _MODES
_LOADED: dict[Path, str] = {}
"""Files of modes that this process has run, and the hash of what it ran."""


def register_mode(cls: _Class) -> _Class:
    """Make a mode known; also a decorator.

    Args:
        cls: a frozen dataclass derived from `Mode` whose every field, name and family among
            them, has a default.

    Raises:
        UserError: no such class, or another mode of that name.
    """
    if not (isinstance(cls, type) and issubclass(cls, Mode) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{cls!r} is no mode; derive a frozen dataclass from softeval.modes.Mode")
    try:
        mode = cls()  # type: ignore[call-arg]
    except TypeError as error:
        raise UserError(f"{cls.__name__}: every field needs a default ({error})") from None
    _MODES.add(mode)
    return cls


def load_mode_file(path: str | Path) -> None:
    """Run a Python file that registers modes; once edited it is run again, and its modes replaced.

    Raises:
        UserError: no such file, or whatever goes wrong in it, on one line.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"--mode-file {path}: no such file")
    source, name = mode_source(file), f"softeval modes of {file}"
    if _LOADED.get(file) == source:
        return
    _LOADED.pop(file, None)  # nothing is left of it, should the new one fail
    _MODES.forget(name)
    try:
        run_python(file, name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--mode-file {path}: {type(error).__name__}: {error}") from error
    _LOADED[file] = source


def mode_source(path: str | Path) -> str:
    """First 16 hex digits of the sha256 of a file of modes."""
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()[:16]


def get_mode(name: str, **options: Any) -> Mode:
    """A mode by name, with any of its options set; None leaves an option as it is.

    Raises:
        UserError: unknown name, an option that the mode does not have, or a value out of range.
    """
    name = name.replace("-", "_")
    try:
        mode = MODES[name]
    except KeyError:
        near = [known for known in MODES if known.startswith(f"{name}_")]
        near = near or difflib.get_close_matches(name, list(MODES), n=1)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(MODES)}"
        raise UserError(f"unknown mode {name!r}; {remedy}") from None
    return with_options(mode, {k: v for k, v in options.items() if v is not None})


def with_options(mode: Mode, options: Mapping[str, Any]) -> Mode:
    """The mode with options set; a greedy mode stays greedy.

    Raises:
        UserError: as `get_mode`.
    """
    values = {name: _read(mode, name, value) for name, value in options.items()}
    changed = replace(mode, **values)
    if mode.is_greedy and not changed.is_greedy:
        given = ", ".join(f"{k}={v}" for k, v in options.items())
        raise UserError(
            f"{mode.name} is greedy, and {given} would make it sampled; use another mode"
        )
    return changed


def select_modes(names: Sequence[str], options: Mapping[str, Any]) -> tuple[Mode, ...]:
    """The named modes (or "all"), each option given to the modes that can take it.

    Raises:
        UserError: an option that no named mode takes, or a temperature for several families.
    """
    chosen = [n for name in names for n in (ALL if name == "all" else (name,))]
    modes = [get_mode(name) for name in dict.fromkeys(chosen)]
    if "temperature" in options and len({mode.family for mode in modes}) > 1:
        raise UserError("--temperature fits one kind of mode; name modes of one family")
    for option, value in options.items():
        takers = [mode for mode in modes if _takes(mode, option, value)]
        if not takers:
            with_options(modes[0], {option: value})  # says what is wrong, where it is that
            raise UserError(f"no chosen mode takes {option}={value}")
        modes = [with_options(m, {option: value}) if m in takers else m for m in modes]
    return tuple(modes)


def joined_options(shorthands: Mapping[str, Any], mode_args: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given by flags of their own (None: not given) and by --mode-args.

    Raises:
        UserError: an option given both ways.
    """
    given = {name: value for name, value in shorthands.items() if value is not None}
    for name in given.keys() & mode_args.keys():
        flag = f"--{name.replace('_', '-')}"
        raise UserError(f"{name} is given by {flag} and by --mode-args; give it by {flag} alone")
    return given | dict(mode_args)


def mode_from_record(entry: Mapping[str, Any]) -> Mode:
    """A mode as a run recorded it.

    Raises:
        UserError: a mode that is not known here.
    """
    mode = get_mode(str(entry["name"]))
    known = {name: entry[name] for name in mode.options if entry.get(name) is not None}
    values = {name: _read(mode, name, value) for name, value in known.items()}
    return replace(mode, **values)


def recorded_modes(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The modes of a run's record by name, as `mode_record` gives them, in the record's order.

    Runs of the first schema name the paper's modes only, and not their nature; it is filled in.
    """
    entries = {str(entry["name"]): dict(entry) for entry in record.get("modes") or ()}
    known = {mode.name: mode_record(mode) for mode in PAPER_MODES}
    return {name: known.get(name, {}) | entry for name, entry in entries.items()}


def _takes(mode: Mode, option: str, value: Any) -> bool:
    """Whether a mode has the option and would stay greedy if it is."""
    if option not in mode.options:
        return False
    changed = replace(mode, **{option: _read(mode, option, value)})
    return changed.is_greedy or not mode.is_greedy


def _read(mode: Mode, option: str, value: Any) -> Any:
    """An option's value, given as text or number, in the type of its default."""
    if option not in mode.options:
        there = ", ".join(mode.options) or "none"
        raise UserError(f"{mode.name} has no option {option!r}; its options: {there}")
    kind = type(mode.options[option])
    try:
        read = _boolean(value) if kind is bool else kind(value)
    except (TypeError, ValueError):
        raise UserError(f"{_spelt(option)} {value!r}: {_wanted(kind)}") from None
    if isinstance(read, float) and not (math.isfinite(read) and read >= 0):
        raise UserError(f"{_spelt(option)} {value} must be a finite number >= 0")
    if option.endswith("temperature") and 0 < read < LEAST_TEMPERATURE:
        raise UserError(f"{_spelt(option)} {value}: give 0 or at least {LEAST_TEMPERATURE}")
    return read


def _spelt(option: str) -> str:
    """How an option stands on the command line."""
    own = ("temperature", "noise_scale", "noise_norm")
    return f"--{option.replace('_', '-')}" if option in own else f"--mode-args {option}"


def _boolean(value: Any) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    if str(value).lower() not in words:
        raise ValueError(value)
    return words[str(value).lower()]


def _wanted(kind: type) -> str:
    if issubclass(kind, str) and hasattr(kind, "__members__"):
        return f"choose from {', '.join(str(v) for v in kind.__members__.values())}"  # type: ignore[attr-defined]
    return f"must be of type {kind.__name__}"
