"""`softeval diagnose`: how far a run's checkpoint went from its base model, on named prefixes.

Writes kl.parquet into the run directory and a "diagnose" block into its run.json. Prefix sets:
`own`, the CoTs of the run itself; `base`, CoTs that the base model draws under hard_sample on the
same questions; `gold`, the data set's reference solutions. Soft and fuzzy CoTs are made again from
their keyed random numbers, and held against the recorded shadow tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from softeval.decoding.decoder import Decoder, Question
from softeval.decoding.kl import ModelComparison, Prefix
from softeval.errors import UserError
from softeval.model.language_model import LanguageModel, load_model
from softeval.model.stopping import Limits
from softeval.model.weights import weights_hash
from softeval.modes import Mode, get_mode, load_mode_file, mode_from_record
from softeval.protocol import recorded_protocol
from softeval.records import PREFIX_SETS, SampleKey
from softeval.replays.kl_file import Measured, check_kept, check_not_fewer, kept_sets, write_kl
from softeval.runs import rundir
from softeval.runs.parquet_files import sequences
from softeval.runs.record import called_command
from softeval.runs.request import absolute
from softeval.runs.tables import read_table, table_path
from softeval.tasks.catalogue import find_benchmarks
from softeval.tasks.data import gold_solutions

FLOOR_PREFIXES = 8
"""At most so many prefixes are in the one batch against which the noise floor is taken."""

Tell = Callable[[str, int, int], None]
"""Told what is replayed, how many are done, how many there are."""


@dataclass
class Diagnosis:
    """What a diagnosis found.

    Attributes:
        prefixes: number of prefixes of each set.
        regenerated: soft and fuzzy CoTs that were made again.
        differing: those whose shadow tokens were not the recorded ones.
        floor: KL(base‖base) at another batch size, mean nats a token.
        missing_gold: tasks without reference solutions.
    """

    prefixes: dict[str, int] = field(default_factory=dict)
    regenerated: int = 0
    differing: int = 0
    floor: float = 0.0
    missing_gold: list[str] = field(default_factory=list)


def diagnose(
    run: str | Path,
    base: str | Path,
    *,
    model: str | Path | None = None,
    sets: Sequence[str] = PREFIX_SETS,
    samples: int = 1,
    limit: int | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    self_check: bool = True,
    overwrite: bool = False,
    tell: Tell = lambda what, done, total: None,
) -> Diagnosis:
    """Measure KL to the base model along a run's prefixes.

    Args:
        run: run directory.
        base: checkpoint directory or hub id of the base model.
        model: where the run's checkpoint is; None takes where it was.
        sets: which prefixes, of "own", "base" and "gold".
        samples: how many samples of each question and mode.
        limit: only the first questions of each task.
        data_dir: where reference solutions lie, if not on the hub; None takes the run's.
        device: of both models.
        dtype: of both models; None takes the run's.
        self_check: try at load that both models are run rightly.
        overwrite: drop what an earlier diagnosis measured and this one does not.
        tell: called as prefixes are replayed.

    Raises:
        UserError: no run, another checkpoint than the run's, another tokenizer, an unknown set, or
            an earlier diagnosis that would lose prefixes.
    """
    unknown = set(sets) - set(PREFIX_SETS)
    if unknown or not sets:
        raise UserError(f"--sets {','.join(sets)}: choose from own, base, gold")
    if samples < 1 or (limit is not None and limit < 1):
        raise UserError("--samples and --limit count from 1; give a positive number")
    folder, record = Path(run), rundir.read_record(Path(run))
    rundir.refuse_shard(folder, record)
    if not overwrite:
        check_not_fewer(folder, sets, samples, limit)
    if record["config"].get("mode_file"):
        load_mode_file(record["config"]["mode_file"])
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype or record["model"]["dtype"],
        "logits_dtype": record["model"]["logits_dtype"],
        "self_check": self_check,
    }
    checkpoint = run_checkpoint(folder, record, model, options)
    comparison = ModelComparison(checkpoint, stepping_as(record, load_model(base, **options)))
    data_dir = data_dir or record["config"].get("data_dir")
    session = _Session(folder, record, comparison, data_dir)
    if not overwrite:
        check_kept(folder, record, session.block(sets, samples))
    questions = run_questions(folder, checkpoint, limit)
    found: list[Measured] = []
    if "own" in sets:
        found += session.own(questions, samples, tell)
    base_prefixes = session.base_prefixes(questions, samples) if "base" in sets else []
    found += session.measure("base", base_prefixes, len(base_prefixes), tell)
    gold_prefixes = session.gold_prefixes(questions) if "gold" in sets else []
    found += session.measure("gold", gold_prefixes, len(gold_prefixes), tell)
    if not found:
        raise UserError(
            f"{run} has nothing to replay for --sets {','.join(sets)}; choose others of own, base, gold"
        )
    result = session.result
    result.prefixes = {name: sum(m.prefix_set == name for m in found) for name in sets}
    result.floor = session.noise_floor(base_prefixes or session.base_prefixes(questions[:4], 1))
    block = session.block(sets, samples)
    keep = kept_sets(record, block)
    write_kl(folder, found, keep)
    block["sets"] = [*keep, *(name for name in sets if result.prefixes[name])]
    rundir.write_record(folder, record | {"diagnose": block})
    return result


def run_checkpoint(
    folder: Path, record: dict[str, Any], moved_to: str | Path | None, options: dict[str, Any]
) -> LanguageModel:
    """The run's checkpoint in the precision asked for.

    Raises:
        UserError: it has other weights than the run's.
    """
    path = str(moved_to or record["model"]["path"])
    try:
        own = load_model(path, **options | {"dtype": record["model"]["dtype"]})
    except UserError as error:
        remedy = "; say where it is now with --model" if moved_to is None else ""
        raise UserError(f"{error}{remedy}") from None
    if weights_hash(own.model) != record["model"]["weights_hash"]:
        raise UserError(
            f"{path} is not the checkpoint of {folder} (other weights);"
            " restore it, say where it is with --model, or evaluate it anew"
        )
    lm = own if options["dtype"] == record["model"]["dtype"] else load_model(path, **options)
    return stepping_as(record, lm)


def stepping_as(record: Mapping[str, Any], lm: LanguageModel) -> LanguageModel:
    """The model, its steps on a GPU run as the run's were: those of some cannot be captured."""
    asked, on_gpu = record["config"].get, lm.device.type == "cuda"
    lm.decode_by(graphs=asked("graphs", True), fused=asked("compile", False) and on_gpu)
    return lm


