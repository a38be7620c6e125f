"""The browser of samples: which are shown, packed as `static/browser.js` reads them.

Text, token lengths, and per-token values in one byte each: about eight bytes a token; the page makes
spans on demand. The script is the one reader of this format, so a change here is a change there.

Shape letters: T CoT tokens.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from softeval.records import STOP_WORDS
from softeval.reports.escaping import clip, script_json, visible
from softeval.reports.layout import Own, Paragraph, Part, Section
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arms
from softeval.reports.measured.texts import (
    SampleText,
    question_of,
    read_prompts,
    read_texts,
    shared_frame,
)
from softeval.reports.sections.selection import (
    ChosenProblem,
    ChosenSample,
    Source,
    choose_problems,
    choose_samples,
    find_pair,
    sources,
)

SCRIPT = (files("softeval.reports") / "static" / "browser.js").read_text(encoding="utf-8")
"""The one script of a page; its policy allows no other."""

SCALE = 12.0
"""Entropy and KL bytes hold 255·√(nats / 12), finer near zero; 12 nats and more are 255."""

TEXT_LIMIT = 12_000
TOKEN_LIMIT = 1_000
BUDGET = 860_000
"""Bytes of packed samples; problems are left out from the end of the list beyond it."""


def read_samples(samples: Iterable[ChosenSample]) -> list[tuple[ChosenSample, SampleText]]:
    """The chosen samples with their texts, in the order given.

    Raises:
        UserError: a table is damaged.
    """
    chosen, texts = list(samples), {}
    for run in {one.run.path: one.run for one in chosen}.values():
        keys = {one.text_key for one in chosen if one.run is run}
        texts |= {(run.path, key): text for key, text in read_texts(run, keys).items()}
    return [(one, texts[one.run.path, one.text_key]) for one in chosen]


def pack(
    arms: Arms,
    shown: Sequence[Source],
    problems: Sequence[ChosenProblem],
    prompts: Mapping[tuple[str, int], tuple[str, str]],
    samples: Sequence[tuple[ChosenSample, SampleText]],
    budget: int = BUDGET,
) -> dict[str, Any]:
    """The samples as one JSON value, as many problems of each task as the budget allows.

    Args:
        arms: the report's arms.
        shown: whose samples; samples name them by index.
        problems: chosen problems, most wanted first within each task.
        prompts: (prompt, label) by (task, doc_id).
        samples: of these problems, with their texts.
        budget: bytes.
    """
    vocab: dict[str, int] = {}  # distinct token texts of the mixtures
    modes, tasks = list(arms.modes), list(arms.tasks)
    by_problem: dict[int, list[dict[str, Any]]] = {}
    for chosen, text in samples:
        packed = _pack_sample(chosen, text, modes.index(chosen.key[1]), vocab)
        by_problem.setdefault(chosen.problem, []).append(packed)
    kept = _within(budget, problems, prompts, by_problem)
    frames = [shared_frame([prompts[key][0] for key in prompts if key[0] == t]) for t in tasks]
    renumbered = {old: new for new, old in enumerate(kept)}
    return {
        "tasks": [visible(task) for task in tasks],
        "frames": [[_shown(text) for text in frame] for frame in frames],
        "modes": [visible(mode) for mode in modes],
        "mixes": [not mode.feeds_tokens for mode in modes],
        "temperatures": [mode.options.get("temperature") for mode in modes],
        "stops": STOP_WORDS,
        "start": _start(arms, len(shown)),
        "arms": [visible(source.name) for source in shown],
        "scale": SCALE,
        "problems": [_pack_problem(problems[i], tasks, frames, prompts) for i in kept],
        "samples": [
            {**sample, "q": renumbered[i]} for i in kept for sample in by_problem.get(i, [])
        ],
        "vocab": list(vocab),
        "total": sum(len(c.doc_R) for run in arms.runs for c in run.cells.values()),
    }


def _within(
    budget: int,
    problems: Sequence[ChosenProblem],
    prompts: Mapping[tuple[str, int], tuple[str, str]],
    by_problem: Mapping[int, list[dict[str, Any]]],
) -> list[int]:
    """Indices of the problems that fit, in turn from each task; at least one of each task."""
    queues: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        queues.setdefault(problem.task, []).append(index)
    kept: list[int] = []
    spent = 0
    for turn in range(max(map(len, queues.values()), default=0)):
        for queue in queues.values():
            if turn >= len(queue):
                continue
            index = queue[turn]
            prompt = prompts.get((problems[index].task, problems[index].doc_id), ("", ""))
            size = len(script_json([by_problem.get(index, []), prompt]).encode())
            if turn == 0 or spent + size <= budget:
                kept.append(index)
                spent += size
    return sorted(kept)


def _pack_problem(
    problem: ChosenProblem,
    tasks: Sequence[str],
    frames: Sequence[tuple[str, str]],
    prompts: Mapping[tuple[str, int], tuple[str, str]],
) -> dict[str, Any]:
    prompt, label = prompts.get((problem.task, problem.doc_id), ("not recorded", ""))
    task = tasks.index(problem.task)
    return {
        "t": task,
        "d": problem.doc_id,
        "p": _shown(question_of(prompt, frames[task])),
        "y": _shown(label),
        "w": problem.why,
    }


def _start(arms: Arms, shown: int) -> dict[str, int]:
    """What stands on the left and right at first: the pair of the opening view, or any two cells."""
    if pair := find_pair(arms):
        source, (task, soft), (_, hard), _ = pair
        modes = {"m": arms.modes.index(soft), "n": arms.modes.index(hard)}
        return {"t": arms.tasks.index(task), "a": source, "b": source, **modes}
    return {"b": shown - 1} if shown > 1 else {"n": min(1, len(arms.modes) - 1)}


def _pack_sample(
    chosen: ChosenSample, text: SampleText, mode: int, vocab: dict[str, int]
) -> dict[str, Any]:
    fields, cell = text.fields, chosen.cell
    tokens = _kept_tokens(text)
    shown = len(tokens)
    packed: dict[str, Any] = {
        "a": chosen.source,
        "m": mode,
        "i": int(cell.sample_R[chosen.row]),
        "n": int(cell.length_R[chosen.row]),
        "c": int(cell.correct_R[chosen.row]),
        "v": visible(fields["verdict"]),
        "r": visible(fields["stop_reason"]),
        "f": _shown(fields["prefill"]),
        "z": _shown(fields["answer_text"]),
        "b": None if fields["answer"] is None else _shown(fields["answer"]),
        "x": "".join(tokens) if shown else _shown(fields["cot_text"]),
    }
    # Numbers that are not finite are left out: JSON has none, and there is nothing to colour.
    if shown and _finite(text.entropy_T) and _finite(text.top1_T):
        assert text.entropy_T is not None and text.top1_T is not None
        packed["l"] = _base64(_lengths(tokens))
        packed["e"] = _base64(_nats(text.entropy_T[:shown]))
        packed["p"] = _base64(np.round(np.clip(text.top1_T[:shown], 0, 1) * 255).astype(np.uint8))
        packed["h"] = [
            round(float(text.entropy_T.mean()), 3),
            round(float(text.entropy_T.max()), 3),
        ]
    if shown and shown < len(text.tokens):
        packed["o"] = len(text.tokens) - shown
    if shown and _finite(text.kl_T):
        assert text.kl_T is not None
        packed["k"] = _base64(_nats(text.kl_T[:shown]))
        packed["g"] = round(float(text.kl_T.mean()), 4)
    if shown and text.feeds_mixtures:
        packed["u"] = _base64(np.array(_mixtures(text, shown, vocab), "<u2"))
    return packed


def _finite(value_T: ArrayLike | None) -> bool:
    return value_T is not None and bool(np.isfinite(np.asarray(value_T)).all())


def _kept_tokens(text: SampleText) -> list[str]:
    """Tokens as shown, up to the text limit; how many are left out is packed beside them."""
    kept, room = [], TEXT_LIMIT
    for token in text.tokens:
        shown = visible(clip(token, TOKEN_LIMIT))
        room -= len(shown)
        if room < 0 and kept:
            break
        kept.append(shown)
    return kept


def _shown(text: str) -> str:
    return visible(clip(text, TEXT_LIMIT))


def _lengths(tokens: Sequence[str]) -> np.ndarray:
    """UTF-16 units of each token; 255 says that the next byte is to be added."""
    lengths: list[int] = []
    for token in tokens:
        units = len(token.encode("utf-16-le")) // 2
        lengths += [255] * (units // 255) + [units % 255]
    return np.array(lengths, np.uint8)


def _nats(value_T: ArrayLike) -> np.ndarray:
    value = np.clip(np.nan_to_num(np.asarray(value_T, np.float64)), 0, SCALE)
    return np.round(255 * np.sqrt(value / SCALE)).astype(np.uint8)


def _mixtures(text: SampleText, shown: int, vocab: dict[str, int]) -> list[int]:
    """Flat: position, number of entries, then token index and probability·10⁴ of each."""
    flat: list[int] = []
    for position, entries in enumerate(text.mixtures):
        known = entries and all(map(math.isfinite, (probability for _, probability in entries)))
        if position < shown and known and text.mixes(position):
            texts = (visible(clip(token, TOKEN_LIMIT)) for token, _ in entries)
            indices = [vocab.setdefault(text, len(vocab)) for text in texts]
            if max(indices) < 2**16:
                flat += [position, len(entries)]
                for index, (_, probability) in zip(indices, entries, strict=True):
                    flat += [index, round(1e4 * min(max(probability, 0.0), 1.0))]
    return flat


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def _parts(material: Material) -> list[Part]:
    arms, options = material.arms, material.options
    if not arms.keys:
        return [Paragraph("These runs hold no samples.")]
    problems = choose_problems(arms, options.problems, options.seed)
    if pair := find_pair(arms):
        first = ChosenProblem(
            pair[1][0], pair[3], f"{pair[1][1].family} and {pair[2][1].family} differ most"
        )
        others = [p for p in problems if (p.task, p.doc_id) != (first.task, first.doc_id)]
        problems = [first, *others]
    shown = sources(arms, options.all_seeds)
    samples = read_samples(choose_samples(arms, problems, shown))
    prompts = read_prompts(arms.runs, {(problem.task, problem.doc_id) for problem in problems})
    packed = pack(arms, shown, problems, prompts, samples)
    several = any(arm.seeds > 1 for arm in arms.arms) and not options.all_seeds
    first = " of the first training seed of each method (--all-seeds: of all)" if several else ""
    note = (
        f"{len(packed['samples']):,} of {packed['total']:,} samples shown:"
        f" {len(packed['problems'])} questions{first}, half of them those on which modes and"
        " checkpoints differ most, a quarter those of the highest entropy, a quarter random"
        f" (seed {options.seed}); a right and a wrong sample of each cell where there are both."
    )
    values = {"note": note, "data": Markup(script_json(packed)), "script": Markup(SCRIPT)}
    return [Own("samples.html.j2", values)]


SECTION = Section("samples", "Samples", "Samples", {"Samples": _parts})
