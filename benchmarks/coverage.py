"""Do the intervals cover, and how often is something claimed of equal models? Before and after.

    python benchmarks/coverage.py                    # every table, some ten minutes on one core
    python benchmarks/coverage.py --only order --reps 200

Seeded simulations of the statistics of a report, printed as Markdown tables. "Before" is what
softeval 0.1.0 printed, kept here as a formula: no guard on differences, Satterthwaite against a
fixed checkpoint, modes of one checkpoint compared as if they were two, "leads" read off the sign of
D(k), entropy averaged within problems first with a percentile bootstrap. 0.95 is nominal
everywhere; (±) is one Monte Carlo standard error.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, expit, ndtr, ndtri

from softeval.statistics import pass_at_k
from softeval.statistics.contrast import (
    guarded_variance,
    rare_difference,
    skew_shift,
    skewed_tails,
)
from softeval.statistics.crossed import satterthwaite, variance_components
from softeval.statistics.curves import crossing, curve_order, difference_band
from softeval.statistics.equivalence import MARGIN
from softeval.statistics.extrapolation import extrapolate
from softeval.statistics.interval import guarded_error, t_quantile, wilson_bounds
from softeval.statistics.positions import PositionSums
from softeval.statistics.profiles import position_profile

Floats = NDArray[np.float64]
KS = np.array([1, 2, 4, 8, 16, 32])
LAWS = {"beta(2, 1)": (2.0, 1.0), "beta(8, 1)": (8.0, 1.0)}
SEEDS = ((1, 1), (3, 1), (3, 3))
REPLICATES = 300  # of each bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=sorted(TABLES), help="one table")
    parser.add_argument("--reps", type=int, help="replicates a cell, in place of each table's own")
    options = parser.parse_args()
    for name, (title, head, rows, reps) in TABLES.items():
        if options.only in (None, name):
            print(f"\n`{name}`: {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
            for row in rows(options.reps or reps):
                print(f"| {' | '.join(row)} |", flush=True)


def rate(hits: Floats | float, reps: int) -> str:
    share = float(np.mean(hits))
    return f"{share:.3f} (±{np.sqrt(max(share * (1 - share), 0) / reps):.3f})"


def before(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Variance of a difference and its degrees of freedom, as in 0.1.0; (reps, S, M) in."""
    d, problems = a.mean(axis=-2) - b.mean(axis=-2), a.shape[-1]
    by_problem = d.var(axis=-1, ddof=1) / problems
    parts = variance_components(a), variance_components(b)
    seeds = parts[0].seed + parts[1].seed
    total = by_problem + seeds - parts[0].residual - parts[1].residual
    total = np.maximum(total, np.maximum(by_problem, seeds))
    free, wide = [x.shape[-2] - 1 for x in (a, b)], problems - 1
    terms = (by_problem, *(p.seed for p in parts), *(p.residual for p in parts))
    freedoms = (wide, *free, *(one * wide for one in free))
    return total, satterthwaite(total, terms, freedoms, wide)


def half_width(variance: Floats, df: Floats, problems: int, level: float) -> Floats:
    flat = variance < 1e-24
    half = t_quantile(0.5 + level / 2, df) * np.sqrt(variance)
    return np.where(flat, rare_difference(problems, level), half)


Ends = tuple[Floats, Floats]


def intervals(a: Floats, b: Floats, level: float = 0.95, paired: bool = False) -> tuple[Ends, Ends]:
    """Both ends of the interval of a difference, before and after; (reps, S, M) in."""
    d, problems = a.mean(axis=-2) - b.mean(axis=-2), a.shape[-1]
    gap = d.mean(axis=-1)
    old = half_width(*before(a, b), problems, level)
    new = half_width(*guarded_variance(a, b, paired), problems, level)
    below, above = skewed_tails(skew_shift(d), float(ndtri(0.5 + level / 2)))
    return (gap - old, gap + old), (gap - new - below, gap + new + above)


def holds(ends: Ends, truth: float) -> Floats:
    return (ends[0] <= truth + 1e-12) & (truth - 1e-12 <= ends[1])


def within_margin(ends: Ends) -> Floats:
    return (ends[0] > -MARGIN) & (ends[1] < MARGIN)


def mean_width(ends: Ends) -> float:
    return float((ends[1] - ends[0]).mean())


