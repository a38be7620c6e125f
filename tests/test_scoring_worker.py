"""The scoring workers: no answer hangs or crashes them, or runs anything; nothing outlives its use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scoring_cases import math_cases, our_cases

from softeval.errors import UserError
from softeval.scoring.answer_text import tidy
from softeval.scoring.judge import (
    Rules,
    ScoreKind,
    Scorer,
    Verdict,
)
from softeval.scoring.process import WORKER, ScoringProcess

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
MATH, LETTER = ScoreKind.MATH, ScoreKind.LETTER
ACCEPTED = Verdict(True, "ok")
REJECTED = Verdict(False, "ok")


# --- bombs ----------------------------------------------------------------------------------------


MATH_VERIFYS_BOMBS = [
    "9^{9^{9^{9}}}+1",  # one long computation in C
    "99999999!",
    r"\binom{100000000}{50000000}",  # computed while it is read
    "(" * 900 + "1" + ")" * 900,  # the grammar's own time
]
BOMBS = [
    *MATH_VERIFYS_BOMBS,
    r"\sum_{k=1}^{99999999} \lfloor \sqrt{k} \rfloor",
    r"\prod_{k=1}^{99999999} (k+\frac{1}{k})",
    r"\det\begin{pmatrix}" + r"\\".join(["x&y&z&a&b&c&d"] * 7) + r"\end{pmatrix}^{99}",
    "{" * 900 + "1" + "}" * 900,
    r"\sqrt" * 300 + "2",
    r"\frac" * 300 + "2",
    "x^" * 500 + "2",
]


def test_a_bomb_is_given_up_on_and_the_next_answer_scored() -> None:
    with Scorer(timeout=0.5, rules="math-verify") as fresh:
        for answer in MATH_VERIFYS_BOMBS:
            assert fresh.score(answer, "0.5") == Verdict(False, "timeout"), answer
            assert fresh.score(r"\frac12", "0.5") == ACCEPTED, answer


def test_no_bomb_outlasts_our_own_rules() -> None:
    with Scorer(timeout=0.5) as fresh:
        for answer in BOMBS:
            assert not fresh.score(answer, "0.5").correct, answer
            assert fresh.score(r"\frac12", "0.5") == ACCEPTED, answer


def test_a_memory_bomb_is_an_error_and_the_next_answer_scored() -> None:
    with Scorer(timeout=20, memory_mb=300, rules="math-verify") as fresh:
        assert fresh.score(r"\operatorname{eye}(20000)", "0.5") == Verdict(False, "error")
        assert fresh.score(r"\frac12", "0.5") == ACCEPTED


# --- nothing is executed --------------------------------------------------------------------------

HOSTILE = [
    "__import__('os').system('touch CANARY')",
    "__import__('pathlib').Path('CANARY').touch()",
    "exec(\"open('CANARY','w')\")",
    'eval(\'open("CANARY","w")\')',
    "(lambda: open('CANARY','w'))()",
    "[c for c in ().__class__.__base__.__subclasses__()][0]; open('CANARY','w')",
    "1; import os; os.system('touch CANARY')",
    "1\n__import__('os').system('touch CANARY')",
    r"\text{__import__('os').system('touch CANARY')}",
    r"\text{__import__('os').system('touch CANARY')}(5)",
    r"\operatorname{__import__('os').system}('touch CANARY')",
    r"\mathrm{eval}(\text{open('CANARY','w')})",
    r"f_{__import__('os').system('touch CANARY')}(x)",
    r"\variable{__import__('os').system('touch CANARY')}",
    r"x = \text{open('CANARY','w')}",
    "0.__class__.__mro__[1].__subclasses__()",
    "9**9; open('CANARY','w')",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "${open('CANARY','w')}",
    "`touch CANARY`",
    "$(touch CANARY)",
    "%(touch CANARY)s {0.__class__}",
    "\x00__import__('os').system('touch CANARY')",
    '","answer":"5","target":"5"}\n{"answer": "5", "target": "5"}',
    "the final answer is: $5$. I hope it is correct",
    r"5}\input{/etc/passwd}{",
    r"5} \boxed{5",
    r"\write18{touch CANARY}",
    r"\csname input\endcsname CANARY",
]


@pytest.mark.parametrize("rules", list(Rules))
@pytest.mark.parametrize("kind", list(ScoreKind))
def test_hostile_answers_run_nothing_and_are_wrong(
    kind: ScoreKind, rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    answers = [text.replace("CANARY", str(canary)) for text in HOSTILE]
    answers += [text.replace("CANARY", "canary") for text in HOSTILE]
    label = "E" if kind is LETTER else r"\frac{271}{3}"
    with Scorer(timeout=10, rules=rules) as fresh:  # its worker starts in tmp_path
        verdicts = fresh.score_many([(answer, label, kind) for answer in answers])
    assert not any(verdict.correct for verdict in verdicts)
    assert list(tmp_path.iterdir()) == []


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that can import the worker and softeval."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{WORKER.parent}"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def test_the_worker_refuses_what_no_comparison_needs(tmp_path: Path) -> None:
    """Even if math-verify came to run an answer, it would get nowhere."""
    code = r"""
