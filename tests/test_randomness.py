"""Keyed random numbers: they depend on their key alone, and they have the right distribution."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from softeval.decoding.randomness import BLOCK, NoiseFeed, SampleRandomness, Stream
from softeval.modes import Draws, Randomness
from softeval.records import SampleKey


def source(seed=0, task="t", doc_id=0, sample=0) -> SampleRandomness:
    return SampleRandomness(seed, SampleKey(task, doc_id, sample))


def test_every_part_of_the_key_matters_and_nothing_else_does():
    variants = [{}, {"seed": 1}, {"task": "u"}, {"doc_id": 1}, {"sample": 1}]
    drawn = [source(**v).uniform(0).tobytes() for v in variants]
    drawn += [source().uniform(1).tobytes(), source().uniform(0, Stream.ANSWER).tobytes()]
    assert len(set(drawn)) == len(drawn)
    again = source()
    again.normal(7, 5)  # what was drawn before leaves no trace
    assert again.uniform(0).tobytes() == drawn[0]


def test_keys_do_not_run_into_each_other():
    assert source(doc_id=1, sample=23).uniform(0).tolist() != (
        source(doc_id=12, sample=3).uniform(0).tolist()
    )


def test_distributions():
    samples = [source(doc_id=d, sample=s) for d, s in product(range(20), range(20))]
    normals = np.concatenate([r.normal(b, 8).ravel() for r in samples for b in (0, 3)])
    uniforms = np.concatenate([r.uniform(b) for r in samples for b in (0, 3)])
    assert kstest(normals, "norm").pvalue > 1e-3
    assert kstest(uniforms, "uniform").pvalue > 1e-3


def test_streams_of_neighbouring_samples_are_uncorrelated():
    table = np.stack([source(sample=s).normal(0, 64).ravel() for s in range(40)])
    correlation = np.corrcoef(table) - np.eye(40)
    assert np.abs(correlation).max() < 5 / np.sqrt(table.shape[1])


@pytest.mark.parametrize(
    ("kind", "width"), [(Randomness.NORMAL, 4), (Randomness.UNIFORM, 1), (Randomness.UNIFORM, 4)]
)
def test_a_feed_gives_each_row_the_numbers_of_its_own_step(kind, width):
    feed = NoiseFeed(Draws(kind, width), 16, torch.device("cpu"))
    rows = [source(sample=s) for s in range(3)]

    def expected(row, step):
        block, offset = divmod(step, BLOCK)
        normal = kind is Randomness.NORMAL
        numbers = row.normal(block, width) if normal else row.uniform(block, width=width)
        return torch.from_numpy(np.asarray(numbers[offset]))

    for base in (0, 5, BLOCK - 1, BLOCK, 3 * BLOCK + 2):
        steps = [base, base + 7, base + 20]
        drawn = feed.read(rows, steps, 16)
        assert drawn is not None
        for index, (row, step) in enumerate(zip(rows, steps, strict=True)):
            assert torch.equal(drawn[index], expected(row, step))
    feed.move(2, 0)
    moved = feed.read([rows[2]], [steps[2]], 16)
    assert moved is not None
    assert torch.equal(moved[0], expected(rows[2], steps[2]))


def test_a_mode_without_randomness_reads_nothing():
    feed = NoiseFeed(Draws(Randomness.NONE), 16, torch.device("cpu"))
    assert feed.read([source()], [0], 16) is None