def lost(rng, reps: int, problems: int, share: float, law, seeds, n: int, ks):
    """A never solves a share of the questions; of the others both solve the same. And D(k)."""
    p = rng.beta(*law, (reps, 1, problems))
    q = np.where(rng.random(p.shape) < share, 0.0, p)
    table = pass_at_k(n, np.arange(n + 1), ks)
    sizes = [(reps, count, problems) for count in seeds]
    a, b = (
        table[rng.binomial(n, np.broadcast_to(rates, size))]
        for rates, size in zip((q, p), sizes, strict=True)
    )
    failing = betaln(law[0], law[1] + np.atleast_1d(ks)) - betaln(*law)  # log E[(1 - p)^k]
    return a, b, -share * (1 - np.exp(failing))


def differences(reps: int) -> Iterator[list[str]]:
    """Worst cell of each row over laws, (n, k) and seeds."""
    shapes = ((64, 1), (64, 8), (64, 32), (32, 32))
    for problems, share in product((30, 100, 200, 500), (0.01, 0.02, 0.03)):
        covered, equivalent = [], []
        for cell, (law, (n, k), seeds) in enumerate(product(LAWS.values(), shapes, SEEDS)):
            rng = np.random.default_rng([problems, int(1000 * share), cell])
            a, b, (truth,) = lost(rng, reps, problems, share, law, seeds, n, [k])
            a, b = a[..., 0], b[..., 0]
            covered.append([holds(ends, truth).mean() for ends in intervals(a, b)])
            if truth < -MARGIN:
                equivalent.append([within_margin(x).mean() for x in intervals(a, b, 0.9)])
        low = np.min(covered, axis=0)
        high = np.max(equivalent, axis=0) if equivalent else None
        yield [
            str(problems), f"{100 * share:.0f} %", *(rate(x, reps) for x in low),
            *(["–", "–"] if high is None else [rate(x, reps) for x in high]),
        ]  # fmt: skip


def beyond_margin(reps: int) -> Iterator[list[str]]:
    """The worst of the cells of `differences` with losses just past the margin of 2 points."""
    shapes = ((64, 1), (64, 8), (64, 32), (32, 32))
    for problems, truth in product((200, 500, 1319), (0.0201, 0.021, 0.0225)):
        equivalent, ratio = [], []
        for cell, (law, (n, k), seeds) in enumerate(product(LAWS.values(), shapes, SEEDS)):
            solved = 1 - np.exp(betaln(law[0], law[1] + k) - betaln(*law))
            rng = np.random.default_rng([problems, int(1e4 * truth), cell])
            a, b, _ = lost(rng, reps, problems, truth / solved, law, seeds, n, [k])
            a, b = a[..., 0], b[..., 0]
            equivalent.append([within_margin(ends).mean() for ends in intervals(a, b, 0.9)])
            old, new = intervals(a, b)
            ratio.append(mean_width(new) / mean_width(old))
        high = np.max(equivalent, axis=0)
        row = [str(problems), f"{-100 * truth:.2f}", *(rate(x, reps) for x in high)]
        yield [*row, f"{max(ratio):.2f}"]


def widths(reps: int) -> Iterator[list[str]]:
    """Equal models, smooth difficulty, no lost question: what the guard costs."""
    for problems, n, k, seeds in (
        *product((100, 200, 500, 1319), (32,), (1, 32), ((1, 1), (3, 3))), (30, 64, 1, (1, 1)),
    ):  # fmt: skip
        rng = np.random.default_rng([problems, k, *seeds])
        p = rng.normal(-0.5, 1.7, (reps, 1, problems))
        arms = [
            expit(
                p + 0.1 * rng.normal(size=(reps, s, 1)) + 0.5 * rng.normal(size=(reps, s, problems))
            )
            for s in seeds
        ]
        table = pass_at_k(n, np.arange(n + 1), k)[:, 0]
        a, b = (table[rng.binomial(n, rates)] for rates in arms)
        half = [mean_width(ends) / 2 for ends in intervals(a, b)]
        points = [f"±{100 * one:.2f}" for one in half]
        sizes = [str(problems), f"pass@{k}, n = {n}", "/".join(map(str, seeds))]
        yield [*sizes, *points, f"{half[1] / half[0]:.3f}"]


