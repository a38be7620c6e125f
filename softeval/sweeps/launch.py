"""Launchers: where the commands of a sweep run, and the loop that starts what is missing.

A launcher starts commands and knows which of them run. Nothing of it is written down: on this machine
they are children, and on a cluster the queue is asked, by names that follow from the commands. So a
sweep that was killed finds its jobs again, and whether one has done its work its directory says.

A launcher says how many commands may run (`at_once`), the seconds between two looks at them (`pause`) and
until what a command wrote is seen here (`patience`). It starts commands without waiting, names those that
wait or run, whoever started them, and says of one that has ended whether it went well; to be stopped ends the sweep.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from softeval.errors import UserError
from softeval.sweeps.chain import KINDS, Command, CommandState


def run_missing(
    commands: Sequence[Command], launcher: Local | Slurm, tell: Callable[[str], None]
) -> tuple[list[Command], int]:
    """Run what is not done, each after what it needs; a failure stops only what needs it.

    Ctrl-C and SIGTERM are passed on, and what runs here is waited for: it saves its state first.

    Args:
        commands: in the order in which they are started.
        launcher: starts them.
        tell: is told of each command that starts or waits in a queue.

    Returns:
        The commands that failed, and the exit code of an interruption, after which nothing more
        was started; 0 without one.
    """
    waiting = [command for command in commands if command.state is not CommandState.DONE]
    begun: list[Command] = []
    failed: list[Command] = []
    with _caught(launcher.stop) as caught:
        while True:
            names = launcher.running()
            begun += [c for c in waiting if c.name in names and c not in begun]
            for command in [c for c in begun if c.name not in names]:
                begun.remove(command)
                waiting.remove(command)
                # One of other words than the directory's, which changed nothing, ends well, too.
                ended_well = launcher.succeeded(command)
                if not (ended_well or _is_done(command, 0 if caught else launcher.patience)):
                    failed.append(command)
            room = 0 if caught else launcher.at_once - len(begun)
            undone = {*waiting, *failed}
            ready = [c for c in waiting if c not in begun and undone.isdisjoint(c.needs)]
            for command in ready[: max(room, 0)]:
                tell(f"{len(commands) - len(waiting)} of {len(commands)} done: {command.typed}")
                launcher.start(command)
                begun.append(command)
            if not begun:
                return ([], 128 + caught[0]) if caught else (failed, 0)
            time.sleep(launcher.pause)


def _is_done(command: Command, patience: float) -> bool:
    """Whether a command that has ended did its work; a shared file system shows it late."""
    until = time.monotonic() + patience
    while command.state is not CommandState.DONE:
        if time.monotonic() >= until:
            return False
        time.sleep(1)
    return True


@contextmanager
def _caught(stop: Callable[[int], None]) -> Iterator[list[int]]:
    """The signals that came, each passed on."""
    numbers: list[int] = []

    def receive(number: int, frame: object) -> None:
        numbers.append(number)
        stop(number)

    kept = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield numbers
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class Local:
    """Processes on this machine.

    Args:
        at_once: how many may run; the output of several goes to files beside their directories.
    """

    pause = 0.2
    patience = 0.0

    def __init__(self, at_once: int = 1) -> None:
        self.at_once = at_once
        self._children: dict[str, subprocess.Popen[bytes]] = {}  # ended ones, too
        self._signals: list[int] = []

    def start(self, command: Command) -> None:
        """As a child of this process."""
        if self.at_once == 1:
            child = command.start(2)
        else:
            command.log.parent.mkdir(parents=True, exist_ok=True)
            with command.log.open("ab") as log:
                child = command.start(log)
        self._children[command.name] = child
        for number in self._signals:  # it came while the child was being started
            child.send_signal(number)

    def running(self) -> Collection[str]:
        """Children that have not ended."""
        return [name for name, child in self._children.items() if child.poll() is None]

    def succeeded(self, command: Command) -> bool:
        """By its exit code."""
        return self._children[command.name].poll() == 0

    def stop(self, number: int) -> None:
        """To every child."""
        self._signals.append(number)
        for child in self._children.values():
            child.send_signal(number)


class Slurm:
    """Jobs of a Slurm cluster, through submitit.

    They outlive the sweep. A job that Slurm ends early – its time is over, or another needs the place –
    lets its command save its state and goes back into the queue.

    Args:
        folder: of submitit's files, which every node sees.
        options: sbatch's, as submitit names them; `train.time` is for trainings alone.

    Raises:
        UserError: no submitit, no Slurm, or an option that submitit does not know.
    """

    pause = 5.0
    patience = 60.0
    at_once = 10_000

    def __init__(self, folder: Path, options: Mapping[str, str]) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("submitit is not there; pip install 'softeval[slurm]'") from None
        if shutil.which("srun") is None:
            raise UserError("no srun on this machine; start the sweep where sbatch is")
        self._folder, self._options, self._submitit = folder, options, submitit
        self._jobs: dict[str, Any] = {}
        self._left = False
        for kind in KINDS:
            self._executor(kind)  # options that cannot be used are said before anything starts

    def start(self, command: Command) -> None:
        """As a job of its own."""
        executor = self._executor(command.kind)
        executor.update_parameters(job_name=command.name)
        try:
            self._jobs[command.name] = executor.submit(Job(command))
        except self._submitit.core.utils.FailedJobError as error:
            raise UserError(f"sbatch refuses: {' '.join(str(error).split())[-300:]}") from None

    def running(self) -> Collection[str]:
        """Names of all jobs in the queue; asked again where Slurm does not answer."""
        words = ["squeue", "--me", "--noheader", "--format=%j"]
        while not self._left:
            found = subprocess.run(words, capture_output=True, text=True, check=False)
            if found.returncode == 0:
                return set(found.stdout.split())
            time.sleep(self.pause)
        return ()

    def succeeded(self, command: Command) -> bool:
        """By the exit code that submitit has kept, if this sweep has submitted it."""
        job = self._jobs.get(command.name)
        path = None if job is None else job.paths.result_pickle
        if path is None or not path.exists():
            return False
        return self._submitit.core.utils.pickle_load(path) == ("success", 0)

    def stop(self, number: int) -> None:
        """Leave the jobs to themselves."""
        self._left = True

    def _executor(self, kind: str) -> Any:
        """For commands of a kind; its own, because what one is told it tells every later job."""
        chosen: dict[str, Any] = {}
        for name, value in self._options.items():
            only, _, option = name.rpartition(".")
            if only in ("", kind):
                chosen[option] = int(value) if value.isdigit() else value
            elif only not in KINDS:
                raise UserError(f"--slurm {name}: {only!r} is none of {', '.join(KINDS)}")
        executor = self._submitit.SlurmExecutor(self._folder)
        try:
            executor.update_parameters(**chosen)
        except (ValueError, TypeError) as error:
            told = " ".join(str(error).split())
            raise UserError(f"--slurm: {told[:200]}…; see submitit's SlurmExecutor") from None
        return executor


class Job:
    """A command on a node; submitit pickles it.

    Args:
        command: to run.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run it; returns its exit code."""
        # Slurm warns every process of a job; only submitit's is to act on it.
        former = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self._child = self.command.start(2)
        signal.signal(signal.SIGUSR2, former)
        return self._child.wait()

    def checkpoint(self) -> Any:
        """What goes back into the queue, once the command has saved its state."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)
            # Called by a signal's handler inside the other wait, whose lock this one does not take.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Job(self.command))
