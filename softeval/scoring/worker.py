r"""The process in which answers are compared: JSON lines in, JSON lines out, nothing else.

Started by `softeval.scoring.process` as a script: `python -P worker.py SECONDS MB PARENT`.
It holds two judges, `softeval.scoring.grading` and plain math-verify, and nothing else of softeval.

What a model wrote is read here, by our tokens or by math-verify's ANTLR grammar, and compared by
SymPy, which may take all time and memory there is. Four guards, none of which trusts the libraries:

* CPU time per question by an interval timer whose signal is left at its default action, so that
  the kernel ends the process, also inside C code. CPU time and not wall time: a verdict must not
  depend on how loaded the machine is. The parent holds the wall clock.
* Address space by RLIMIT_AS (macOS knows no such limit: there only the time is bounded); files
  cannot grow (RLIMIT_FSIZE) and hardly be opened.
* Of math-verify only the LaTeX reader is used, not the plain-expression reader. Both hand text to
  SymPy's `parse_expr`, which is `eval`: the plain one whole expressions, the LaTeX one every number
  it finds. That function is replaced by one that reads numbers and refuses all else.
* An audit hook refuses every interpreter event that an honest comparison does not need: processes,
  sockets, files for writing, code made from text. A refusal is reported, never swallowed.

Standard output belongs to the protocol; what libraries print goes nowhere.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

MEGABYTE = 1024 * 1024
# Above this share of the address space the process asks to be replaced.
WORN_OUT = 0.5
ORPHAN_CHECK_SECONDS = 5.0
# What importing a module lazily and comparing two expressions raise; all else is refused.
_HARMLESS = {
    "array.__new__",
    "builtins.id",
    "compile",
    "import",
    "marshal.loads",
    "object.__delattr__",
    "object.__getattr__",
    "object.__setattr__",
    "os.listdir",
    "os.scandir",
    "sys._getframe",
}
_MONOMIAL_HELPER = re.compile(r"monomial_[a-z]+")
_FRACTION = re.compile(r"-?[0-9]+(?:/[1-9][0-9]*)?")
_DECIMAL = re.compile(r"(?:[0-9]+\.[0-9]*|\.?[0-9]+)(?:[eE][+-]?[0-9]+)?")

Judge = Callable[[str, str, float | None], bool]
Message = dict[str, str | bool]
Request = dict[str, Any]


class Refusals:
    """An audit hook that lets only harmless events pass and remembers what it refused."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in _HARMLESS or _reads(event, arguments) or _harmless_code(event, arguments):
            return
        self.seen.append(event)
        raise PermissionError(f"{event} is not for answers")


def _reads(event: str, arguments: tuple[object, ...]) -> bool:
    if event != "open":
        return False
    flags = arguments[2]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    return isinstance(flags, int) and not flags & writing