def bands(reps: int) -> Iterator[list[str]]:
    """Does the band of D(k) hold the whole true difference?"""
    for problems, count, kind in product((30, 200), (1, 3), ("lost 3 %", "above", "crossing")):
        rng = np.random.default_rng([problems, count, len(kind)])
        if kind == "lost 3 %":
            a, b, truth = lost(rng, reps, problems, 0.03, (2, 1), (count, count), 64, KS)
        else:
            a, b, truth = smooth(rng, reps, problems, count, kind)
        hits = np.zeros(2)
        for rep in range(reps):
            band = difference_band(a[rep], b[rep], KS, replicates=REPLICATES, seed=rep)
            variance, df = before(np.moveaxis(a[rep], 2, 0), np.moveaxis(b[rep], 2, 0))
            old = half_width(variance, df, problems, 2 * float(ndtr(band.critical)) - 1)
            hits += [
                (np.abs(band.mean - truth) <= old).all(),
                ((band.low <= truth) & (truth <= band.high)).all(),
            ]
        yield [str(problems), f"{count}/{count}", kind, *(rate(x / reps, reps) for x in hits)]


def smooth(rng, reps: int, problems: int, count: int, kind: str):
    """Difficulties of both arms on the logit scale, one flat and one steep where they cross."""
    laws = {"above": ((0.4, 1.5), (0.0, 1.5)), "crossing": ((0.0, 2.6), (-0.6, 1.0))}[kind]
    z = rng.normal(size=(reps, 1, problems))
    table = pass_at_k(64, np.arange(65), KS)
    size = (reps, count, problems)
    a, b = (table[rng.binomial(64, np.broadcast_to(expit(m + s * z), size))] for m, s in laws)
    x = np.random.default_rng(9).normal(size=400_000)
    curves = [[(1 - (1 - expit(m + s * x)) ** k).mean() for k in KS] for m, s in laws]
    return a, b, np.subtract(*curves)


def orders(reps: int) -> Iterator[list[str]]:
    """Equal models: how often is a lead or a crossing claimed?"""
    table = pass_at_k(32, np.arange(33), np.arange(1, 33))
    shown = KS - 1
    for problems, count, spread in product((30, 100, 200, 500), (1, 3), (0.0, 0.1)):
        if count == 1 and spread:
            continue  # two checkpoints that differ are no equal models
        rng = np.random.default_rng([problems, count, int(10 * spread)])
        z = rng.normal(-0.5, 1.7, (reps, 1, problems))
        a, b = (
            table[
                rng.binomial(
                    32,
                    expit(
                        z + spread * rng.normal(size=(reps, count, 1)) + np.zeros((count, problems))
                    ),
                )
            ]
            for _ in range(2)
        )
        said = np.zeros(2)
        for rep in range(reps):
            crossed = crossing(a[rep], b[rep], np.arange(1, 33), replicates=2, seed=rep)
            order = curve_order(
                a[rep][..., shown], b[rep][..., shown], KS, replicates=REPLICATES, seed=rep
            )
            said += [crossed.k is not None, order.word not in ("undecided", "coincide")]
        spans = f"{count}/{count}" + (f", seed SD {spread}" if spread else "")
        yield [str(problems), spans, *(rate(x / reps, reps) for x in said)]


def fixed_base(reps: int) -> Iterator[list[str]]:
    """Type I error of seeds against one fixed checkpoint of the same mean, pass@1 of 32."""
    z = np.random.default_rng(0).normal(size=2_000_000)
    for problems, spread, residual, count in (
        (500, 0.1, 0.5, 3), (500, 0.2, 0.5, 3), (500, 0.1, 0.0, 3), (1319, 0.1, 0.5, 3),
        (1319, 0.2, 0.5, 3), (200, 0.1, 0.5, 3), (30, 0.1, 0.5, 3), (500, 0.1, 0.5, 5),
    ):  # fmt: skip
        rejected, ratio, done = np.zeros(2), 0.0, 0
        shift = np.subtract(*(
            expit(-0.5 + np.linalg.norm(sds) * z).mean()
            for sds in ((1.7, spread, residual), (1.7, residual))
        ))  # fmt: skip
        rng = np.random.default_rng([problems, int(10 * spread), int(10 * residual), count])
        while done < reps:
            logit = rng.normal(-0.5, 1.7, (250, 1, problems))
            noise = [residual * rng.normal(size=(250, s, problems)) for s in (count, 1)]
            seeds = spread * rng.normal(size=(250, count, 1))
            a = rng.binomial(32, expit(logit + seeds + noise[0])) / 32
            b = rng.binomial(32, expit(logit + noise[1])) / 32
            old, new = intervals(a, b)
            rejected += [(~holds(ends, shift)).sum() for ends in (old, new)]
            ratio, done = ratio + mean_width(new) / mean_width(old) * 250, done + 250
        name = [str(problems), f"{spread}", f"{residual}", f"{count}/1"]
        yield [*name, *(rate(x / done, done) for x in rejected), f"{ratio / done:.2f}"]


