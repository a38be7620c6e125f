"""A trained model as an ordinary transformers checkpoint with a model card.

Beside the weights lie `softeval_training.json`, which `softeval run` copies into its record, and a
README.md for people, and of a run with adapters these in `adapter/`. Nothing of ours is needed to load
the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softeval.model.language_model import LanguageModel
from softeval.tasks.data import DATASETS
from softeval.trainers.adapters import Adapters
from softeval.trainers.atomic import write_directory

RECORD = "softeval_training.json"
ADAPTER = "adapter"


@dataclass(frozen=True)
class TrainingRecord:
    """What is said of a trained checkpoint.

    Attributes:
        method: hard, soft, fuzzy, or the name of another mode.
        dataset: name of the training set.
        train_seed: seed of the run.
        base: what was trained.
        step: updates done.
        mode: the CoT mode of training with every option, and σ where it has noise.
        logits_dtype: precision of the logits in training.
        validation: greedy validation success at every time it was taken.
        selected: "best" or "last".
        command: what was typed.
        config: the whole configuration.
        data: where the questions came from and what was dropped.
        versions: of the packages.
    """

    method: str
    dataset: str
    train_seed: int
    base: str
    step: int
    mode: dict[str, Any]
    logits_dtype: str
    validation: Sequence[dict[str, float]]
    selected: str
    command: str
    config: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]


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

    def fill(partial: Path) -> None:
        with adapters.merged() if adapters else nullcontext() as state:
            lm.model.save_pretrained(str(partial), state_dict=state)
        if adapters:
            adapters.save(partial / ADAPTER, record.base)
        lm.tokenizer.save_pretrained(str(partial))
        text = json.dumps(asdict(record), indent=2, ensure_ascii=False)
        (partial / RECORD).write_text(text + "\n", encoding="utf-8")
        card = model_card(record, _license(lm))
        (partial / "README.md").write_text(card, encoding="utf-8")

    write_directory(place, fill)


def exported_step(place: Path) -> int | None:
    """Updates done by the checkpoint there; None without a readable one."""
    try:
        return int(json.loads((place / RECORD).read_text(encoding="utf-8"))["step"])
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

Trained from `{record.base}` with `softeval train`, the method of *Soft Tokens, Hard Truths* (arXiv
2509.19170). An ordinary transformers checkpoint; `softeval run --model DIR` evaluates it under the
six CoT modes.

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

Everything else is in `{RECORD}`.
"""


def _metadata(record: TrainingRecord, license: str | None) -> str:
    """The card's YAML, as the Hugging Face hub reads it; nothing that would only mean a path here."""
    import yaml

    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["softeval", "reinforcement-learning", "chain-of-thought"],
    }
    if record.base.count("/") == 1 and not Path(record.base).expanduser().exists():
        found["base_model"] = record.base
    if record.dataset in DATASETS:
        found["datasets"] = [DATASETS[record.dataset].hub_id]
    if license is not None:
        found["license"] = license
    return yaml.safe_dump(found, sort_keys=False)


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
