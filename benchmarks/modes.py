"""Time of a decoding step in every mode, as a ratio to hard_sample in the same process.

    python benchmarks/modes.py [--model CHECKPOINT] [--rounds 5] [--modes gumbel,dirichlet]

The modes take turns within a round, each beside hard_sample, and the median of the rounds' ratios is
told. Every sample runs to the cap, so all modes take the same passes; time is the process's own, which
a busy machine does not lengthen much.
"""

from __future__ import annotations

import argparse
import statistics
import time

from softeval.decoding.decoder import Decoder, Question
from softeval.model.language_model import BUNDLED_CHECKPOINT, LanguageModel, load_model
from softeval.model.stopping import Limits, stopper_of
from softeval.modes import MODES, Mode, get_mode
from softeval.protocol import PAPER

REFERENCE = "hard_sample"
PROMPT, CAP, SAMPLES = "What is 12+7-3? ", 64, 32


def seconds(lm: LanguageModel, mode: Mode, seed: int) -> float:
    """Seconds of decoding SAMPLES samples at once, each of CAP positions."""
    decoder = Decoder(lm, mode, Limits(CAP, 1), batch_size=SAMPLES, seed=seed)
    ids = tuple(lm.vocabulary.encode(PROMPT))
    started = time.process_time()
    found = list(decoder.run([Question("bench", 0, ids, tuple(range(SAMPLES)))]))
    assert all(len(g.shadow_ids) == CAP for g in found)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BUNDLED_CHECKPOINT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", default=",".join(MODES))
    given = parser.parse_args()
    lm, reference = load_model(given.model, device="cpu"), get_mode(REFERENCE)
    lm.eos_ids = frozenset()
    stopper_of(lm.tokenizer, PAPER).ends_cot = lambda ids: False  # type: ignore[method-assign]
    modes = {name: get_mode(name) for name in given.modes.split(",")}
    modes["coconut, realigned"] = get_mode("coconut", realign=True)
    ratios: dict[str, list[float]] = {name: [] for name in modes}
    for seed in range(given.rounds + 1):
        for name, mode in modes.items():
            theirs = seconds(lm, reference, seed)
            ratios[name].append(seconds(lm, mode, seed) / theirs)
    for name, found in ratios.items():
        kept = sorted(found[1:])  # the first round warms up
        print(f"{name:20} {statistics.median(kept):.2f}  ({kept[0]:.2f} to {kept[-1]:.2f})")


if __name__ == "__main__":
    main()