def same_checkpoints(reps: int) -> Iterator[list[str]]:
    """Two modes of the same checkpoints, seed SD 0.3 logits, 500 questions, pass@1 of 32."""
    x = np.random.default_rng(0).normal(size=400_000)
    total = np.linalg.norm([1.6, 0.3])
    for count, shift in product((3, 5), (0.0, 0.19)):
        truth = (expit(total * x + shift) - expit(total * x)).mean()
        rng = np.random.default_rng([count, int(100 * shift)])
        logit = rng.normal(0, 1.6, (reps, 1, 500)) + rng.normal(0, 0.3, (reps, count, 1))
        a, b = (rng.binomial(32, expit(logit + one)) / 32 for one in (shift, 0.0))
        row = [f"{count}", f"{100 * truth:+.1f}"]
        for ends in intervals(a, b, paired=True):
            row += [rate(holds(ends, truth), reps), rate(~holds(ends, 0.0), reps)]
            row += [f"±{50 * mean_width(ends):.1f}"]
        yield row


def entropies(reps: int) -> Iterator[list[str]]:
    """Harder problems run longer and less surely; mean at a position and how often it covers."""
    big, at = world(np.random.default_rng(9), 1, 400_000, 1), (0, 8, 13)
    truth = np.array([big[1][big[0] > t].mean() for t in at])
    for problems, n in ((30, 1), (30, 8), (30, 64), (40, 1), (200, 1), (200, 8), (200, 64)):
        rng = np.random.default_rng([problems, n])
        means, covers = np.zeros((2, 3)), np.full((2, reps, 3), np.nan)
        for rep in range(reps):
            length, entropy = (part[0] for part in world(rng, 1, problems, n))
            running = length[:, :, None] > np.array(at)
            total, count = (running * entropy[:, :, None]).sum(axis=1), running.sum(axis=1)
            sums = PositionSums(total, count, np.full(problems, n), problems * n, length=3)
            profile = position_profile(sums)
            own = np.where(count > 0, total / np.maximum(count, 1), np.nan)
            with warnings.catch_warnings():  # a resample without a problem at risk
                warnings.simplefilter("ignore", RuntimeWarning)
                drawn = np.nanmean(own[rng.integers(0, problems, (200, problems))], axis=1)
            low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
            enough = [(count > 0).sum(axis=0) >= 30, ~profile.grey]
            inside = [
                (low <= truth) & (truth <= high),
                (profile.low <= truth) & (truth <= profile.high),
            ]
            for i in range(2):
                covers[i, rep] = np.where(enough[i], inside[i], np.nan)
            means += [np.nanmean(own, axis=0) / reps, profile.mean / reps]
        seen = np.isfinite(covers).sum(axis=1) >= reps / 10
        least = [np.nanmean(covers[i][:, seen[i]], axis=0).min() for i in range(2)]
        yield [
            str(problems), str(n), f"{truth[2]:.3f}", *(f"{m[2]:.3f}" for m in means),
            *(rate(x, reps) for x in least),
        ]  # fmt: skip


def world(rng, reps: int, problems: int, n: int) -> tuple[Floats, Floats]:
    """(length, entropy) of every chain: entropy is constant within a chain."""
    hard, size = rng.normal(size=(reps, problems, 1)), (reps, problems, n)
    length = np.exp(2.5 + 0.5 * hard + 0.5 * rng.normal(size=size))
    return length, 0.5 * np.exp(0.4 * hard + 0.3 * rng.normal(size=size))


DIFFICULTIES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "beta(0.4, 1.2)": lambda rng, size: rng.beta(0.4, 1.2, size),
    "logit-normal(-2, 2.5)": lambda rng, size: expit(rng.normal(-2, 2.5, size)),
    "beta(0.5, 1.5), 8 % never solved": lambda rng, size: np.where(
        rng.random(size) < 0.08, 0.0, rng.beta(0.5, 1.5, size)
    ),
    "two clusters, 0.7 and 0.01": lambda rng, size: np.where(rng.random(size) < 0.5, 0.7, 0.01),
}


