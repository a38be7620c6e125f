"""`softeval attribute`: is a run's chain of thought used, and what of it?

Replays the CoTs of a run with one thing changed (`softeval.decoding.replay.CHANGES`), decodes the
answer greedily again and judges it by the run's rules. What was fed is had by decoding the samples
once more from their keyed random numbers; they are held against the recorded texts. Beside the
changes stand the controls: hard CoTs decoded in the place of a mode's own
(`softeval.modes.hard_controls`). Writes attribution.parquet into the run directory and an
"attribution" block, an entry a mode, into its run.json. The same call gives the same file; modes that
are not replayed keep what they have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softeval.decoding.decoder import Decoder, Question
from softeval.decoding.next_token import next_tokens
from softeval.decoding.replay import CHANGES, Surroundings
from softeval.errors import UserError
from softeval.model.language_model import LanguageModel
from softeval.modes import (
    Mode,
    hard_controls,
    load_mode_file,
    mode_from_record,
    recorded_modes,
)
from softeval.protocol import Protocol, recorded_protocol
from softeval.records import CONTROLS, Generation, SampleKey, attribution_schema
from softeval.replays.diagnose import run_checkpoint, run_limits, run_questions
from softeval.runs import rundir
from softeval.runs.parquet_files import CheckedWriter, open_parquet, read_parquet
from softeval.runs.rescore import score_kinds
from softeval.runs.tables import table_path
from softeval.scoring.judge import Item, Rules, Scorer, rules_of

NAME = "attribution.parquet"
REFERENCE = "unchanged"
KEYS = ("task", "mode", "intervention", "doc_id", "sample")
RECORDED = ("task", "doc_id", "sample", "cot_text", "answer_text", "answer", "target", "correct",
            "target_error")  # fmt: skip

Row = dict[str, Any]
Tell = Callable[[str, int, int], None]
"""Told which mode is replayed, how many changes are done, how many there are."""


def attribute(
    run: str | Path,
    *,
    model: str | Path | None = None,
    modes: Sequence[str] | None = None,
    samples: int = 1,
    limit: int | None = None,
    steps: int = 4,
    device: str = "auto",
    overwrite: bool = False,
    tell: Tell = lambda what, done, total: None,
) -> dict[str, dict[str, int]]:
    """Decode the answers of changed CoTs.

    Args:
        run: run directory.
        model: where the run's checkpoint is; None takes where it was.
        modes: which of the run's modes; None takes all.
        samples: how many samples of each question and mode.
        limit: only the first questions of each task.
        steps: how many steps of each CoT are taken again with another vector, to see whether the next
            token is the same.
        device: where to compute; elsewhere than the run did, CoTs may come out otherwise.
        overwrite: let fewer CoTs replace more, and a damaged table go.
        tell: called as answers are decoded.

    Returns:
        Of each mode the CoTs replayed, those `otherwise` than recorded, which are measured as they
        are now, and those whose unchanged replay gave another answer text.

    Raises:
        UserError: no run, another checkpoint than the run's, a mode it does not have, or an earlier
            table that would lose rows.
    """
    if samples < 1 or (limit is not None and limit < 1):
        raise UserError("--samples and --limit count from 1; give a positive number")
    if steps < 0:
        raise UserError("--steps is a number of steps; 0 tries none")
    folder, record = Path(run), rundir.read_record(Path(run))
    rundir.refuse_shard(folder, record)
    rundir.refuse_unjudged(folder, record)
    if record["config"].get("mode_file"):
        load_mode_file(record["config"]["mode_file"])
    chosen = _chosen_modes(folder, record, modes)
    options = {name: record["model"][name] for name in ("dtype", "logits_dtype")}
    lm = run_checkpoint(folder, record, model, options | {"device": device})
    questions = run_questions(folder, lm, limit)
    if not overwrite:
        planned = {_key(question, sample) for question in questions for sample in range(samples)}
        _refuse_loss(folder, [mode.name for mode in chosen], planned)
    replay = _Replay(folder, record, lm, questions, samples, steps, tell)
    found = {mode.name: replay.rows(mode) for mode in chosen}
    rows = [row for of_mode in found.values() for row in of_mode]
    if not rows:
        raise UserError(f"{folder} has no CoT to replay; choose other --modes, or evaluate more")
    _judge(record, rows)
    _write(folder, rows, list(found), overwrite)
    checks = {name: _check(of_mode) for name, of_mode in found.items()}
    asked = {"samples": samples, "limit": limit, "steps": steps, "scorer": record.get("scorer")}
    entries = {name: asked | check for name, check in checks.items()}
    block = (record.get("attribution") or {}) | entries
    rundir.write_record(folder, record | {"attribution": block})
    return checks


def _chosen_modes(folder: Path, record: Row, names: Sequence[str] | None) -> list[Mode]:
    known = recorded_modes(record)
    lacking = [name for name in names or () if name not in known]
    if lacking or names == []:
        raise UserError(
            f"--modes {','.join(names or ())}: {folder} has {', '.join(known)}; choose of these"
        )
    return [mode_from_record(known[name]) for name in dict.fromkeys(names or known)]


@dataclass(frozen=True)
class _Replay:
    """The run and its checkpoint."""

    folder: Path
    record: Row
    lm: LanguageModel
    questions: list[Question]
    samples: int
    steps: int
    tell: Tell

    @property
    def seed(self) -> int:
        return rundir.samples_seed(self.folder, self.record)

    @property
    def protocol(self) -> Protocol:
        return recorded_protocol(self.record)

    def rows(self, mode: Mode) -> list[Row]:
        """One row a change or control, and CoT."""
        recorded = _recorded(self.folder, mode.name, self.samples)
        asked = [
            replace(q, samples=tuple(s for s in range(self.samples) if _key(q, s) in recorded))
            for q in self.questions
        ]
        cots = self._cots(mode, asked, recorded)
        controls = zip(CONTROLS, hard_controls(mode), strict=True)
        thought = {name: control for name, control in controls if control is not None}
        total = len(CHANGES) + len(thought)
        rows: list[Row] = []
        for index, (name, change) in enumerate(CHANGES.items()):
            changed = (change(cot, self._around(mode, cots, cot)) for cot in cots.values())
            given = {cot.key: cot for cot in changed if cot is not None}
            questions = [
                replace(q, samples=tuple(s for s in q.samples if _key(q, s) in given))
                for q in asked
            ]
            found = self._decoder(mode, given=given).run(questions)
            rows += [_row(name, made, recorded[made.key]) for made in found]
            self.tell(mode.name, index + 1, total)
        for index, (name, control) in enumerate(thought.items()):
            found = self._decoder(control).run(asked)
            rows += [_row(name, made, recorded[made.key]) for made in found]
            self.tell(mode.name, len(CHANGES) + index + 1, total)
        self._try_steps(mode, cots, rows)
        return rows

    def _try_steps(self, mode: Mode, cots: dict[SampleKey, Generation], rows: list[Row]) -> None:
        """Set what single steps tell, in the rows of unchanged CoTs."""
        for row in (row for row in rows if row["intervention"] == REFERENCE):
            cot = cots[SampleKey(row["task"], row["doc_id"], row["sample"])]
            found = next_tokens(self.lm, mode, cot, self.seed, self.steps, self.protocol)
            row.update(steps=found.steps, agreeing=found.agreeing, step_kl=found.kl)

    def _decoder(self, mode: Mode, **how: Any) -> Decoder:
        return Decoder(self.lm, mode, run_limits(self.record), seed=self.seed, **how)

    def _cots(
        self, mode: Mode, asked: list[Question], recorded: dict[SampleKey, Row]
    ) -> dict[SampleKey, Generation]:
        """The recorded samples once more, with what was fed.

        In a batch of other samples, or on another device, a near tie may fall the other way; what such
        a CoT is measured against is then the answer that it has now, which is not judged yet.
        """
        found = {}
        for made in self._decoder(mode, keep_inputs=True).run(asked):
            was = recorded[made.key]
            if made.cot_text != was["cot_text"]:
                was |= {"answer": made.answer, "answer_text": made.answer_text, "correct": None}
            assert made.inputs is not None
            found[made.key] = replace(made, inputs=made.inputs.cpu())  # many wait for their turn
        return found

    def _around(
        self, mode: Mode, cots: dict[SampleKey, Generation], cot: Generation
    ) -> Surroundings:
        keys = (SampleKey(q.task, q.doc_id, cot.key.sample) for q in self.questions)
        others = [cots[key] for key in keys if key.task == cot.key.task and key in cots]
        return Surroundings(self.lm, mode, self.seed, others, self.protocol)


def _judge(record: Row, rows: list[Row]) -> None:
    """Set the verdicts of answers that are not the recorded ones."""
    kinds = score_kinds(record)
    new = [row for row in rows if row["changed"] or row["otherwise"]]
    items = [Item(r["answer"], r["target"], kinds[r["task"]], r["target_error"]) for r in new]
    with Scorer(rules=rules_of(record) or Rules.SOFTEVAL) as scorer:
        for row, verdict in zip(new, scorer.score_many(items), strict=True):
            row["correct"] = verdict.correct


def _key(question: Question, sample: int) -> SampleKey:
    return SampleKey(question.task, question.doc_id, sample)


def _recorded(folder: Path, mode: str, samples: int) -> dict[SampleKey, Row]:
    """The first samples of each question in a mode."""
    path = table_path(folder, "samples")
    with open_parquet(path) as parquet:
        columns = [name for name in RECORDED if name in parquet.schema_arrow.names]
    rows = read_parquet(path, columns, [("mode", "=", mode), ("sample", "<", samples)])
    return {SampleKey(r["task"], r["doc_id"], r["sample"]): r for r in rows.to_pylist()}


def _row(change: str, made: Generation, recorded: Row) -> Row:
    """With what judging it takes, and the recorded verdict until it is judged."""
    return {
        "task": made.key.task,
        "doc_id": made.key.doc_id,
        "mode": made.mode,
        "sample": made.key.sample,
        "intervention": change,
        "stop_reason": str(made.stop_reason),
        "answer_text": made.answer_text,
        "answer": made.answer,
        "changed": made.answer != recorded["answer"],
        "correct": recorded["correct"],
        "otherwise": recorded["correct"] is None,
        "target": recorded["target"],
        "target_error": recorded.get("target_error"),
        "differing": made.answer_text != recorded["answer_text"],
    }


def _check(rows: list[Row]) -> dict[str, int]:
    """CoTs replayed, those not as recorded, and unchanged ones that gave another answer text."""
    same = [row for row in rows if row["intervention"] == REFERENCE]
    counts = {name: sum(row[name] for row in same) for name in ("otherwise", "differing")}
    return {"replayed": len(same), **counts}


def _refuse_loss(folder: Path, modes: Sequence[str], planned: Collection[SampleKey]) -> None:
    """Refuse, before any long work, to replace CoTs that would not be replayed again.

    Raises:
        UserError: saying how many answers would be lost.
    """
    there = [row for row in _written(folder, overwrite=False) if row["mode"] in modes]
    lost = [r for r in there if SampleKey(r["task"], r["doc_id"], r["sample"]) not in planned]
    if lost:
        raise UserError(
            f"{folder / NAME} holds {len(lost)} answers that this call would drop; raise --limit and"
            " --samples, or give --overwrite"
        )


def _written(folder: Path, overwrite: bool) -> list[Row]:
    """What an earlier call wrote; nothing where that cannot be read and may go.

    Raises:
        UserError: a damaged table that may not be overwritten.
    """
    path = folder / NAME
    if not path.is_file():
        return []
    try:
        return read_parquet(path, attribution_schema().names).to_pylist()
    except UserError:
        if overwrite:
            return []
        raise


def _write(folder: Path, rows: list[Row], modes: list[str], overwrite: bool) -> None:
    """Replace the rows of these modes; those of others stay."""
    import pyarrow as pa

    schema = attribution_schema()
    kept = [row for row in _written(folder, overwrite) if row["mode"] not in modes]
    columns = {name: [row.get(name) for row in (*kept, *rows)] for name in schema.names}
    table = pa.table(columns, schema).sort_by([(name, "ascending") for name in KEYS])
    with CheckedWriter(folder / NAME, schema) as writer:
        writer.write(table)
