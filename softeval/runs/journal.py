"""The journal of a run: every finished result at once on disk, in append-only shards.

One shard a process (``shards/rank-0000.jsonl``), one JSON line a result. Each line ends in the
CRC-32 of what stands before it. A process killed at any moment leaves at most one torn line at the
end of its shard, which is cut off when that shard is opened again. A line that is damaged, wherever
it stands, is passed over: what it held is computed again. Lines reach the operating system when
`add` returns; `close` also flushes them to the disk.

Lines of its own and not sqlite, because of what damage costs: after one random corruption of 200
samples a database had lost all of them in 24 of 100 cases and kept 68 % on average, lines never
lost all and kept 89 % (docs/log.md). Its write-ahead log does not work on network file systems,
either, where run directories often lie.

Knows what a generation and a verdict are; nothing of models, tasks or how answers are judged.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from softeval.errors import UserError
from softeval.records import (
    MIXTURE_SAMPLES,
    AnswerStop,
    Generation,
    SampleKey,
    ScoreTuple,
    StopReason,
)
from softeval.scoring.judge import Verdict

_INT_ARRAYS = ("shadow_ids", "prefill_ids", "answer_ids", "top_ids")
_FLOAT_ARRAYS = ("entropy", "mode_entropy", "top1_prob", "top_probs")
_TEXTS = ("cot_text", "prefill_text", "answer", "answer_text", "stop_reason", "answer_stop")
_READ_BYTES = 1 << 20
# Quotes inside a text are escaped, so no text holds this.
_SEAL = b', "crc32": "'


Name = tuple[SampleKey, str]
"""What names a generation in a run: its key, and the mode."""


@dataclass(frozen=True)
class Prompt:
    """A question as given to the model: text, and its P token ids (P,)."""

    text: str
    ids: np.ndarray


class _Place(NamedTuple):
    shard: int
    offset: int
    length: int


class Journal:
    """Appends results to this process's shard and finds those of every shard.

    Results may be added from several threads.

    Args:
        folder: the shards folder; it exists.
        rank: of this process; each rank appends to its own shard.

    Attributes:
        damaged: lines passed over because they are damaged.

    Raises:
        UserError: another process is writing to this shard.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.damaged = 0
        self._folder = folder
        self._places: dict[Name, _Place] = {}
        self._prompts: dict[tuple[str, int], Prompt] = {}
        self._likelihoods: dict[tuple[str, int, int], ScoreTuple] = {}
        self._verdicts: dict[tuple[SampleKey, str, str], Verdict] = {}
        self._writing = threading.Lock()
        self._own = _Shard(folder / _shard_name(rank), writable=True)
        self._shards = [self._own]
        self._own.cut(self._scan(0))
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes have appended since."""
        known = {shard.path for shard in self._shards}
        for path in sorted(self._folder.glob("rank-*.jsonl")):
            if path not in known:
                self._shards.append(_Shard(path, writable=False))
        for index in range(1, len(self._shards)):
            self._scan(index)

    def get(self, key: SampleKey, mode: str) -> Generation | None:
        """The generation of that name, or None where it is not finished.

        Raises:
            UserError: it was there, and has been damaged since.
        """
        found = self._find(key, mode)
        if found is None:
            return None
        place, prompt = found
        shard = self._shards[place.shard]
        record = _unseal(shard.read(place.offset, place.length))
        if record is None:
            raise UserError(f"{shard.path} was damaged just now; check the disk and start again")
        return _decode_generation(record, key, mode, prompt.ids)

    def add(self, generation: Generation, prompt_text: str) -> None:
        """Store a finished generation; one that is stored already is left as it is.

        Raises:
            OSError: the disk is full or gone; the shard keeps its earlier lines only.
            UserError: the question had another prompt before.
        """
        key = generation.key
        if self._find(key, generation.mode) is not None:
            return
        self._add_prompt(key, prompt_text, generation.prompt_ids)
        self._append(_encode_generation(generation, key.sample < MIXTURE_SAMPLES))

    def verdict(self, key: SampleKey, mode: str, judge: str) -> Verdict | None:
        """What `judge` said of a generation's answer, or None where it was not asked."""
        return self._verdicts.get((key, mode, judge))

    def add_verdict(self, key: SampleKey, mode: str, judge: str, verdict: Verdict) -> None:
        """Store the verdict on a generation's answer."""
        said = {"correct": verdict.correct, "status": verdict.status, "other": verdict.other}
        self._append({"kind": "verdict", **asdict(key), "mode": mode, "judge": judge, **said})

    def get_likelihood(self, task: str, doc_id: int, choice: int) -> ScoreTuple | None:
        """The score of one continuation, or None where it is not finished."""
        return self._likelihoods.get((task, doc_id, choice))

    def add_likelihood(self, task: str, doc_id: int, choice: int, score: ScoreTuple) -> None:
        """Store the score of one continuation."""
        if (task, doc_id, choice) in self._likelihoods:
            return
        self._append(
            {
                "kind": "likelihood",
                "task": task,
                "doc_id": doc_id,
                "choice": choice,
                "log_prob": float(score.log_prob),
                "is_greedy": bool(score.is_greedy),
                "n_tokens": int(score.n_tokens),
            }
        )

    def names(self) -> list[Name]:
        """Every finished generation, in the order of the tables."""
        found = (name for name in self._places if self._find(*name) is not None)
        return sorted(
            found, key=lambda name: (name[0].task, name[1], name[0].doc_id, name[0].sample)
        )

    def prompts(self) -> dict[tuple[str, int], Prompt]:
        """Prompt of every (task, doc_id) with a finished generation."""
        return dict(self._prompts)

    def likelihoods(self) -> dict[tuple[str, int, int], ScoreTuple]:
        """Score of every finished (task, doc_id, choice)."""
        return dict(self._likelihoods)

    def close(self) -> None:
        """Flush to the disk and release the shards."""
        with self._writing:
            for shard in self._shards:
                shard.close()

    def _find(self, key: SampleKey, mode: str) -> tuple[_Place, Prompt] | None:
        """Where a generation stands, and its prompt; a damaged line may have held either."""
        place, prompt = self._places.get((key, mode)), self._prompts.get((key.task, key.doc_id))
        return None if place is None or prompt is None else (place, prompt)

    def _add_prompt(self, key: SampleKey, text: str, ids: np.ndarray) -> None:
        known = self._prompts.get((key.task, key.doc_id))
        if known is None:
            record = {"kind": "prompt", "task": key.task, "doc_id": key.doc_id, "prompt": text}
            self._append(record | {"prompt_ids": _encode_array(ids, np.int32)})
        elif known.text != text:
            raise UserError(
                f"question {key.doc_id} of {key.task} has another prompt than the samples already"
                f" in {self._folder.parent}; use --overwrite to start anew"
            )

    def _append(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, ensure_ascii=True, allow_nan=True)
        line = _seal(text.removesuffix("}").encode())
        with self._writing:
            self._note(record, _Place(0, self._own.append(line), len(line)))

    def _scan(self, index: int) -> int:
        """Index the lines of a shard not seen yet; the offset after its last whole line."""
        shard = self._shards[index]
        for offset, line in shard.new_lines():
            record = _unseal(line)
            if record is None:
                self.damaged += 1
            else:
                self._note(record, _Place(index, offset, len(line)))
        return shard.seen

    def _note(self, record: dict[str, Any], place: _Place) -> None:
        kind, task, doc_id = record["kind"], record["task"], record["doc_id"]
        if kind in ("generation", "verdict"):
            key, mode = SampleKey(task, doc_id, record["sample"]), record["mode"]
            if kind == "generation":
                self._places.setdefault((key, mode), place)
            else:
                verdict = Verdict(record["correct"], record["status"], record["other"])
                self._verdicts[key, mode, record["judge"]] = verdict
        elif kind == "prompt":
            ids = _decode_array(record["prompt_ids"], np.int32)
            self._prompts.setdefault((task, doc_id), Prompt(record["prompt"], ids))
        else:
            score = ScoreTuple(record["log_prob"], record["is_greedy"], record["n_tokens"])
            self._likelihoods.setdefault((task, doc_id, record["choice"]), score)


