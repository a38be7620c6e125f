"""Keyed random numbers: they depend on their key alone, and they have the right distribution."""

from __future__ import annotations

import hashlib
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from softeval.decoding import randomness
from softeval.decoding.randomness import (
    AHEAD,
    WIDEST_AHEAD,
    NoiseFeed,
    SampleRandomness,
    Stream,
    philox,
)
from softeval.modes import Draws, Randomness
from softeval.records import SampleKey

CPU = torch.device("cpu")


def source(seed=0, task="t", doc_id=0, sample=0) -> SampleRandomness:
    return SampleRandomness(seed, SampleKey(task, doc_id, sample))


@pytest.mark.parametrize(
    ("counter", "key", "known"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (" ".join(["ffffffff"] * 4), "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_words_are_those_of_random123(counter, key, known):
    """Known answers of the authors' kat_vectors."""
    given = [[torch.tensor([int(word, 16)]) for word in part.split()] for part in (counter, key)]
    assert [f"{int(word):08x}" for word in philox(*given)] == known.split()


STREAMS = ["COT", "ANSWER", "SHUFFLE", "DONOR", "STEPS"]


def known_words(
    seed: int, task: str, doc_id: int, sample: int, step: int, stream: int
) -> list[int]:
    """The first eight words of a step, in plain integers: two counters of Philox4x32-10."""
    digest = hashlib.sha256(f"{seed}|{task}|{doc_id}|{sample}".encode()).digest()
    k, m, rest = (int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(3))
    words = []
    for element in (0, 1):
        x, key = [element, step, stream, rest], [k, m]
        for _ in range(10):
            p, q = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
            x = [q >> 32 ^ x[1] ^ key[0], q % 2**32, p >> 32 ^ x[3] ^ key[1], p % 2**32]
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        words += x
    return words


@pytest.mark.parametrize("stream", Stream)
def test_the_numbers_of_a_sample_are_those_of_its_key_for_ever(stream):
    """What a recorded run drew can be drawn again, so these never change under one schema."""
    name = (2**40 + 7, "gsm8k", 1318, 31)
    drawn = source(*name).uniforms(6, 4, stream)
    normal = source(*name).normals(6, 8, stream)
    for step in (0, 5):
        words = np.array(known_words(*name, step, STREAMS.index(stream.name)))
        pairs = words.reshape(-1, 2)
        assert drawn[step].tolist() == [(a >> 5) * 2.0**-27 + (b >> 6) * 2.0**-53 for a, b in pairs]
        u, v = (words.reshape(-1, 2).T + 0.5) / 2**32
        polar = np.sqrt(-2 * np.log(u)) * np.exp(2j * np.pi * v)
        expected = np.stack([polar.real, polar.imag], -1).ravel()
        np.testing.assert_allclose(normal[step], expected, atol=1e-5)


def test_every_part_of_the_key_matters_and_nothing_else_does():
    variants = [{}, {"seed": 1}, {"task": "u"}, {"doc_id": 1}, {"sample": 1}]
    drawn = [source(**v).uniforms(1).item() for v in variants]
    drawn += [source().uniforms(2)[1].item(), source().uniforms(1, stream=Stream.ANSWER).item()]
    assert len(set(drawn)) == len(drawn)
    again = source()
    again.normals(7, 5)  # what was drawn before leaves no trace
    assert again.uniforms(1).item() == drawn[0]


def test_a_step_has_the_same_numbers_however_many_are_drawn():
    assert torch.equal(source().normals(9, 6)[:4], source().normals(4, 6))
    assert torch.equal(source().normals(3, 7)[:, :5], source().normals(3, 5))
    assert torch.equal(source().uniforms(3, 7)[:, :5], source().uniforms(3, 5))


def test_keys_do_not_run_into_each_other():
    assert source(doc_id=1, sample=23).key != source(doc_id=12, sample=3).key


def test_distributions():
    samples = [source(doc_id=d, sample=s) for d, s in product(range(20), range(20))]
    normals = torch.stack([r.normals(16, 8) for r in samples]).numpy()
    uniforms = torch.stack([r.uniforms(32) for r in samples]).numpy()
    assert kstest(normals.ravel(), "norm").pvalue > 1e-3
    assert kstest(uniforms.ravel(), "uniform").pvalue > 1e-3
    assert kstest((normals**2).sum(-1).ravel(), "chi2", args=(8,)).pvalue > 1e-3


def test_numbers_of_neighbours_are_uncorrelated():
    """Samples, steps, elements; a pair of normals shares its uniforms."""
    drawn = torch.stack([source(sample=s).normals(40, 40) for s in range(40)]).numpy()
    for axis in range(3):
        table = np.moveaxis(drawn, axis, 0).reshape(40, -1)
        correlation = np.corrcoef(table) - np.eye(40)
        assert np.abs(correlation).max() < 5 / np.sqrt(table.shape[1])


@pytest.mark.parametrize("ahead", [AHEAD, 0])
@pytest.mark.parametrize(
    ("kind", "width"), [(Randomness.NORMAL, 4), (Randomness.UNIFORM, 1), (Randomness.UNIFORM, 4)]
)
def test_a_feed_gives_each_row_the_numbers_of_its_own_step(kind, width, ahead):
    feed = NoiseFeed(Draws(kind, width), 16, CPU, ahead=ahead)
    rows = [source(sample=s) for s in range(3)]
    feed.begin([0, 1, 2], rows)

    def expected(row, step):
        if kind is Randomness.NORMAL:
            return row.normals(step + 1, width)[step]
        drawn_W = row.uniforms(step + 1, width)[step]
        return drawn_W[0] if width == 1 else drawn_W

    def check(steps):
        drawn = feed.read(torch.tensor(steps))
        assert drawn is not None
        for row, step, numbers in zip(rows, steps, drawn, strict=True):
            assert torch.equal(numbers, expected(row, step))

    for base in (0, 5, 6, AHEAD - 1, AHEAD, 3 * AHEAD + 2, 0):
        check([base, base + 7, base + 20])
    feed.move(2, 0)
    rows[0] = rows[2]
    check([20, 8, 21])
    rows[1] = source(doc_id=5)
    feed.begin([1], [rows[1]])
    check([21, 0, 22])
    rows[1] = source(doc_id=6)  # the next sample of the place, while numbers drawn ahead are left
    feed.begin([1], [rows[1]])
    check([22, 0, 23])


def test_numbers_as_wide_as_a_vocabulary_are_drawn_step_by_step(monkeypatch):
    drawn, own = [], randomness.normals

    def counted(keys, steps, *args):
        drawn.append(len(steps))
        return own(keys, steps, *args)

    monkeypatch.setattr(randomness, "normals", counted)
    for width, steps in ((4, AHEAD), (WIDEST_AHEAD + 1, 1)):
        feed = NoiseFeed(Draws(Randomness.NORMAL, width), 16, CPU)
        feed.begin([0], [source()])
        feed.read(torch.tensor([0]))
        assert drawn.pop() == steps


def test_a_mode_without_randomness_reads_nothing():
    feed = NoiseFeed(Draws(Randomness.NONE), 16, CPU)
    feed.begin([0], [source()])
    assert feed.read(torch.tensor([0])) is None