def _harmless_code(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether code is a module's, or was made on the way but can call nothing by name.

    SymPy compiles helpers for monomials of n variables: arithmetic on local names. Code without
    global names and attributes reaches no function, whatever it says.
    """
    if event != "exec" or not isinstance(arguments[0], CodeType):
        return False
    code = arguments[0]
    if not code.co_filename.startswith("<") or code.co_filename.startswith("<frozen "):
        return True
    return all(_MONOMIAL_HELPER.fullmatch(name) for name in _names(code))


def _names(code: CodeType) -> Iterator[str]:
    """Yield the global names and attributes of a code object and of those nested in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


class MemoryWatch(logging.Handler):
    """Notices the memory errors that math-verify catches and logs as mere failures."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.hit = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[0] is MemoryError:
            self.hit = True


def take_standard_output() -> int:
    """Move the protocol to a descriptor of its own and point standard output at nothing."""
    private = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    return private


def limit_resources(memory_mb: int) -> None:
    """Bound the address space and forbid files that grow and core dumps."""
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 32}
    if sys.platform != "darwin":
        limits[resource.RLIMIT_AS] = memory_mb * MEGABYTE
    for which, value in limits.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def close_eval(refusals: Refusals) -> None:
    """Put a reader of numbers in the place of SymPy's `parse_expr`, wherever it is held.

    SymPy loads some of its modules on demand, and these evaluate text of their own: they come first.
    """
    import sympy.integrals.manualintegrate
    import sympy.physics.units  # noqa: F401
    from latex2sympy2_extended import latex2sympy2
    from math_verify import parser
    from sympy import Expr, Float, Rational
    from sympy.parsing import sympy_parser

    def read_number(text: str, *_: object, **__: object) -> Expr:
        text = text.strip()
        if _FRACTION.fullmatch(text):
            return Rational(text)
        if _DECIMAL.fullmatch(text):
            return Float(text)
        refusals.seen.append("parse_expr")
        raise PermissionError("text is never evaluated as Python")

    for module in (parser, latex2sympy2, sympy_parser):
        module.parse_expr = read_number  # type: ignore


def load_judges() -> dict[str, Judge]:
    """Import the judges and warm their caches up."""
    return {"softeval": _load_grading(), "math-verify": _load_math_verify()}


def _load_grading() -> Judge:
    """Import `softeval.scoring.grading`, from beside this file where softeval is not installed.

    At the end of the path, so that nothing beside the package hides a library.
    """
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from softeval.scoring.grading.comparison import same_answer

    same_answer(r"\frac{\sqrt{2}}{2}+x", r"x+\frac{1}{\sqrt{2}}", None)
    same_answer(r"x \in (1, 2] \cup \{3\}", r"(1,2]\cup\{3\}", None)
    return same_answer


def _load_math_verify() -> Judge:
    from math_verify import LatexExtractionConfig, parse, verify

    # The box first: text inside it that reads like "the final answer is ..." does not come before.
    reader = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(content: str) -> list[object]:
        return parse(f"\\boxed{{{content}}}", reader, parsing_timeout=None)  # type: ignore

    def equal(answer: str, target: str, _: float | None = None) -> bool:
        return bool(verify(read(target), read(answer), timeout_seconds=None))  # type: ignore

    equal(r"1+\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}+1")
    equal(r"(1,2]\cup\{3\}", r"x \in (1, 2] \cup \{3\}")
    return equal


def requests(parent: int) -> Iterator[Request]:
    """Yield what the parent asks, until it closes the pipe or is gone.

    A process that the parent forked may hold the pipe open after the parent's death, so the
    parent's id is looked at too.
    """
    waiting = b""
    while True:
        while b"\n" not in waiting:
            if not select.select([0], [], [], ORPHAN_CHECK_SECONDS)[0]:
                if os.getppid() != parent:
                    return
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                return
            waiting += chunk
        line, _, waiting = waiting.partition(b"\n")
        yield json.loads(line)


def reply(descriptor: int, message: Message) -> None:
    """Write one line; a pipe takes it in one piece."""
    os.write(descriptor, json.dumps(message).encode() + b"\n")


def judge_one(judges: Mapping[str, Judge], request: Request, cpu_seconds: float) -> Message:
    """Compare under the CPU limit; failures come back as `{"error": reason}`."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        judge = judges[request["rules"]]
        return {"correct": judge(request["answer"], request["target"], request["error"])}
    except Exception as error:  # noqa: BLE001 - reported to the parent, which counts it
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class Residency:
    """How much memory the process holds now.

    Not the peak that getrusage gives: on Linux a new program inherits that from the process that
    started it, and the parent of a scorer may hold a large model.
    """

    def __init__(self) -> None:
        linux = os.path.exists("/proc/self/statm")
        self._statm = os.open("/proc/self/statm", os.O_RDONLY) if linux else None

    def worn_out(self, memory_mb: int) -> bool:
        """Whether the process has grown so much that the next question could starve."""
        return self._resident_bytes() > WORN_OUT * memory_mb * MEGABYTE

    def _resident_bytes(self) -> int:
        if self._statm is not None:
            return int(os.pread(self._statm, 128, 0).split()[1]) * resource.getpagesize()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Announce readiness, then answer every request until the parent is gone."""
    cpu_seconds, memory_mb, parent = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    output = take_standard_output()
    memory, refusals, residency = MemoryWatch(), Refusals(), Residency()
    for name in ("math_verify", "latex2sympy2_extended"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(memory)
    sys.dont_write_bytecode = True
    try:
        limit_resources(memory_mb)
        judges = load_judges()
        close_eval(refusals)
    except Exception as error:  # noqa: BLE001 - the parent raises it where the user sees it
        reply(output, {"failed": f"{type(error).__name__}: {error}"[:500]})
        return
    sys.addaudithook(refusals)
    reply(output, {"ready": True})
    for request in requests(parent):
        refusals.seen.clear()
        memory.hit = False
        answer = judge_one(judges, request, cpu_seconds)
        if refusals.seen:
            answer = {"error": f"refused: {refusals.seen[0]}"}
        elif memory.hit:
            answer = {"error": "MemoryError"}
        reply(output, answer | {"last": "error" in answer or residency.worn_out(memory_mb)})


if __name__ == "__main__":
    main()