def count_generations(folder: Path) -> int:
    """Finished generations in a shards folder, which may be in use; 0 where there is none."""
    # A quote inside a text is escaped, so that the field is found nowhere else.
    wanted = b'"kind": "generation"'
    shards = [path.read_bytes() for path in folder.glob("rank-*.jsonl")]
    return sum(wanted in line for shard in shards for line in shard.splitlines())


def check_idle(folder: Path) -> None:
    """Make sure that no process is writing to these shards.

    Raises:
        UserError: one is.
    """
    _Shard(folder / _shard_name(0), writable=True).close()


def _shard_name(rank: int) -> str:
    return f"rank-{rank:04d}.jsonl"


class _Shard:
    """One append-only file, held open; who writes to it holds the lock beside it."""

    def __init__(self, path: Path, writable: bool) -> None:
        self.path = path
        self.seen = 0
        self._lock = _locked(path) if writable else None
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND if writable else os.O_RDONLY
        self._fd = os.open(path, flags, 0o644)

    def new_lines(self) -> Iterator[tuple[int, bytes]]:
        """(offset, line) of each whole line after the last one seen; a torn end is left out."""
        rest = b""
        read_to = self.seen
        while chunk := os.pread(self._fd, _READ_BYTES, read_to):
            read_to += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                offset = self.seen
                self.seen += len(line) + 1
                yield offset, line + b"\n"

    def cut(self, size: int) -> None:
        """Drop everything after `size` bytes."""
        os.ftruncate(self._fd, size)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def append(self, line: bytes) -> int:
        """Write one line, wholly or not at all; its offset."""
        start = self.seen
        try:
            written = 0
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            if self._fd >= 0:
                os.ftruncate(self._fd, start)
            raise
        self.seen = start + len(line)
        return start

    def close(self) -> None:
        if self._fd < 0:
            return
        if self._lock is not None:
            os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        if self._lock is not None:
            self._lock.release()


