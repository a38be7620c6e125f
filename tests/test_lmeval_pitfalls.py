"""Each of lm-eval's pitfalls meets its guard (docs/lm-eval.md)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import MemoryStore, adapter, evaluate, request, roomy_lm, save_lm, write_data
from lm_eval.api.model import CachingLM

from softeval.errors import UserError
from softeval.lmeval.adapter import SoftEvalLM
from softeval.lmeval.arguments import device_here


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return write_data(tmp_path)


def test_use_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--use_cache mixes"):
        CachingLM(adapter(), str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperatur": 0.5}, "unknown model argument 'temperatur'; did you mean temperature?"),
        ({"version": 2}, "unknown model argument 'version'"),
        ({"parallelize": True}, "unknown model argument 'parallelize'"),
        ({"mode": "soft"}, "unknown mode 'soft'"),
        ({"num_samples": 0}, "--num-samples 0: input should be greater than or equal to 1"),
        ({"seed": -1}, "--seed -1: input should be greater"),
        ({"batch_size": 0}, "--batch-size: 0 must be auto or at least 1"),
        ({"max_cot_tokens": "x"}, "--max-cot-tokens 'x': input should be a valid integer"),
        ({"mode": "hard_sample", "noise_scale": 1}, "hard_sample has no option"),
    ],
)
def test_bad_model_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        SoftEvalLM(roomy_lm(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"until": [], "do_sample": True}, "do_sample=True has no effect"),
        ({"until": [], "temperature": 0.7}, "temperature=0.7 has no effect"),
        ({"until": [], "soft": {"tau": 1}}, "has no effect on a CoT mode"),
        ({"until": [], "max_gen_toks": 100}, "max_gen_toks=100, the caps give 18"),
    ],
)
def test_generation_arguments_without_effect_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        adapter("hard_greedy", 1).generate_until([request(arguments=arguments)])


def test_task_and_model_must_agree_on_the_samples() -> None:
    lm = adapter("hard_sample", 3)
    with pytest.raises(
        UserError, match=r"asks for 1 samples .* the model for 3: write `repeats: 3`"
    ):
        lm.generate_until([request()])


def test_copies_beyond_the_repeats_cost_nothing() -> None:
    lm, store = adapter("hard_sample", 2), MemoryStore()
    lm.store = store
    wanted = request(repeats=2)
    answers = lm.generate_until([wanted] * 6)
    assert len(store.generations) == 2
    assert answers == [answers[0], *[answers[1]] * 5]


def test_the_generation_config_is_recorded_and_not_applied() -> None:
    lm = adapter("hard_greedy", 1)
    plain = lm.generate_until([request()])
    config = lm.language_model.model.generation_config
    config.repetition_penalty = 5.0
    try:
        assert lm.generate_until([request()]) == plain
        assert lm.get_model_info()["generation_config_ignored"]["repetition_penalty"] == 5.0
    finally:
        config.repetition_penalty = None


def test_a_context_that_does_not_fit_is_refused_not_cut(data_dir: str) -> None:
    lm = adapter()
    lm._max_length = 30
    with pytest.raises(UserError, match="exceeds the context of 30"):
        evaluate(lm, data_dir, "arc_easy")
    lm = adapter("hard_greedy", 1)
    lm.configure(max_cot_tokens=2000)
    wanted = request("x" * 100, {"until": [], "max_gen_toks": 2006})
    with pytest.raises(UserError, match=r"foreign question 0 .* exceeds the context of 2048"):
        lm.generate_until([wanted])


def test_importing_softeval_lmeval_is_light() -> None:
    code = (
        "import sys, softeval.lmeval; softeval.lmeval.register_when_imported();"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "lines",
    [
        ["register_when_imported()", "import lm_eval"],
        ["import lm_eval", "register_when_imported()"],
        pytest.param(["import lm_eval.models", "register_when_imported()"], marks=pytest.mark.slow),
        pytest.param(
            ["register_when_imported()", "register_when_imported()", "register()", "register()"],
            marks=pytest.mark.slow,
        ),
        ["register()", "import lm_eval.models", "register_when_imported()"],
    ],
    ids=["before", "after", "after models", "twice", "both"],
)
def test_the_model_is_known_whatever_is_imported_first(lines: list[str]) -> None:
    code = "\n".join(
        [
            "from softeval.lmeval import register, register_when_imported",
            *lines,
            "import sys, lm_eval.api.registry as r",
            "assert 'torch' not in sys.modules",
            "try: r.get_model('no such model')",
            "except ValueError as error: print(error)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.partition("Supported model names: ")[2].strip().split(", ")
    assert {"softeval", "hf", "dummy"} <= set(names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CUDA devices here; use --device auto or cpu"):
        SoftEvalLM(save_lm(tmp_path), device="cuda:0")


@pytest.mark.parametrize(("seen", "wanted"), [(8, "cuda:3"), (1, "cuda:0"), (0, "auto")])
def test_a_process_takes_the_gpu_that_accelerate_gives_it(
    monkeypatch: pytest.MonkeyPatch, seen: int, wanted: str
) -> None:
    """Also where a launcher shows each process its own GPU alone, as Slurm can."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert device_here("auto") == wanted
    assert device_here("cuda:5") == "cuda:5"


def test_every_pitfall_of_the_documentation_names_tests_that_exist() -> None:
    root = Path(__file__).parent
    table = (root.parent / "docs" / "lm-eval.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    source = "".join(path.read_text(encoding="utf-8") for path in root.glob("test_*.py"))
    for number, row in rows:
        named = re.findall(r"`(test_\w+|tests/test_\w+\.py)`", row)
        assert named, number
        for name in named:
            assert f"def {name}(" in source or (root.parent / name).is_file(), name
