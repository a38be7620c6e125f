"""A decode step that never leaves the device: fixed shapes, nothing asked of the host, one graph."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import architectures
import numpy as np
import pytest
import torch
from conftest import ROOT
from step_graphs import decoded, graphs_of, watched_passes
from tiny import tiny_lm, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from softeval import UserError
from softeval.decoding.decoder import Decoder, Question
from softeval.model import feeding
from softeval.model.feeding import Replays, RowFeeder, rounded_slots, tiled
from softeval.model.language_model import wrap_model
from softeval.model.layers import SlotLayer
from softeval.model.stopping import Limits
from softeval.modes import MODES

HOST = {"aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero", "aten::equal"}
"""What torch does for `item`, `tolist`, a tensor made of a Python list, and shapes that depend on data."""


class Watch(TorchDispatchMode):
    """Notes every operation with the shapes of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = tuple(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))
        self.seen.append((func.name().split(".")[0], shapes))
        return func(*args, **(kwargs or {}))


def forbidden(*args):
    raise AssertionError("a step reads numbers on the host")


@contextmanager
def without_reading():
    """Lets no number be read on the host, which dispatch does not show of a tensor that lies there."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "numpy", "item", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, forbidden)
        yield


def scaled_by_a_number():
    """A model whose embedding is scaled by a number of Python's, which is no tensor (BioGPT, XGLM)."""
    model = architectures.tiny_model(architectures.tiny_config("biogpt"))
    return wrap_model(model, tiny_tokenizer(), "biogpt")


@pytest.mark.parametrize("make", [partial(tiny_lm, "llama"), scaled_by_a_number])
def test_a_step_asks_the_host_for_nothing_and_keeps_its_shapes(make):
    passes = []

    def around(work, bucket):
        first = len(passes) < 2  # these allocate and measure
        with Watch() as watch, nullcontext() if first else without_reading():
            work()
        passes.append(watch.seen)

    with watched_passes(around):
        decoded(make(), MODES["soft_sample"], batch_size=4, look_every=3)
    later = passes[2:]
    assert len(later) > 20
    assert not {name for seen in later for name, _ in seen} & HOST
    assert all(seen == later[0] for seen in later)


def test_the_watch_sees_what_it_watches_for():
    with Watch() as watch, without_reading():
        torch.tensor([1, 2])
        torch.ones(3).nonzero()
        for read in (torch.Tensor.tolist, bool, float, torch.Tensor.numpy):
            with pytest.raises(AssertionError, match="on the host"):
                read(torch.ones(1))
    assert len({name for name, _ in watch.seen} & HOST) == 2


STEPS = {
    "hard_sample": "qwen3",
    "fuzzy_sample": "gemma3",
    "soft_thinking": "gemma2",
    "gumbel": "mistral",
    "multiplex": "llama",
    "mixture_of_inputs": "llama",
    "coconut": "llama",
    "logit_noise": "llama",
}
"""Modes with steps of their own; between them, models with layers of their own."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", STEPS)
def test_a_step_is_one_graph_whatever_rows_positions_and_phases(mode):
    assert graphs_of(tiny_lm(STEPS[mode]), MODES[mode]) == (1, 1)


def test_a_mode_that_asks_the_host_says_so():
    """Its step cannot be captured; every other one reads nothing there."""
    assert {name for name, mode in MODES.items() if mode.asks_host} == {"dirichlet"}
    passes = 0

    def around(work, bucket):
        nonlocal passes
        passes += 1
        with nullcontext() if passes < 3 else without_reading():
            work()

    with watched_passes(around), pytest.raises(AssertionError, match="on the host"):
        decoded(tiny_lm("llama"), MODES["dirichlet"], batch_size=4, look_every=3)


def test_captured_steps_draw_nothing_ahead_however_often_the_host_looks(monkeypatch):
    passes = 0

    class Captured(Replays):
        """Says that it captures, and lets no later pass read a number on the host."""

        def __init__(self, device, **how):
            super().__init__(device, **how)
            self.captures = True

        def run(self, bucket, work):
            nonlocal passes
            passes += 1
            with nullcontext() if passes < 3 else without_reading():
                work()

    monkeypatch.setattr("softeval.decoding.decoder.Replays", Captured)
    decoded(tiny_lm("llama"), MODES["soft_sample"], batch_size=4, look_every=1)
    assert passes > 20


def test_work_runs_as_it_is_where_nothing_is_captured():
    done = []
    for wanted in (True, False):
        replays = Replays(torch.device("cpu"), wanted=wanted)
        assert not replays.captures
        for _ in range(3):
            replays.run((16, 64), lambda: done.append(1))
    assert len(done) == 6


class Stream:
    """Stands in for a stream, and for the one that is current."""

    def __init__(self, device=None) -> None: ...

    def wait_stream(self, other) -> None: ...


class Graph:
    """Stands in for a captured graph."""

    def __init__(self) -> None: ...


@pytest.fixture
def cuda(monkeypatch):
    """What `Replays` asks of CUDA, where there is none."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **how: nullcontext())
    return torch.device("cuda")


