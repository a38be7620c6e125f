"""Modes, tasks and questions chosen later, or one by one: the same samples as if asked at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from test_chat import interrupt, stop_after

import softeval
from softeval.errors import UserError
from softeval.model.language_model import BUNDLED_CHECKPOINT, load_model
from softeval.protocol import THINK
from softeval.reports.measured.arms import Arms, MeasuredRun
from softeval.reports.notes import notes
from softeval.runs import rundir
from softeval.runs.cells import load_cells
from softeval.runs.config import make_config
from softeval.runs.merge import merge
from softeval.runs.plan import make_plan
from softeval.runs.request import settle
from softeval.runs.rescore import rescore
from softeval.scoring.judge import scorer

LM = load_model(BUNDLED_CHECKPOINT, device="cpu")
Evaluated = Callable[..., softeval.Run]


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    """Runs with a second task of three questions, each into a directory of that name."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n}+{n}?", "answer": str(2 * n)} for n in (3, 4, 12)]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str, modes: str, tasks: str = "arithmetic", **options: Any) -> softeval.Run:
        how = {"num_samples": 2, "limit": 3, "max_cot_tokens": 20, "lm": LM} | options
        return softeval.evaluate(output_path=name, modes=modes, tasks=tasks, **how)

    return run


def asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration asks for, in whatever order, wherever it goes."""
    found = {name: value for name, value in config.items() if name != "output_path"}
    return found | {name: sorted(config[name]) for name in ("tasks", "modes")}


def assert_same(ours: softeval.Run, theirs: softeval.Run) -> None:
    for table in ("samples", "positions", "prompts", "tokens", "likelihoods"):
        one, other = (run.table_path(table) for run in (ours, theirs))
        if table == "samples":
            a, b = (pq.read_table(t).drop_columns(["seconds"]) for t in (one, other))
            assert a.equals(b)
        else:
            assert one.read_bytes() == other.read_bytes(), table
    a, b = (json.loads((run.path / "results.json").read_text()) for run in (ours, theirs))
    for name in ("results", "modes", "configs", "n-samples", "group_subtasks"):
        assert a[name] == b[name], name
    assert ours.info["identity"] == theirs.info["identity"]
    assert asked(ours.config) == asked(theirs.config)
    for run in (ours, theirs):
        told = yaml.safe_load((run.path / "config.yaml").read_text())
        assert asked(told) == asked(run.config)
    assert ours.info["counts"] == theirs.info["counts"] and ours.complete
    assert set(ours.modes) == set(theirs.modes) and set(ours.datasets()) == set(theirs.datasets())
    assert "kept" not in ours.info and not (ours.path / "shards").exists()


@pytest.mark.slow
def test_modes_and_tasks_are_added_to_a_finished_run(evaluated: Evaluated) -> None:
    evaluated("run", "soft_sample")
    evaluated("run", "hard_greedy")
    run = evaluated("run", "hard_greedy", "own.jsonl")
    whole = evaluated("whole", "soft_sample,hard_greedy", "arithmetic,own.jsonl")
    assert_same(run, whole)
    # What is there already is shown again, whatever part of it is asked for.
    assert evaluated("run", "soft_sample").info["finished"] == run.info["finished"]
    assert len(run.info["sessions"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 4])
def test_an_addition_that_was_stopped_goes_on(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    first = evaluated("run", "soft_sample")
    before = first.samples()
    with monkeypatch.context() as stopping:
        stop_after(stopping, samples, interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluated("run", "hard_sample,hard_greedy")
    partial = softeval.load_run("run")
    assert not partial.complete
    assert partial.samples()["seconds"].tolist() == before["seconds"].tolist()
    run = evaluated("run", "hard_greedy")  # goes on with all that was asked for
    assert_same(run, evaluated("whole", "soft_sample,hard_sample,hard_greedy"))
    kept = run.samples()[run.samples()["mode"] == "soft_sample"]
    assert kept["seconds"].tolist() == before["seconds"].tolist()


@pytest.mark.slow
def test_an_added_task_of_a_file_goes_on_by_its_own_fields(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ({"q": f"What is {n}+1?", "a": n + 1} for n in range(3))
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"question": "q", "answer": "{{ a }}"}
    evaluated("run", "hard_greedy")
    with monkeypatch.context() as stopping:
        stop_after(stopping, 1, interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluated("run", "hard_greedy", "mine.jsonl", **fields)
    whole = evaluated("whole", "hard_greedy", "arithmetic,mine.jsonl", **fields)
    assert_same(evaluated("run", "hard_greedy"), whole)


@pytest.mark.slow
def test_shards_of_a_chat_are_merged_and_grow(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    monkeypatch.setattr(LM.tokenizer, "chat_template", template)
    Path("plain").mkdir()  # of the name of a prompt
    how = {"protocol": "think", "prompt": "plain", "system_instruction": "Hi.", "num_fewshot": 1}
    for shard in ("2/2", "1/2"):
        evaluated("parts", "hard_greedy", shard=shard, **how)
        evaluated("parts", "soft_sample", shard=shard, **how)
    merge([Path("parts")], Path("run"))
    run = evaluated("run", "soft_greedy", **how)
    assert_same(run, evaluated("whole", "soft_greedy,soft_sample,hard_greedy", **how))
    assert run.config["prompt"] == "plain"


def test_what_would_change_samples_that_are_there_is_refused(evaluated: Evaluated) -> None:
    evaluated("run", "soft_sample")
    with pytest.raises(UserError, match=r"num_samples: 2 there, 3 now"):
        evaluated("run", "hard_sample", num_samples=3)
    with pytest.raises(UserError, match=r"modes.soft_sample.temperature: 0.5 there"):
        evaluated("run", "soft_greedy", temperature=0.7)
    with pytest.raises(UserError, match="judged by softeval; `softeval score run --scorer math"):
        evaluated("run", "hard_sample", scorer="math-verify")
    file = Path("run/run.json")
    record = json.loads(file.read_text())
    record["scorer"]["sympy"] = "0"
    del record["crc32"]
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="judged by another version of softeval"):
        evaluated("run", "hard_sample")


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("m/config.json", {"rms_norm_eps": 0.1}, "config"),
        ("m/generation_config.json", {"eos_token_id": [1, 2]}, "config"),
        ("modes.py", {"another": "code"}, "mode_source"),
    ],
)
def test_a_file_that_shapes_samples_may_not_change(
    evaluated: Evaluated, file: str, content: dict[str, Any], named: str
) -> None:
    shutil.copytree(BUNDLED_CHECKPOINT, "m")
    Path("modes.py").write_text("{}")
    how = {"lm": None, "model": "m", "limit": 1, "mode_file": "modes.py", "self_check": False}
    first = evaluated("run", "hard_greedy", **how)
    there = json.loads(Path(file).read_text()) if Path(file).exists() else {}
    Path(file).write_text(json.dumps(there | {"transformers_version": "0"}))
    if named == "config":  # what shapes no sample may change
        assert evaluated("run", "hard_greedy", **how).info == first.info
    Path(file).write_text(json.dumps(there | content))
    with pytest.raises(UserError, match=rf"other arguments \({named}: "):
        evaluated("run", "hard_greedy", **how)
    # An older run does not say what its files held.
    identity = {k: v for k, v in first.info["identity"].items() if k != named}
    rundir.write_record(first.path, {**first.info, "identity": identity})
    assert evaluated("run", "hard_greedy", **how).info["finished"] == first.info["finished"]


def test_the_plan_says_what_is_added(evaluated: Evaluated) -> None:
    evaluated("run", "soft_sample", lm=None)
    how = {"num_samples": 2, "limit": 3, "max_cot_tokens": 20, "output_path": "run"}
    assert make_plan(make_config(how | {"modes": "soft_sample"}))["run"].startswith("finished")
    plan = make_plan(make_config(how | {"modes": "hard_greedy"}))
    assert plan["run"] == "kept, and arithmetic@hard_greedy added"


@pytest.mark.slow
def test_questions_are_chosen_by_their_rows(evaluated: Evaluated) -> None:
    whole = evaluated("whole", "soft_sample", "own.jsonl")
    some = evaluated("docs", "soft_sample", "own.jsonl", limit=None, docs="2,0,2")
    wanted = whole.samples().query("doc_id != 1").drop(columns="seconds").reset_index(drop=True)
    assert some.samples().drop(columns="seconds").equals(wanted)
    assert some.info["identity"]["docs"] == {"own": [0, 2]}
    chosen = {"own": [1], "arithmetic": [5, 3]}
    Path("chosen.json").write_text(json.dumps(chosen))
    for name, samples in (("file", "chosen.json"), ("inline", json.dumps(chosen))):
        tasks = "own.jsonl,arithmetic"
        run = evaluated(name, "hard_greedy", tasks, limit=None, samples=samples)
        found = run.samples().groupby("task")["doc_id"].agg(list).to_dict()
        assert found == {"own": [1], "arithmetic": [3, 5]}
    plan = make_plan(make_config({"tasks": "own.jsonl", "docs": "0,2", "modes": "hard_greedy"}))
    assert plan["samples"] == 2


def identity(**options: Any) -> dict[str, Any]:
    """What a run of the second task would be held to."""
    given = {"tasks": "own.jsonl", "modes": "hard_greedy", "output_path": "nowhere"} | options
    config = make_config(given)
    return settle(config, load_cells(config, config.selected_modes()), LM).identity


def test_the_identity_holds_what_makes_samples_and_nothing_else(evaluated: Evaluated) -> None:
    spelt_out: list[dict[str, Any]] = [
        {"prompt": "paper", "protocol": "paper", "cot_stop": " The final answer is: "},
        {"system_instruction": "", "num_fewshot": 0, "max_cot_tokens": 512},
        {"max_answer_tokens": 32, "answer_prefix": "\\boxed{", "batch_size": 3},
    ]
    assert all(identity(**options) == identity() for options in spelt_out)
    chosen = identity(docs="2,0,00")
    assert chosen == identity(docs="0,2") == identity(samples='{"own": [2, 0, 2], "other": [9]}')
    others: list[dict[str, Any]] = [
        *({"docs": docs} for docs in ("0", "1", "0,1,2")),
        *({name: "x"} for name in ("cot_stop", "answer_prefix", "system_instruction")),
        *({name: 1} for name in ("num_fewshot", "seed", "limit", "record_top", "num_samples")),
        *({name: 9} for name in ("max_cot_tokens", "max_answer_tokens")),
        {"prompt": "plain"},
    ]
    found = [json.dumps(identity(**options), sort_keys=True) for options in ({}, *others)]
    assert len({*found, json.dumps(chosen, sort_keys=True)}) == len(found) + 1


@pytest.mark.parametrize("name", ["prompt", "cot_stop", "answer_prefix"])
def test_words_that_are_put_to_no_question_are_refused(evaluated: Evaluated, name: str) -> None:
    Path("rows.jsonl").write_text(json.dumps({"q": "Which?", "all": ["red", "blue"], "right": 1}))
    Path("choice.yaml").write_text(
        "task: choice\ndataset_path: rows.jsonl\nscoring: likelihood\n"
        "question: q\nchoices: all\nanswer: right\n"
    )
    scored = {"include_path": ".", "tasks": "choice"}
    with pytest.raises(
        UserError, match=f"--{name.replace('_', '-')} has no effect on tasks scored"
    ):
        identity(**scored, **{name: "plain"})
    assert identity(**scored)["tasks"].keys() == {"choice"}
    assert identity(**scored | {"tasks": "choice,own.jsonl", name: "plain"})["protocol"]


def test_a_run_grows_where_what_it_has_stays(evaluated: Evaluated) -> None:
    both, shown = "own.jsonl,arithmetic", {"num_fewshot": 1}
    small, large = identity(docs="0", **shown), identity(tasks=both, docs="0", **shown)
    assert not rundir.identity_differences(large, {"identity": small}, growing=True)
    apart = rundir.identity_differences(large, {"identity": small})
    assert [name for name, _, _ in apart] == ["tasks", "docs", "examples"]
    assert rundir.identity_differences(small, {"identity": large}, growing=True)
    other = identity(tasks=both, docs="1", **shown)
    apart = rundir.identity_differences(other, {"identity": small}, growing=True)
    assert apart == [("docs.own", [1], [0])]


def test_other_examples_make_another_run(evaluated: Evaluated) -> None:
    def asked(solution: str) -> dict[str, Any]:
        for split, told in (("test", "5"), ("train", solution)):
            rows = [{"question": f"{n}?", "answer": f"{told} #### {n}"} for n in range(4)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            Path(f"gsm8k_{split}.jsonl").write_text(text)
        return identity(tasks="gsm8k", data_dir=".", num_fewshot=2)

    one, other = asked("one"), asked("other")
    assert one.pop("examples") != other.pop("examples") and one == other


def test_a_report_says_how_and_what_a_run_was_asked() -> None:
    info = {
        "identity": {"docs": {"own": [0, 2]}},
        "config": {"limit": None},
        "datasets": [{"task": name, "name": name, "rows": 3} for name in ("own", "other")],
        "protocol": asdict(replace(THINK, cot_stop="x" * 99)),
    }
    run, plain = (MeasuredRun(Path("r"), told, {}, {}, {}, {}) for told in (info, {}))
    assert run.asked_questions("own") == 2 and run.asked_questions("other") == 3
    chosen, asked = notes(Arms((), (run,)))
    assert chosen == "r was asked questions chosen one by one (--docs or --samples)."
    assert asked.startswith("r was asked by the protocol think, cot_stop 'xx") and len(asked) < 120
    assert notes(Arms((), (plain,))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"docs": "3"}, "own has no question 3: 0 to 2 are there"),
        ({"docs": "-1"}, "--docs"),
        ({"docs": "1", "limit": 2}, "--limit and --docs choose questions; give only one"),
        ({"docs": "1", "samples": "{}"}, "give only one"),
        ({"predict_only": True, "push_to_hub": "me/x"}, "--predict-only has no scores"),
        ({"samples": "{}"}, "--samples names no questions of own"),
        ({"samples": "nowhere.json"}, "--samples nowhere.json cannot be read"),
        ({"samples": '{"own": "all"}'}, "cannot be read; give JSON such as"),
        ({"samples": '{"own": []}'}, "cannot be read; give JSON such as"),
    ],
)
def test_questions_that_are_not_there_are_refused(
    evaluated: Evaluated, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluated("run", "hard_greedy", "own.jsonl", **({"limit": None} | options))


def test_predictions_are_judged_later(evaluated: Evaluated) -> None:
    run = evaluated("later", "hard_greedy,soft_sample", predict_only=True)
    assert set(run.samples()["verdict"]) == {"not_judged"} and run.complete
    told = json.loads((run.path / "results.json").read_text())["results"]
    assert told["arithmetic@soft_sample"]["pass@1,none"] is None
    for use in (run.scores, lambda: run.compare(run), lambda: run.report("report.html")):
        with pytest.raises(UserError, match=r"not judged .*`softeval score later` does it"):
            use()
    assert evaluated("later", "hard_greedy,soft_sample", predict_only=True).info == run.info
    with pytest.raises(UserError, match="judged by nobody yet; `softeval score later"):
        evaluated("later", "hard_greedy,soft_sample")
    changed = rescore("later", scorer())
    now = evaluated("now", "hard_greedy,soft_sample")
    assert changed.kept is None and changed.gained == now.samples()["correct"].sum()
    later = softeval.load_run("later")
    assert later.scores().equals(now.scores())
    a, b = (r.samples().drop(columns="seconds") for r in (later, now))
    assert a.equals(b)
    for name in ("later", "now"):
        told = json.loads(Path(name, "results.json").read_text())["results"]
        assert told["arithmetic@soft_sample"]["pass@1,none"] is not None
    with pytest.raises(UserError, match="leave --predict-only out"):
        evaluated("now", "hard_greedy,soft_sample", predict_only=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "CUDA devices here"),
        ({"max_cot_tokens": 100_000}, "--max-cot-tokens 100000 exceeds the context of 2048"),
        ({"protocol": "think"}, "the tokenizer has no chat template"),
    ],
)
def test_a_dry_run_finds_what_a_run_would(options: dict[str, Any], message: str) -> None:
    """Also where the questions are on the hub."""
    with pytest.raises(UserError, match=message):
        make_plan(make_config({"tasks": "gsm8k"} | options))
    if "device" in options:
        with pytest.raises(UserError, match=message):
            make_plan(make_config({"model": "who/knows", "tasks": "gsm8k"} | options))