import sys
from softeval.scoring import worker as worker
refusals = worker.Refusals()
judges = worker.load_judges()
equal, ours = judges["math-verify"], judges["softeval"]
worker.close_eval(refusals)
import ctypes, os, socket, subprocess, sympy
sys.addaudithook(refusals)
target = sys.argv[1]
attempts = [
    lambda: os.system("touch " + target),
    lambda: subprocess.run(["touch", target]),
    lambda: os.fork(),
    lambda: os.execv("/bin/sh", ["sh"]),
    lambda: open(target, "w"),
    lambda: os.open(target, os.O_CREAT),
    lambda: os.mkdir(target),
    lambda: os.remove(__file__ if "__file__" in globals() else target),
    lambda: os.kill(os.getpid(), 9),
    lambda: socket.socket(),
    lambda: ctypes.CDLL(None),
    lambda: eval("__import__('os')"),
    lambda: exec("import os"),
    lambda: eval("(5).__class__"),
    lambda: sympy.sympify("__import__('os').getcwd()"),
    lambda: sympy.sympify("x + 1"),
    lambda: sympy.lambdify(sympy.Symbol("x"), sympy.Symbol("x")),
    lambda: sys.addaudithook(print),
]
for number, attempt in enumerate(attempts):
    refusals.seen.clear()
    try:
        attempt()
    except PermissionError:
        pass
    except Exception as error:
        print(number, repr(error))
    if not refusals.seen:
        print(number, "was not refused")
refusals.seen.clear()
assert sympy.sympify("12") == 12 and sympy.sympify("1.5") == sympy.Float("1.5")
assert equal(r"\frac12", "0.5") and ours("x+\\frac12", "0.5+x", None) and not refusals.seen
print("done")
"""
    result = run_python(code, str(tmp_path / "canary"))
    assert result.stdout == "done\n", result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


def test_closing_the_way_to_eval_changes_no_verdict() -> None:
    """The verdicts of the cases were taken while it was open, after tidying as the scorer does."""
    code = r"""
import json, sys
from softeval.scoring import worker as worker
equal = worker.load_judges()["math-verify"]
refusals = worker.Refusals()
worker.close_eval(refusals)
verdicts = [equal(answer, target) for answer, target, _ in json.loads(sys.argv[1])]
print(json.dumps([verdicts, refusals.seen]))
"""
    cases = [(tidy(answer), tidy(label), accepted) for answer, label, accepted in math_cases()]
    found = json.loads(run_python(code, json.dumps(cases)).stdout)
    assert found == [[accepted for *_, accepted in cases], []]


# --- workers --------------------------------------------------------------------------------------


@pytest.fixture
def process() -> Iterator[ScoringProcess]:
    alone = ScoringProcess(cpu_seconds=20, memory_mb=2048)
    yield alone
    alone.stop()


def test_workers_start_when_first_needed(process: ScoringProcess) -> None:
    with Scorer() as fresh:
        fresh.score_many([("5", "5", MATH), (None, "5", MATH), ("x" * 9999, "5", MATH)])
    assert process.pid is None
    assert process.ask(answer="1/2", target="0.5").correct
    assert process.pid is not None


def test_a_worker_killed_between_questions_is_replaced(process: ScoringProcess) -> None:
    process.ask(answer="1/2", target="0.5")
    first = process.pid
    os.kill(first, signal.SIGKILL)
    assert process.ask(answer="1/3", target=r"\frac13") == (True, "ok")
    assert process.pid != first


def wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used, from Linux's /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@linux
def test_a_question_whose_worker_is_killed_is_asked_once_more(process: ScoringProcess) -> None:
    process.ask(answer="1/2", target="0.5")
    victims: list[int] = []

    def works_on_the_bomb() -> bool:
        """A worker takes far less than these two seconds of CPU time to start."""
        pid = process.pid
        return pid is not None and pid not in victims and cpu_seconds(pid) > 2

    def kill_at_work() -> None:
        for _ in range(2):
            wait_for(works_on_the_bomb)
            victims.append(process.pid)
            os.kill(victims[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    bomb = {"answer": "99999999!", "target": "0.5", "rules": "math-verify"}
    assert process.ask(**bomb) == (False, "error")
    killer.join()
    assert len(set(victims)) == 2
    assert process.ask(answer="1/2", target="0.5") == (True, "ok")


def test_a_worker_that_stands_still_is_killed(process: ScoringProcess) -> None:
    process.cpu_seconds = 0.2
    process.ask(answer="1/2", target="0.5")
    stopped = process.pid
    os.kill(stopped, signal.SIGSTOP)
    assert process.ask(answer="1/2", target="0.25") == (False, "timeout")
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
    assert process.ask(answer="1/2", target="0.5") == (True, "ok")


@pytest.fixture
def dying_starts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Have the next so many workers killed as soon as they are born."""

    def arm(deaths: int) -> list[int]:
        killed: list[int] = []
        begin = subprocess.Popen

        def born(*arguments, **options):
            process = begin(*arguments, **options)
            if len(killed) < deaths:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
            return process

        monkeypatch.setattr("softeval.scoring.process.subprocess.Popen", born)
        return killed

    return arm


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_worker_killed_while_it_starts_is_started_again(
    process: ScoringProcess, dying_starts: Callable[[int], list[int]], deaths: int
) -> None:
    killed = dying_starts(deaths)
    assert process.ask(answer="1/2", target="0.5") == (True, "ok")
    assert len(killed) == deaths


