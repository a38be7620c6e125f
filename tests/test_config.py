"""The configuration: precedence, limits, and errors that name the remedy."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softeval.errors import UserError
from softeval.runs.cells import question_count
from softeval.runs.config import RunConfig, make_config, parse_contrast


def error_of(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        make_config(options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_field_is_documented_and_has_a_panel() -> None:
    for name, field in RunConfig.model_fields.items():
        assert field.description and field.description.endswith("."), name
        assert isinstance(field.json_schema_extra, dict) and field.json_schema_extra["panel"], name


def test_explicit_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("num-samples: 8\nseed: 5\ntasks: [gsm8k, math500]\nlimit: 0.5\n")
    config = make_config({"seed": 7}, file)
    assert config.seed == 7
    assert config.num_samples == 8
    assert config.tasks == ("gsm8k", "math500")
    assert config.limit == 0.5
    assert config.limits.max_answer_tokens == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("num_sample: 3", "unknown key 'num_sample'; did you mean num_samples?"),
        ("zzz: 3", "unknown key 'zzz'; softeval run --help"),
        ("- a\n- b", "must hold `name: value` lines"),
        ("a: [", "is no YAML"),
        ("num_samples: many", "--num-samples 'many'"),
    ],
)
def test_a_bad_file_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        make_config({}, file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read --config"):
        make_config({}, tmp_path / "absent.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("")
    assert make_config({}, file) == make_config({})


@pytest.mark.parametrize("value", ["a,b,a", ["a,b"], ["a", "b"], [" a , b "]])
def test_lists_come_as_commas_or_repeats(value: Any) -> None:
    assert make_config({"tasks": value}).tasks == ("a", "b")


def test_modes_take_both_spellings() -> None:
    assert make_config({"modes": "soft-sample,hard_greedy"}).modes == ("soft_sample", "hard_greedy")


@pytest.mark.parametrize("limit", [0, "0", -1, "-2", "0.0", float("nan")])
def test_a_limit_that_leaves_nothing(limit: Any) -> None:
    assert "leaves no question" in error_of(limit=limit)


def test_a_limit_is_a_number_or_a_fraction() -> None:
    assert make_config({"limit": "4"}).limit == 4
    assert make_config({"limit": "0.25"}).limit == 0.25
    assert make_config({"limit": 3.0}).limit == 3
    assert "whole number, or a fraction" in error_of(limit="2.5")


@given(st.integers(1, 10_000), st.integers(1, 20_000) | st.floats(1e-6, 1, exclude_max=True))
def test_a_limit_never_gives_nothing_or_too_much(available: int, limit: float) -> None:
    count = question_count(available, limit)
    assert 1 <= count <= available
    assert question_count(available, None) == available
    if limit < 1:
        assert count - 1 < available * limit <= count


def test_k_above_n_names_both_flags() -> None:
    message = error_of(pass_at="1,64", num_samples=8)
    assert "--pass-at 64" in message and "--num-samples (now 8)" in message


def test_default_ks_are_the_powers_of_two() -> None:
    assert make_config({}).ks(32) == (1, 2, 4, 8, 16, 32)
    assert make_config({}).ks(5) == (1, 2, 4)
    assert make_config({}).ks(1) == (1,)
    assert make_config({"pass_at": "4,1"}).ks(32) == (1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "--num-samples 0"),
        ({"seed": -1}, "--seed -1"),
        ({"max_cot_tokens": 0}, "--max-cot-tokens 0"),
        ({"batch_size": 0}, "--batch-size: 0 must be auto or at least 1"),
        ({"batch_size": "big"}, "--batch-size: 'big' must be auto or a whole number"),
        ({"dtype": "float31"}, "--dtype 'float31'"),
        ({"noise_norm": "l2"}, "--noise-norm 'l2'"),
        ({"tasks": ","}, "--tasks: names nothing"),
        ({"taks": "a"}, "unknown option 'taks'; did you mean tasks?"),
    ],
)
def test_bad_values_name_their_flag(options: dict[str, Any], message: str) -> None:
    assert message in error_of(**options)


def test_model_args_are_those_of_lm_eval() -> None:
    config = make_config({"model": "hf"}, model_args="pretrained=org/name,dtype=bfloat16")
    assert config.model == "org/name" and config.dtype == "bfloat16"
    assert make_config({}, model_args="trust_remote_code=True").trust_remote_code is True
    with pytest.raises(UserError, match="did you mean pretrained"):
        make_config({}, model_args="pretraned=x")
    with pytest.raises(UserError, match="give only one"):
        make_config({"model": "a"}, model_args="pretrained=b")


def test_contrasts_are_declared_in_either_form():
    given = "soft_sample:hard_sample@8,gsm8k/soft-hard:hard-greedy@1"
    config = make_config({"primary": given, "tasks": "gsm8k"})
    assert config.primary == tuple(given.split(","))
    assert parse_contrast(config.primary[0]) == (None, "soft_sample", "hard_sample", 8)
    assert parse_contrast(config.primary[1]) == ("gsm8k", "soft-hard", "hard_greedy", 1)
    assert make_config({}).primary is None


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("soft-hard", "--primary 'soft-hard': write it as"),
        ("soft-hard:sampled@4", "sampled is not among --modes"),
        ("soft_sample:hard_greedy@1", "hard_greedy is not among --modes"),
        ("fuzzy_sample:hard_sample@4", "fuzzy_sample is not among --modes"),
        ("soft-hard:hard_sample@16", "k is 1 to 8 there"),
        ("soft-hard:hard_sample@0", "k is 1 to 8 there"),
    ],
)
def test_a_contrast_that_the_run_cannot_give_is_refused(text, blamed):
    modes = ["hard_sample", "soft_sample"]
    assert blamed in error_of(primary=text, num_samples=8, modes=modes)


def test_the_call_from_python_completes_every_option() -> None:
    from softeval import evaluate

    names = set(inspect.signature(evaluate).parameters)
    assert names == RunConfig.model_fields.keys() | {"overwrite", "quiet", "lm"}
    with pytest.raises(UserError, match="num_sample"):
        evaluate(num_sample=2)