def run_questions(folder: Path, checkpoint: LanguageModel, limit: int | None) -> list[Question]:
    """The run's questions without samples, of each task the first `limit`."""
    rows = read_table(folder, "prompts", ["task", "doc_id", "prompt"]).to_pylist()
    tasks: dict[str, list[Question]] = {}
    for row in rows:
        ids = tuple(checkpoint.vocabulary.encode(row["prompt"]))
        question = Question(row["task"], row["doc_id"], ids, ())
        tasks.setdefault(row["task"], []).append(question)
    return [question for found in tasks.values() for question in found[:limit]]


def run_limits(record: Mapping[str, Any]) -> Limits:
    """What ended the run's generations."""
    config, protocol = record["config"], recorded_protocol(record)
    return Limits(config["max_cot_tokens"], config["max_answer_tokens"], protocol)


class _Task(NamedTuple):
    """A prefix to replay, with the mode that made it; None for a text."""

    key: SampleKey
    mode: Mode | None
    prefix: Prefix


@dataclass
class _Session:
    """The run, its checkpoint and the base model."""

    folder: Path
    record: dict[str, Any]
    comparison: ModelComparison
    data_dir: str | None
    result: Diagnosis = field(default_factory=Diagnosis)
    floor_batch: int = 0

    def decoder(self, lm: LanguageModel, mode: Mode, **how: Any) -> Decoder:
        seed = rundir.samples_seed(self.folder, self.record)
        return Decoder(lm, mode, run_limits(self.record), seed=seed, **how)

    def block(self, sets: Sequence[str], samples: int) -> dict[str, Any]:
        """What run.json says of this diagnosis."""
        base, result = self.comparison.base.lm, self.result
        return {
            "command": called_command(),
            "base": absolute(base.path),
            "base_weights_hash": self.base_hash,
            "dtype": str(base.dtype).removeprefix("torch."),
            "self_check": base.self_check,
            "sets": list(sets),
            "samples": samples,
            "noise_floor": {"mean": result.floor, "batch_size": self.floor_batch},
            "regenerated": result.regenerated,
            "differing": result.differing,
            "missing_gold": result.missing_gold,
        }

    @cached_property
    def base_hash(self) -> str:
        """Of the base model's weights."""
        return weights_hash(self.comparison.base.lm.model)

    def own(self, questions: list[Question], samples: int, tell: Tell) -> list[Measured]:
        """KL along the run's own CoTs, mode by mode."""
        found: list[Measured] = []
        asked = {(q.task, q.doc_id) for q in questions}
        for entry in self.record["modes"]:
            mode = mode_from_record(entry)
            every = recorded_shadows(self.folder, mode.name, samples)
            recorded = {k: ids for k, ids in every.items() if (k.task, k.doc_id) in asked}
            wanted = [q for q in questions if SampleKey(q.task, q.doc_id, 0) in recorded]
            prefixes = (
                self._hard_prefixes(wanted, mode, recorded)
                if mode.feeds_tokens
                else self._regenerated(wanted, mode, recorded)
            )
            found += self.measure("own", prefixes, len(recorded), tell)
        return found

    def base_prefixes(self, questions: list[Question], samples: int) -> list[_Task]:
        """CoTs of the base model under hard_sample; the same for every checkpoint."""
        mode = get_mode("hard_sample")
        decoder = self.decoder(self.comparison.base.lm, mode)
        asked = [replace(q, samples=tuple(range(samples))) for q in questions]
        made = [_Task(g.key, mode, Prefix(g.prompt_ids, g.shadow_ids)) for g in decoder.run(asked)]
        return sorted(made, key=lambda task: astuple(task.key))

    def gold_prefixes(self, questions: list[Question]) -> list[_Task]:
        """Reference solutions as CoTs, cut at the cap."""
        found: list[_Task] = []
        config = self.record["config"]
        definition = (config.get(name) for name in ("include_path", "question", "answer"))
        splits = {entry["task"]: entry["split"] for entry in self.record["datasets"]}
        asked = {question.task for question in questions}
        for benchmark in find_benchmarks(config["tasks"], *definition):
            task = benchmark.task
            if task not in asked:
                continue
            solutions = gold_solutions(benchmark, self.data_dir, splits[task])
            if solutions is None:
                self.result.missing_gold.append(task)
                continue
            for question in questions:
                if question.task == task:
                    ids = self._solution_ids(solutions[question.doc_id])
                    key = SampleKey(task, question.doc_id, 0)
                    found.append(_Task(key, None, Prefix(np.array(question.prompt_ids), ids)))
        return found

    def measure(
        self, prefix_set: str, tasks: Iterable[_Task], total: int, tell: Tell
    ) -> list[Measured]:
        """KL along each prefix, of which no more than one is held: a step may record much."""
        found = []
        for index, task in enumerate(tasks):
            mode = task.mode or get_mode("hard_greedy")
            kl = self.comparison.kl(task.prefix, mode)
            if not (np.isfinite(kl.forward).all() and np.isfinite(kl.reverse).all()):
                key = task.key
                raise UserError(
                    f"{key.task} question {key.doc_id}: KL on the {prefix_set} prefix is not finite;"
                    " try --dtype float32, or check both checkpoints"
                )
            name = "" if task.mode is None else task.mode.name
            found.append(Measured(prefix_set, name, task.key, kl))
            tell(f"{prefix_set} {name}".strip(), index + 1, total)
        return found

    def noise_floor(self, tasks: list[_Task]) -> float:
        """Mean over prefixes of KL(base‖base) a token, alone against in a batch."""
        chosen = [task.prefix for task in tasks[:FLOOR_PREFIXES]]
        # A single prefix is held against a batch of two of itself.
        chosen = chosen * 2 if len(chosen) == 1 else chosen
        self.floor_batch = len(chosen)
        return float(np.mean([kl_T.mean() for kl_T in self.comparison.noise_floor(chosen)]))

    def _hard_prefixes(
        self, questions: list[Question], mode: Mode, recorded: dict[SampleKey, np.ndarray]
    ) -> Iterator[_Task]:
        prompts = {(q.task, q.doc_id): np.array(q.prompt_ids) for q in questions}
        for key, ids in recorded.items():
            yield _Task(key, mode, Prefix(prompts[key.task, key.doc_id], ids))

    def _regenerated(
        self, questions: list[Question], mode: Mode, recorded: dict[SampleKey, np.ndarray]
    ) -> Iterator[_Task]:
        """The same samples once more, this time with what was fed."""
        decoder = self.decoder(self.comparison.checkpoint.lm, mode, keep_inputs=True)
        samples: dict[tuple[str, int], tuple[int, ...]] = {}
        for key in recorded:
            place = (key.task, key.doc_id)
            samples[place] = (*samples.get(place, ()), key.sample)
        asked = [replace(q, samples=samples[q.task, q.doc_id]) for q in questions]
        for made in decoder.run(asked):
            self.result.regenerated += 1
            self.result.differing += not np.array_equal(made.shadow_ids, recorded[made.key])
            prefix = Prefix(made.prompt_ids, made.shadow_ids, made.inputs, made.record)
            yield _Task(made.key, mode, prefix)

    def _solution_ids(self, solution: str) -> np.ndarray:
        tokenizer = self.comparison.checkpoint.lm.tokenizer
        ids = tokenizer.encode(f" {solution.strip()}", add_special_tokens=False)
        return np.array(ids[: run_limits(self.record).max_cot_tokens], dtype=np.int64)


def recorded_shadows(folder: Path, mode: str, samples: int) -> dict[SampleKey, np.ndarray]:
    """Shadow tokens of the first samples of each question in a mode; without empty CoTs."""
    import pyarrow.compute as pc

    keys = ("task", "doc_id", "sample", "mode")
    wanted = (pc.field("mode") == mode) & (pc.field("sample") < samples)
    return {
        SampleKey(row["task"], row["doc_id"], row["sample"]): np.array(row["shadow_id"], np.int64)
        for table in sequences(table_path(folder, "positions"), keys, ["shadow_id"])
        for row in table.filter(wanted).to_pylist()
    }