def beyond(reps: int) -> Iterator[list[str]]:
    """How often the truth at K = 2n and 8n lies outside the hatched area of three models."""
    for (name, law), n in product(DIFFICULTIES.items(), (8, 32)):
        p = law(np.random.default_rng(99), 400_000)
        ks = np.array([2 * n, 8 * n])
        truth = np.array([(1 - (1 - p) ** k).mean() for k in ks])
        rng = np.random.default_rng([n, len(name)])
        outside, spread = np.zeros(2), 0.0
        for _ in range(reps):
            found = extrapolate(n, rng.binomial(n, law(rng, 500)), ks)
            models = [found.beta_binomial, found.zero_inflated, found.power_law]
            outside += (truth < np.min(models, axis=0)) | (truth > np.max(models, axis=0))
            spread += 100 * found.disagreement[1] / reps
        yield [name, str(n), *(rate(x / reps, reps) for x in outside), f"{spread:.1f}"]


def ceiling(reps: int) -> Iterator[list[str]]:
    """One checkpoint near the ceiling, n = k = 32: the only cell of single means below 0.92."""
    for problems, level in ((30, 0.4), (30, 1.0), (200, 0.4)):
        p = expit(level + 1.3 * np.random.default_rng(9).normal(size=400_000))
        truth = (1 - (1 - p) ** 32).mean()
        rng = np.random.default_rng([problems, int(10 * level)])
        x = (rng.binomial(32, expit(rng.normal(level, 1.3, (reps, problems)))) > 0).astype(float)
        mean, se2 = x.mean(axis=1), x.var(axis=1, ddof=1) / problems
        low, high, _ = wilson_bounds(
            mean, guarded_error(mean, se2, problems), problems, problems - 1
        )
        yield [str(problems), f"{truth:.4f}", rate((low <= truth) & (truth <= high), reps)]


TABLES = {
    "differences": (
        (
            "A never solves a share of the questions; worst of 24 cells (beta(2, 1) and beta(8, 1);"
            " n, k = 64, 1; 64, 8; 64, 32; 32, 32; seeds 1/1, 3/1, 3/3). Coverage of the 95 % interval,"
            ' and false "equivalent" within ±2 points where the truth is beyond'
        ),
        ("questions", "lost", "cover before", "after", "false before", "after"), differences, 600,
    ),
    "margin": (
        (
            'a loss just past the margin of 2 points is called "equivalent"; the worst of the same 24'
            " cells, and the widest interval as a ratio"
        ),
        ("questions", "true difference", "before", "after", "width"), beyond_margin, 1000,
    ),
    "widths": (
        (
            "mean half width in points where questions differ smoothly (logit SD 1.7, seed SD 0.1,"
            " question × seed 0.5)"
        ),
        ("questions", "score", "seeds", "before", "after", "ratio"), widths, 300,
    ),
    "bands": (
        "the band of D(k), k = 1 … 32 of 64, holds the whole true difference",
        ("questions", "seeds", "truth", "before", "after"), bands, 250,
    ),
    "order": (
        (
            "equal models: share of verdicts that claim a crossing (before: D(k) changes sign) or a lead"
            " or crossing (after)"
        ),
        ("questions", "seeds", "before", "after"), orders, 300,
    ),
    "fixed": (
        "seeds against one fixed checkpoint of equal mean: type I error at 5 %",
        ("questions", "seed SD", "question × seed", "seeds", "before", "after", "width ratio"),
        fixed_base, 3000,
    ),
    "paired": (
        (
            "two modes of the same checkpoints: coverage, share of p < .05 (power, or type I at a truth"
            " of 0), mean half width in points"
        ),
        ("seeds", "truth", "cover before", "p < .05", "width", "cover after", "p < .05", "width"),
        same_checkpoints, 1000,
    ),
    "entropy": (
        (
            "E[H_t given T ≥ t] where 41 % still run: truth, mean of the profile, and the lowest coverage"
            " over the positions shown that are not grey"
        ),
        ("problems", "n", "truth", "mean before", "after", "cover before", "after"), entropies, 300,
    ),
    "beyond": (
        "share of cases in which the true pass@K lies outside the hatched area (500 questions)",
        ("difficulty", "n", "K = 2n", "K = 8n", "hatched at 8n, points"), beyond, 40,
    ),
    "ceiling": (
        "single checkpoint, pass@32 of 32 samples, Wilson interval",
        ("questions", "truth", "cover"), ceiling, 4000,
    ),
}  # fmt: skip

if __name__ == "__main__":
    main()