def test_workers_that_never_come_up_cost_an_answer_and_not_the_run(
    process: ScoringProcess, dying_starts: Callable[[int], list[int]]
) -> None:
    killed = dying_starts(4)
    assert process.ask(answer="1/2", target="0.5") == (False, "error")
    assert len(killed) == 4
    assert process.ask(answer="1/2", target="0.5") == (True, "ok")


def test_a_worker_that_cannot_start_is_an_error_with_a_remedy() -> None:
    with Scorer(memory_mb=20) as starved, pytest.raises(UserError, match="more memory than 20 MB"):
        starved.score("1/2", "0.5")


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"timeout": 0}, {"memory_mb": 0}])
def test_limits_must_be_positive(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Scorer(**wrong)


def test_many_threads_share_a_scorer() -> None:
    cases = our_cases()[::9]
    with Scorer(workers=2, timeout=20) as fresh, ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda case: fresh.score(case[0], case[1]).correct, cases * 3)
        assert list(found) == [accepted for *_, accepted in cases] * 3


def test_a_closed_scorer_leaves_no_process_and_can_be_used_again() -> None:
    fresh = Scorer()
    fresh.score("1/2", "0.5")
    pid = fresh._processes[0].pid
    fresh.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert fresh.score("1/3", r"\frac13") == ACCEPTED
    fresh.close()


def test_noise_on_standard_output_does_not_reach_the_protocol() -> None:
    code = """
import os, subprocess
from softeval.scoring import worker as worker
output = worker.take_standard_output()
print("noise", flush=True)
os.write(1, b"more noise")
subprocess.run(["echo", "and more"])
worker.reply(output, {"correct": True})
"""
    assert run_python(code).stdout == '{"correct": true}\n'


def test_a_forked_child_starts_workers_of_its_own() -> None:
    code = r"""
import os, sys
from softeval.scoring.judge import Scorer, scorer
ours = scorer()
assert ours.score("1/2", "0.5").correct
pid = ours._processes[0].pid
child = os.fork()
if child == 0:
    fine = ours.score("1/3", r"\frac13").correct and ours._processes[0].pid != pid
    ours.close()
    os._exit(0 if fine else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert ours.score("1/4", r"\frac14").correct and ours._processes[0].pid == pid
print("done")
"""
    result = run_python(code)
    assert result.stdout == "done\n", result.stderr


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # An orphan that nobody has waited for yet is over as well.
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("busy", [False, True])
def test_workers_die_with_their_parent(busy: bool) -> None:
    """Killed without warning, idle (the pipe closes) or at work (the CPU limit ends it)."""
    code = r"""
import sys, time
from threading import Thread
from softeval.scoring.process import ScoringProcess
process = ScoringProcess(1.0, 2048)
process.ask(answer="1/2", target="0.5")
if sys.argv[1] == "True":
    Thread(target=process.ask, kwargs={"answer": "99999999!", "target": "0.5"}).start()
    time.sleep(0.3)
print(process.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(busy)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    worker = int(parent.stdout.readline())
    assert not is_gone(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: is_gone(worker), seconds=60)


def test_scoring_imports_neither_sympy_nor_torch_into_this_process() -> None:
    code = """
import sys
from softeval.scoring.judge import Scorer
with Scorer() as scorer:
    assert scorer.score("1/2", "0.5").correct
print(sorted({"sympy", "math_verify", "torch", "numpy"} & set(sys.modules)))
"""
    assert run_python(code).stdout == "[]\n"


def test_a_large_parent_does_not_wear_its_workers_out() -> None:
    """On Linux a new process inherits its parent's peak memory; only its own may count."""
    code = (
        "from softeval.scoring.process import ScoringProcess\n"
        "ballast = bytearray(1_600_000_000)\n"
        "ballast[::4096] = b'x' * len(range(0, len(ballast), 4096))\n"
        "process = ScoringProcess(5.0, 2048)\n"
        "pids = set()\n"
        "for _ in range(3):\n"
        "    assert process.ask(answer='1/2', target='0.5').correct\n"
        "    pids.add(process.pid)\n"
        "assert len(pids) == 1 and None not in pids, pids\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
