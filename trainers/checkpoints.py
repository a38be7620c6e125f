"""What a training run leaves on disk: states to continue from, checkpoints, a batch that went wrong.

States are directories `step-000120`, each whole or not at all; the newest whole one continues the
run. Weights and optimizer tensors are written by torch.distributed.checkpoint, each process its part,
so that any number of processes can read them, sharded or not; the rest is JSON. The noise of the
rollouts needs no state: it is keyed (`softeval.decoding.randomness`). What a power cut can still do to a
renamed directory is found out by its manifest: size and CRC-32 of every file.

A checkpoint is an ordinary transformers one with a model card; nothing of ours is needed to load it.
Beside the weights lie `softeval_training.json`, which `softeval run` copies into its record, and a
README.md for people, and of a run with adapters these in `adapter/`.

Knows nothing of how updates are made.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from softeval.errors import UserError
from softeval.files import beside, replacing_directory
from softeval.model.language_model import LanguageModel
from softeval.processes import ALONE, Processes
from softeval.runs.rundir import TRAINING_FILE
from softeval.tasks.catalogue import is_bundled, task_catalogue
from softeval.trainers.config import CURRICULUM

if TYPE_CHECKING:
    from softeval.trainers.setup import Adapters

PROGRESS = "progress.json"
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)")


@dataclass
class TrainerState:
    """Where a run stands.

    Attributes:
        step: updates done.
        cursor: place in the data order.
        embedding_rms: root mean square of E's entries when training began; σ is made of it.
        best_step: step of the best validation so far, -1 before the first.
        best_success: its share of accepted answers.
        micro_batch: sequences of a training pass, where memory decided; it must stay.
        curve: every validation, as {"step", "success", ...}.
    """

    step: int = 0
    cursor: int = 0
    embedding_rms: float = 0.0
    best_step: int = -1
    best_success: float = -1.0
    micro_batch: int | None = None
    curve: list[dict[str, float]] = field(default_factory=list)


def save_state(
    folder: Path,
    state: TrainerState,
    tensors: dict[str, Tensor],
    keep: int,
    processes: Processes = ALONE,
) -> None:
    """Write the state after `state.step` updates and drop the oldest beyond `keep`.

    Every process calls this, on one file system.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    place = folder / f"step-{state.step:06d}"
    main = processes.is_main
    with replacing_directory(place) if main else nullcontext(beside(place)) as partial:
        processes.wait()
        _as_itself(save, tensors, checkpoint_id=partial, no_dist=processes.size == 1)
        if main:
            record = {"progress": asdict(state), "random": _random_states()}
            (partial / PROGRESS).write_text(json.dumps(record) + "\n", encoding="utf-8")
        processes.wait()
        mine = processes.share(sorted(path.name for path in partial.iterdir()))
        found = processes.gathered({name: _fingerprint(partial / name) for name in mine})
        if main:
            manifest = {name: entry for part in found for name, entry in part.items()}
            text = json.dumps(manifest, indent=2) + "\n"
            (partial / MANIFEST).write_text(text, encoding="utf-8")
    if main:
        for old in saved_states(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    processes.wait()


def _as_itself(work: Callable[..., object], *args: Any, **options: Any) -> None:
    """Do the work; an error of it comes as it was, not wrapped as torch's checkpoints wrap it."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            work(*args, **options)
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


@dataclass(frozen=True)
class SavedState:
    """A state that can be read back.

    Attributes:
        place: its directory.
        state: where the run stood.
        torn: states that were newer but not whole.
        random: of the random generators.
    """

    place: Path
    state: TrainerState
    torn: tuple[str, ...]
    random: dict[str, Any]

    @property
    def names(self) -> set[str]:
        """Of the tensors."""
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        return set(FileSystemReader(self.place).read_metadata().state_dict_metadata)

    def fill(self, tensors: dict[str, Tensor], processes: Processes = ALONE) -> None:
        """Set tensors, shards or whole ones, to what was saved under their names."""
        from torch.distributed.checkpoint.state_dict_loader import load

        _as_itself(load, tensors, checkpoint_id=self.place, no_dist=processes.size == 1)

    def restore_random(self) -> None:
        """Set every random generator back."""
        version, numbers, gauss = self.random["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = self.random["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(torch.tensor(self.random["torch"], dtype=torch.uint8))
        if torch.cuda.is_available():
            saved = self.random["cuda"][: torch.cuda.device_count()]
            for device, state in enumerate(saved):
                torch.cuda.set_rng_state(torch.tensor(state, dtype=torch.uint8), device)


def load_state(folder: Path) -> SavedState | None:
    """The newest whole state, None where nothing was saved yet.

    Raises:
        UserError: states are there, but every one is torn.
    """
    torn: list[str] = []
    for place in reversed(saved_states(folder)):
        if _is_whole(place):
            record = json.loads((place / PROGRESS).read_text(encoding="utf-8"))
            return SavedState(
                place, TrainerState(**record["progress"]), tuple(torn), record["random"]
            )
        torn.append(place.name)
    if torn:
        raise UserError(
            f"every state in {folder} is torn ({', '.join(torn)}); start anew in another --output-path"
        )
    return None


def _is_whole(place: Path) -> bool:
    """Whether every file that the manifest lists is there as it was written."""
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all(
            _fingerprint(place / name) == entry for name, entry in manifest.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def _fingerprint(path: Path) -> dict[str, int]:
    checksum, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return {"bytes": size, "crc32": checksum}


def saved_states(folder: Path) -> list[Path]:
    """State directories, oldest first, torn ones too."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def seed_everything(seed: int) -> None:
    """Seed every random generator of which a state is kept."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _random_states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in cuda],
    }


ADAPTER = "adapter"


@dataclass(frozen=True)
class TrainingRecord:
    """What is said of a trained checkpoint.

    Attributes:
        method: hard, soft, fuzzy, or the name of another mode.
        dataset: name of the training set.
        train_seed: seed of the run.
        base: what was trained.
        mode: the CoT mode of training with every option, and σ where it has noise.
        logits_dtype: precision of the logits in training.
        command: what was typed.
        config: the whole configuration.
        data: where the questions came from and what was dropped.
        self_check: what it found at load.
        versions: of the packages.
        step: updates done.
        validation: greedy validation success at every time it was taken.
        selected: "best" or "last".
        best_step: step of the best validation so far.
    """

    method: str
    dataset: str
    train_seed: int
    base: str
    mode: dict[str, Any]
    logits_dtype: str
    command: str
    config: dict[str, Any]
    data: dict[str, Any]
    self_check: str
    versions: dict[str, str]
    step: int = 0
    validation: Sequence[dict[str, float]] = ()
    selected: str = ""
    best_step: int = -1


def export_checkpoint(
    place: Path,
    lm: LanguageModel,
    record: TrainingRecord,
    adapters: Adapters | None = None,
) -> None:
    """Write a checkpoint directory, replacing one that stands there.

    Args:
        place: the directory.
        lm: model and tokenizer.
        record: what to say of it.
        adapters: merged into the weights, and written by themselves into `adapter/`.
    """
    with replacing_directory(place) as partial:
        with adapters.merged() if adapters else nullcontext() as state:
            lm.model.save_pretrained(str(partial), state_dict=state)
        if adapters:
            adapters.save(partial / ADAPTER, record.base)
        lm.tokenizer.save_pretrained(str(partial))
        text = json.dumps(asdict(record), indent=2, ensure_ascii=False)
        (partial / TRAINING_FILE).write_text(text + "\n", encoding="utf-8")
        card = model_card(record, _license(lm))
        (partial / "README.md").write_text(card, encoding="utf-8")


def exported_step(place: Path) -> int | None:
    """Updates done by the checkpoint there; None without a readable one."""
    try:
        return int(json.loads((place / TRAINING_FILE).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_card(record: TrainingRecord, license: str | None = None) -> str:
    """README.md of a checkpoint.

    Args:
        record: what to say of it.
        license: that of the base, where it is known.
    """
    named = ("name", "family", "is_greedy", "feeds_tokens")
    options = ", ".join(f"{k} = {v}" for k, v in record.mode.items() if k not in named)
    curve = "\n".join(
        f"| {int(point['step'])} | {100 * point['success']:.1f} % |" for point in record.validation
    )
    return f"""---
{_metadata(record, license)}---

# {record.method} chain-of-thought training on {record.dataset}

{_how(record)}

- method: {record.method}, CoT mode {record.mode["name"]} ({options})
- data: {record.dataset}, seed {record.train_seed}
- step: {record.step} ({record.selected})
- logits: {record.logits_dtype}
- weights: {_weights(record)}

Greedy validation success on held-out training questions up to this step:

| step | success |
|---|---|
{curve}

Command:

    {record.command}

Everything else is in `{TRAINING_FILE}`.
"""


def _metadata(record: TrainingRecord, license: str | None) -> str:
    """The card's YAML, as the Hugging Face hub reads it; nothing that would only mean a path here."""
    import yaml

    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["softeval", _KIND[record.method == CURRICULUM], "chain-of-thought"],
    }
    if record.base.count("/") == 1 and not Path(record.base).expanduser().exists():
        found["base_model"] = record.base
    if record.dataset in task_catalogue() and not is_bundled(record.dataset):
        found["datasets"] = [task_catalogue()[record.dataset].content["dataset_path"]]
    if license is not None:
        found["license"] = license
    return yaml.safe_dump(found, sort_keys=False)