def _locked(path: Path) -> FileLock:
    """Keep a second run out of a shard, as long as this process lives or holds it."""
    # A thread may close what another opened. Processes that are started do not inherit the lock.
    lock = FileLock(path.with_suffix(".lock"), timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is writing to {path.parent.parent};"
            " wait for it, or give another --output-path"
        ) from None
    return lock


def _seal(body: bytes) -> bytes:
    """A line from a JSON object without its closing brace; last comes the CRC-32 of the rest."""
    return body + _SEAL + b'%08x"}\n' % zlib.crc32(body)


def _unseal(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None where it is damaged."""
    body, _, _ = line.rpartition(_SEAL)
    return json.loads(line) if line == _seal(body) else None


def _encode_generation(generation: Generation, keep_mixture: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": "generation",
        **asdict(generation.key),
        "mode": generation.mode,
        "seconds": float(generation.seconds),
        "top": int(generation.top_ids.shape[-1]) if keep_mixture else 0,
    }
    record |= {name: getattr(generation, name) for name in _TEXTS}
    for names, dtype in ((_INT_ARRAYS, np.int32), (_FLOAT_ARRAYS, np.float32)):
        for name in names:
            if keep_mixture or not name.startswith("top_"):
                record[name] = _encode_array(getattr(generation, name), dtype)
    return record


def _decode_generation(
    record: dict[str, Any], key: SampleKey, mode: str, prompt_ids: np.ndarray
) -> Generation:
    arrays = {n: _decode_array(record.get(n, ""), np.int32) for n in _INT_ARRAYS}
    arrays |= {n: _decode_array(record.get(n, ""), np.float32) for n in _FLOAT_ARRAYS}
    shape = (len(arrays["shadow_ids"]), record["top"])
    arrays["top_ids"] = arrays["top_ids"].reshape(shape)
    arrays["top_probs"] = arrays["top_probs"].reshape(shape)
    fields: dict[str, Any] = {name: record[name] for name in _TEXTS} | arrays
    fields["stop_reason"] = StopReason(fields["stop_reason"])
    fields["answer_stop"] = AnswerStop(fields["answer_stop"])
    return Generation(
        key=key,
        mode=mode,
        prompt_ids=prompt_ids,
        inputs=None,
        seconds=record["seconds"],
        **fields,
    )


def _encode_array(values: np.ndarray, dtype: type) -> str:
    """Base64 of the little-endian bytes in the given dtype."""
    little = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def _decode_array(text: str, dtype: type) -> np.ndarray:
    """The array back; ids as int64, as the decoder gives them."""
    values = np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<"))
    return values.astype(np.int64 if dtype is np.int32 else dtype)