def test_graphs_can_be_declined(cuda):
    assert Replays(cuda).captures
    assert not Replays(cuda, wanted=False).captures


def test_to_compile_takes_a_gpu():
    with pytest.raises(UserError, match="--compile fuses what is captured on a GPU"):
        tiny_lm("llama").decode_by(graphs=True, fused=True)


def test_to_compile_or_not_can_be_chosen_anew_for_a_model_that_has_decoded(monkeypatch):
    lm = dataclasses.replace(tiny_lm("llama"))
    monkeypatch.setattr(type(lm), "device", torch.device("cuda"))
    found = []
    for fused in (False, True, True, False):
        lm.decode_by(graphs=True, fused=fused)
        found.append(lm.runner)
    assert found[0] is found[3] is lm.model
    assert found[1] is found[2] is not lm.model  # not compiled twice


@pytest.mark.slow
def test_compiled_steps_are_two_graphs_for_all_rows_and_slots_and_take_the_same_steps(monkeypatch):
    """By torch's eager backend, which fuses nothing: what is compiled is what would have been run."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    lm = tiny_lm("llama")
    fused = dataclasses.replace(lm, fused=True)
    for rows in (4, 20, 40):
        own, theirs = (
            decoded(which, MODES["soft_sample"], batch_size=rows, samples=tuple(range(rows // 2)))
            for which in (lm, fused)
        )
        for key in own:  # later steps feed what the first ones rounded
            first = [found[key].entropy[:2] for found in (own, theirs)]
            np.testing.assert_allclose(*first, rtol=1e-5)
    assert 1 <= len(graphs) <= 2


def test_what_cannot_be_compiled_is_refused_with_the_remedy(monkeypatch):
    from torch._dynamo.exc import Unsupported

    def compiled(model, **how):
        def run(**inputs):
            raise Unsupported("data-dependent branch", skip_frame=False)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(UserError, match=r"data-dependent branch.*leave out --compile"):
        decoded(dataclasses.replace(tiny_lm("llama"), fused=True), MODES["hard_greedy"])


def test_ids_that_no_tokenizer_knows_are_uploaded_once():
    """A list in an index would be uploaded in every step, which cannot be captured."""
    lm = tiny_lm("llama")
    gaps = dataclasses.replace(lm, vocabulary=copy.copy(lm.vocabulary))
    gaps.vocabulary.gaps = (3, 5)
    logits = torch.zeros(2, lm.vocab)
    gaps.logits(logits)
    with Watch() as watch:
        masked = gaps.logits(logits)
    assert not HOST & {name for name, _ in watch.seen}
    assert (masked[0] != 0).nonzero()[:, 0].tolist() == [3, 5]


def test_what_cannot_be_captured_is_refused_with_the_remedy(cuda, monkeypatch):
    @contextmanager
    def failing(graph, **how):
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", failing)
    replays = Replays(cuda)
    replays.run("bucket", lambda: None)
    with pytest.raises(UserError, match=r"capturing\); use --no-graphs"):
        replays.run("bucket", lambda: None)


def test_memory_that_runs_out_in_a_capture_is_no_fault_of_the_architecture(cuda, monkeypatch):
    @contextmanager
    def failing(graph, **how):
        yield
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "graph", failing)
    replays = Replays(cuda)
    replays.run("bucket", lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        replays.run("bucket", lambda: None)


def test_work_is_done_on_the_stream_of_its_capture_before(cuda, monkeypatch):
    done, streams = [], []

    @contextmanager
    def on(stream):
        streams.append(stream)
        yield

    def captured(graph, *, stream, **how):
        done.append(stream is streams[0])
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph", captured)
    monkeypatch.setattr(Graph, "replay", lambda self: done.append("replayed"), raising=False)
    replays = Replays(cuda)
    for _ in range(3):
        replays.run(16, lambda: done.append("work"))
    assert done == ["work", True, "work", "replayed", "replayed"]


def test_work_on_another_gpu_than_the_current_one_waits_for_that_gpu(cuda, monkeypatch):
    """Or a first pass would begin before prompts are there, and the next before it has ended."""
    asked, second = [], torch.device("cuda:1")
    waits = lambda self, other: asked.append((self.device, other.device))
    monkeypatch.setattr(Stream, "__init__", lambda self, of=cuda: setattr(self, "device", of))
    monkeypatch.setattr(Stream, "wait_stream", waits)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=cuda: asked.append(device))
    monkeypatch.setattr(Graph, "replay", lambda self: None, raising=False)
    replays = Replays(second)
    for _ in range(2):
        replays.run(16, lambda: None)
    assert asked == [(second, second), (second, second), second]


def test_each_bucket_is_replayed_by_its_own_graph(cuda, monkeypatch):
    done: list[tuple[str, str]] = []

    @contextmanager
    def capturing(graph, **how):
        yield
        what, graph.bucket = done.pop()  # captured, which computes nothing
        assert what == "work"

    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(
        Graph, "replay", lambda self: done.append(("replay", self.bucket)), raising=False
    )
    replays = Replays(cuda)
    for bucket in "aababb":
        replays.run(bucket, lambda bucket=bucket: done.append(("work", bucket)))
    first = [("work", "a"), ("replay", "a"), ("work", "b")]
    assert done == [*first, ("replay", "a"), ("replay", "b"), ("replay", "b")]


class OnCuda(RowFeeder):
    """Rows and slots as on CUDA, where graphs hold the addresses of keys and values."""

    def __init__(self, model, batch, longest, **how):
        super().__init__(model, batch, longest, **how)
        self._cache.window.fewest = rounded_slots(longest, feeding.CUDA_SLOTS)

    def bucket(self, rows, positions):
        there = copy.copy(self)
        there._model = SimpleNamespace(device=torch.device("cuda"))
        return RowFeeder.bucket(there, rows, positions)


@pytest.mark.parametrize("cap", [25, 29])
def test_keys_stay_where_graphs_know_them_however_late_the_host_looks(cap, monkeypatch):
    """Passes go on behind the last position of the longest row until the host has looked."""
    lm, places = tiny_lm("llama"), []
    monkeypatch.setattr(feeding, "CUDA_SLOTS", 16)
    monkeypatch.setattr("softeval.decoding.decoder.RowFeeder", OnCuda)
    how = {"look_every": 8, "answer_temperature": 1.0}
    decoder = Decoder(lm, MODES["hard_greedy"], Limits(cap, 30), **how)
    noted = SlotLayer.update

    def update(layer, *args, **how):
        found = noted(layer, *args, **how)
        places.append((layer, layer.keys.data_ptr()))
        return found

    monkeypatch.setattr(SlotLayer, "update", update)
    (sample,) = decoder.run([Question("t", 0, tuple(lm.tokenizer.encode("x")), (0,))])
    assert sample.stop_reason == sample.answer_stop == "length"
    assert len(set(places)) == len(lm.model.model.layers)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_bucket_holds_every_row_and_slot_and_on_cuda_there_are_few(device):
    model = SimpleNamespace(device=torch.device(device))
    cache = SimpleNamespace(window=SimpleNamespace(fewest=768))
    feeder: Any = SimpleNamespace(_batch=100, _model=model, _by_length=0, _cache=cache)
    found = {(n, n * 7): RowFeeder.bucket(feeder, n, n * 7) for n in range(1, 101)}
    assert all(tiled(100) >= r >= n and s >= p for (n, p), (r, s) in found.items())
    rows, slots = ({bucket[i] for bucket in found.values()} for i in (0, 1))
    assert (len(rows), len(slots)) == ((7, 11) if device == "cpu" else (4, 3))


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_at_small_size(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("gpu_decode")
    sizes = {"CONTEXT": 40, "SHORT": 4, "LONG": 24}
    for name, size in sizes.items():
        assert getattr(benchmark, name) > size
        monkeypatch.setattr(benchmark, name, size)
    asked = ["--shape", "tiny", "--device", "cpu", "--rows", "16", "--modes", "hard_sample"]
    output = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu_decode.py", *asked, "--output", str(output)])
    benchmark.main()
    (arm,) = json.loads(output.read_text())["arms"]
    assert arm["rows"] == 16 and arm["floor_ms"] > 0
    assert arm["of_floor"] == pytest.approx(arm["ms"] / arm["floor_ms"])