_KIND = ("reinforcement-learning", "latent-reasoning")


def _how(record: TrainingRecord) -> str:
    """What it was trained by, and how it is evaluated."""
    if record.method == CURRICULUM:
        return f"""\
Trained from `{record.base}` with `softeval train`, the curriculum of COCONUT (arXiv 2412.06769): the first
steps of worked solutions are replaced by thoughts, more of them from stage to stage. An ordinary
transformers checkpoint; `softeval run --model DIR --modes coconut --mode-args
latents={record.mode["latents"]}` evaluates it as it was trained in the last stage."""
    return f"""\
Trained from `{record.base}` with `softeval train`, the method of *Soft Tokens, Hard Truths* (arXiv
2509.19170). An ordinary transformers checkpoint; `softeval run --model DIR` evaluates it under the
six CoT modes."""


def _weights(record: TrainingRecord) -> str:
    config = record.config
    if not config.get("lora"):
        return "all trained"
    return (
        f"low-rank adapters of rank {config['lora_rank']} and alpha {config['lora_alpha']}, merged and "
        f"rounded to the model's precision, as they were validated; unmerged in `{ADAPTER}/`"
    )


def _license(lm: LanguageModel) -> str | None:
    """License that the base's own card names, where one lies beside it."""
    import yaml

    try:
        head = (Path(lm.path) / "README.md").read_text(encoding="utf-8").split("---")
        found = yaml.safe_load(head[1])["license"]
    except (OSError, IndexError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return str(found)
