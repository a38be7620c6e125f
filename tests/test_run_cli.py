"""`softeval run`, through the command line and from Python, in this process.

The checkpoint is the bundled one, with few questions.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import SMALL, Ended

from softeval import evaluate, load_run
from softeval.model import BUNDLED_CHECKPOINT
from softeval.modes import ALL
from softeval.records import SCHEMA_VERSION
from softeval.runs import rundir
from softeval.runs.journal import Journal
from softeval.runs.run import Run
from softeval.runs.tables import prompt_hash
from softeval.scoring.grading import RULES
from softeval.scoring.judge import scorer

pytest_plugins = ("command_line_fixtures",)


def small_run(
    softeval: Callable[..., Ended], name: str, *extra: str, mode: str = "soft_sample"
) -> Run:
    ended = softeval("run", *SMALL, "--modes", mode, "-o", name, *extra)
    assert ended.code == 0, ended.err
    return load_run(name)


# ---- plans


def test_a_dry_run_writes_nothing(softeval: Callable[..., Ended]) -> None:
    ended = softeval("run", "--dry-run", "--json", "--limit", "5", "-n", "4")
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    assert plan["samples"] == 5 * (3 * 4 + 3)
    assert plan["max_generated_tokens"] == plan["samples"] * (512 + 32)
    assert plan["config"]["num_samples"] == 4
    assert list(Path().iterdir()) == []


def test_a_dry_run_counts_what_a_run_makes(softeval: Callable[..., Ended], finished: Run) -> None:
    plan = json.loads(softeval("run", "--dry-run", "--json", "--limit", "3", "-n", "4").out)
    samples = finished.samples()
    assert plan["samples"] == len(samples)
    made = samples["n_cot_tokens"].sum() + samples["n_answer_tokens"].sum()
    assert made <= plan["max_generated_tokens"]
    assert plan["tasks"]["arithmetic"]["questions"] == finished.prompts().shape[0]


# ---- the run directory


def test_a_run_holds_every_sample_and_agrees_with_itself(finished: Run) -> None:
    samples = finished.samples()
    counts = samples.groupby("mode").size().to_dict()
    assert counts == {mode: 3 if mode.endswith("greedy") else 12 for mode in ALL}
    assert finished.complete and finished.info["counts"]["missing"] == 0
    assert finished.info["counts"]["rows"]["samples"] == len(samples)
    prompts = finished.prompts().set_index("doc_id")
    assert samples["prompt_hash"].tolist() == [
        prompt_hash(prompts.loc[doc, "prompt"]) for doc in samples["doc_id"]
    ]
    assert all(samples["n_cot_tokens"] > 0)
    assert len(finished.positions()) == samples["n_cot_tokens"].sum()
    assert {path.name for path in finished.path.iterdir()} == {
        *(f"{name}.parquet" for name in ("samples", "positions", "prompts", "tokens")),
        "likelihoods.parquet",
        "run.json",
        "results.json",
        "config.yaml",
    }


def test_the_record_says_with_what(finished: Run) -> None:
    info = finished.info
    assert info["status"] == "complete" and info["schema_version"] == SCHEMA_VERSION
    assert len(info["model"]["weights_hash"]) == 64
    assert info["model"]["self_check"] in ("passed", "cached")
    assert info["model"]["batch_invariant"] is True
    assert {m["name"]: m["facts"] for m in info["modes"]}["hard_greedy"] == {}
    soft = next(m for m in info["modes"] if m["name"] == "soft_sample")
    assert soft["facts"]["sigma"] == pytest.approx(0.33 * info["model"]["embedding_rms"])
    assert info["datasets"][0]["origin"] == "bundled" and info["datasets"][0]["rows"] > 3
    assert info["config"]["max_cot_tokens"] == 60
    assert "torch" in info["versions"] and "math-verify" in info["scorer"]
    assert info["scorer"]["rules"] == f"softeval {RULES}"
    assert None not in finished.samples()["other_correct"].tolist()


def test_results_are_lm_evals_and_agree_with_the_scores(finished: Run) -> None:
    from lm_eval.utils import make_table

    results = json.loads((finished.path / "results.json").read_text())
    for key in ("results", "groups", "configs", "versions", "n-shot", "higher_is_better"):
        assert key in results
    for key in ("n-samples", "config", "git_hash", "date", "lm_eval_version"):
        assert key in results
    table = make_table(results)
    for row in finished.scores().to_dict("records"):
        entry = results["results"][f"arithmetic@{row['mode']}"]
        assert entry[f"pass@{row['k']},none"] == pytest.approx(row["value"])
        assert f"arithmetic@{row['mode']}" in table
    assert results["results"]["arithmetic@soft_sample"]["pass@1_stderr,none"] >= 0
    assert results["n-samples"]["arithmetic@soft_sample"]["effective"] == 3


@pytest.mark.slow
def test_the_written_configuration_repeats_the_run(
    softeval: Callable[..., Ended], finished: Run
) -> None:
    ended = softeval("run", "-C", finished.path / "config.yaml", "-o", "again", "--quiet")
    assert ended.code == 0, ended.err
    again = load_run("again")
    assert again.info["identity"] == finished.info["identity"]
    ours, theirs = (r.samples().drop(columns="seconds") for r in (again, finished))
    assert ours.equals(theirs)


@pytest.mark.slow
def test_batch_size_changes_no_sample(softeval: Callable[..., Ended]) -> None:
    one = small_run(softeval, "one", "--batch-size", "1").samples().drop(columns="seconds")
    many = small_run(softeval, "many", "--batch-size", "64").samples().drop(columns="seconds")
    assert one.equals(many)


# ---- every option changes what it says


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The small run of a mode with no option changed, made once."""
    folder = tmp_path_factory.mktemp("base")

    @cache
    def make(mode: str) -> Run:
        options = {"limit": 2, "num_samples": 2, "max_cot_tokens": 40, "device": "cpu"}
        return evaluate(modes=[mode], output_path=str(folder / mode), **options)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "extra"),
    [
        ("hard_sample", ["--seed", "1"]),
        ("hard_sample", ["--temperature", "3.0"]),
        ("soft_sample", ["--noise-scale", "2.0"]),
        ("soft_sample", ["--noise_norm", "vector"]),
        ("soft_sample", ["--logits-dtype", "bfloat16"]),
        ("soft_sample", ["--dtype", "bfloat16"]),
        ("hard_greedy", ["--max-cot-tokens", "3"]),
        ("hard_greedy", ["--max-answer-tokens", "1"]),
    ],
)
def test_options_change_the_samples(
    softeval: Callable[..., Ended], base_run: Callable[[str], Run], mode: str, extra: list[str]
) -> None:
    columns = ["entropy", "mode_entropy", "shadow_id"]
    base, changed = base_run(mode), small_run(softeval, "changed", *extra, mode=mode)
    same_text = base.samples()["answer_text"].equals(changed.samples()["answer_text"])
    same_positions = base.positions(columns).equals(changed.positions(columns))
    assert not (same_text and same_positions)
    assert base.info["identity"] != changed.info["identity"]


@pytest.mark.slow
def test_options_change_the_counts(softeval: Callable[..., Ended]) -> None:
    assert len(small_run(softeval, "a", "--limit", "3").prompts()) == 3
    assert len(small_run(softeval, "b", "--max_samples", "1").prompts()) == 1
    whole = small_run(softeval, "c", "--limit", "0.01", mode="hard_greedy")
    assert len(whole.prompts()) == np.ceil(0.01 * whole.info["datasets"][0]["rows"])
    more = small_run(softeval, "d", "--num_samples", "3", "--pass-at", "1,3")
    assert len(more.samples()) == 6
    assert more.scores()["k"].tolist() == [1, 3]
    assert len(more.mixtures()) == 5 * (more.positions()["sample"] == 0).sum()
    assert len(small_run(softeval, "e", "--record-top", "0").mixtures()) == 0


def test_environment_below_command_line_above_file(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("run.yaml").write_text("limit: 7\nseed: 3\nnum_samples: 9\n")
    monkeypatch.setenv("SOFTEVAL_RUN_LIMIT", "5")
    monkeypatch.setenv("SOFTEVAL_RUN_MODES", "soft_sample,hard_greedy")
    plan = softeval("run", "--dry-run", "--json", "--config", "run.yaml", "-n", "2").out
    config = json.loads(plan)["config"]
    assert (config["limit"], config["seed"], config["num_samples"]) == (5, 3, 2)
    assert list(config["modes"]) == ["soft_sample", "hard_greedy"]


@pytest.mark.slow
def test_the_chat_template_is_applied(softeval: Callable[..., Ended]) -> None:
    copy = shutil.copytree(BUNDLED_CHECKPOINT, "with-template")
    settings = json.loads((Path(copy) / "tokenizer_config.json").read_text())
    settings["chat_template"] = "User: {{ messages[0]['content'] }} Assistant:"
    (Path(copy) / "tokenizer_config.json").write_text(json.dumps(settings))
    options = ["--model", "with-template", "--protocol", "paper", "--apply-chat-template"]
    run = small_run(softeval, "templated", *options, mode="hard_greedy")
    plain = small_run(softeval, "plain", "--model", "with-template", mode="hard_greedy")
    ours, theirs = run.prompts()["prompt"], plain.prompts()["prompt"]
    assert ours.tolist() == [f"User: {text} Assistant:" for text in theirs]


def test_the_rest_reaches_the_loader(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    from softeval.model import checkpoint, language_model

    asked: dict[str, Any] = {}
    read, load = checkpoint.read_checkpoint, language_model.load_checkpoint

    def reading(path: str, **options: Any) -> Any:
        asked.update(options, path=path)
        return read(path)

    def loading(found: Any, dtype: Any, device: Any, *further: Any) -> Any:
        asked.update(device=device)
        return load(found, dtype, device, *further)

    monkeypatch.setattr(checkpoint, "read_checkpoint", reading)
    monkeypatch.setattr(language_model, "load_checkpoint", loading)
    model = BUNDLED_CHECKPOINT
    extra = ["--model-args", f"pretrained={model},revision=v1", "--trust-remote-code"]
    small_run(softeval, "run", *extra, mode="hard_greedy")
    assert asked["path"] == model and asked["revision"] == "v1"
    assert asked["trust_remote_code"] is True and asked["device"] == "cpu"


def test_local_data_and_log_likelihoods(softeval: Callable[..., Ended]) -> None:
    Path("data").mkdir()
    choices = [{"text": ["one", "two", "three"], "label": ["A", "B", "C"]}] * 2
    rows = [
        {"question": f"which {i}", "choices": c, "answerKey": "B"} for i, c in enumerate(choices)
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    (Path("data") / "arc_easy_test.jsonl").write_text(lines + "\n")
    ended = softeval(
        "run", *SMALL, "--tasks", "arc_easy,arc_easy_cot", "--data-dir", "data", "--json",
        "--modes", "hard_greedy,soft_sample", "-o", "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    run = load_run(result["path"])
    likelihoods = run.likelihoods()
    assert likelihoods["doc_id"].tolist() == [0, 1] and set(likelihoods["target"]) == {1}
    assert all(likelihoods["nll"] > 0)
    scores = {(s["task"], s["mode"], s["metric"]): s["value"] for s in result["scores"]}
    entry = json.loads((run.path / "results.json").read_text())["results"]
    assert entry["arc_easy"]["acc,none"] == scores["arc_easy", "", "accuracy"]
    assert entry["arc_easy"]["nll_per_token,none"] == pytest.approx(
        scores["arc_easy", "", "nll_per_token"]
    )
    assert "arc_easy_cot@soft_sample" in entry and "arc_easy@soft_sample" not in entry
    assert set(run.samples()["task"]) == {"arc_easy_cot"}


# ---- mistakes: one line, a remedy, exit code 2


def write_jsonl(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./absent"], "no checkpoint at ./absent"),
        (["--tasks", "arithmetics"], "unknown task 'arithmetics'; did you mean arithmetic?"),
        (["--modes", "softsample"], "unknown mode 'softsample'; did you mean soft_sample?"),
        (["--modes", "soft_sampel"], "did you mean soft_sample?"),
        (["--modes", "soft"], "did you mean soft_greedy or soft_sample or soft_thinking?"),
        (["--pass-at", "64"], "raise --num-samples"),
        (["--limit", "0"], "leaves no question"),
        (["--tasks", "gsm8k", "--data-dir", "absent"], "absent"),
        (["--tasks", "gsm8k", "--data-dir", "bad"], "answer"),
        (["-o", "file.txt"], "is a file"),
        (["-o", "foreign"], "not empty and not a run"),
        (["-o", "/proc/softeval/run"], "cannot write to /proc/softeval/run"),
        (["--config", "absent.yaml"], "cannot read --config"),
        (["--max-cot-tokens", "100000"], "lower --max-cot-tokens"),
        (
            ["--modes", "hard_greedy", "--noise-scale", "1"],
            "hard_greedy has no option 'noise_scale'",
        ),
        (["--nonsense"], "nonsense"),
        (["--num-samples", "x"], "--num-samples"),
        (["--dtype", "float31"], "--dtype 'float31'"),
    ],
)
def test_mistakes_are_one_line(
    softeval: Callable[..., Ended], arguments: list[str], message: str
) -> None:
    write_jsonl("bad/gsm8k_test.jsonl", [{"question": "no label"}])
    Path("file.txt").write_text("x")
    Path("foreign").mkdir()
    Path("foreign/notes.txt").write_text("x")
    ended = softeval("run", *SMALL, *arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not Path("runs").exists() or not list(Path("runs").glob("*/run.json"))


def test_broken_checkpoints(softeval: Callable[..., Ended]) -> None:
    Path("no-tokenizer").mkdir()
    shutil.copy(Path(BUNDLED_CHECKPOINT) / "config.json", "no-tokenizer")
    ended = softeval("run", *SMALL, "--model", "no-tokenizer")
    assert ended.code == 2 and "no tokenizer" in ended.err
    assert len(ended.err.strip().splitlines()) == 1


# ---- starting again


@pytest.mark.slow
def test_started_again_a_finished_run_is_shown(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = softeval("run", *SMALL, "--modes", "hard_sample")
    assert first.code == 0, first.err
    (folder,) = Path("runs").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    # Another day, another batch size: the same run.
    older = folder.rename(folder.with_name("2001-02-03" + folder.name[10:]))
    again = softeval("run", *SMALL, "--modes", "hard_sample", "--batch-size", "3")
    assert again.code == 0
    assert [path.name for path in Path("runs").iterdir()] == [older.name]
    assert {path.name: path.read_bytes() for path in older.iterdir()} == before
    assert again.out.splitlines()[:-1] == first.out.splitlines()[:-1]


@pytest.mark.slow
def test_other_arguments_are_refused_and_overwrite_starts_anew(
    softeval: Callable[..., Ended],
) -> None:
    small_run(softeval, "run", mode="hard_sample")
    refused = softeval("run", *SMALL, "--modes", "hard_sample", "-o", "run", "--seed", "5")
    assert refused.code == 2
    assert "seed: 0 there, 5 now" in refused.err
    assert "--overwrite" in refused.err and "--output-path" in refused.err
    assert "num_samples" not in refused.err
    assert load_run("run").info["config"]["seed"] == 0
    new = small_run(softeval, "run", "--seed", "5", "--overwrite", mode="hard_sample")
    assert new.info["config"]["seed"] == 5


@pytest.mark.slow
def test_the_rules_of_a_run_are_asked_for_recorded_and_not_mixed(
    softeval: Callable[..., Ended],
) -> None:
    run = small_run(softeval, "run", "--scorer", "math-verify", mode="hard_sample")
    assert run.info["scorer"]["rules"] == "math-verify"
    refused = softeval("run", *SMALL, "--modes", "hard_sample", "-o", "run")
    assert refused.code == 2 and "softeval score run --scorer softeval" in refused.err
    assert softeval("score", "run").code == 0
    assert load_run("run").info["scorer"]["rules"] == "math-verify"
    assert softeval("score", "run", "--scorer", "softeval").code == 0
    assert load_run("run").info["scorer"]["rules"] == f"softeval {RULES}"
    assert small_run(softeval, "run", mode="hard_sample").info["status"] == "complete"


@pytest.mark.slow
def test_a_mistake_with_overwrite_costs_nothing(softeval: Callable[..., Ended]) -> None:
    small_run(softeval, "run", mode="hard_greedy")
    shutil.copytree(BUNDLED_CHECKPOINT, "broken")
    Path("broken/model.safetensors").write_bytes(b"no weights")
    ended = softeval("run", *SMALL, "--model", "broken", "-o", "run", "--overwrite")
    assert ended.code == 2, ended.err
    assert load_run("run").complete and len(load_run("run").samples()) == 2


@pytest.mark.slow
def test_two_calls_at_once_are_kept_apart(softeval: Callable[..., Ended]) -> None:
    small_run(softeval, "run", mode="hard_greedy")
    rundir.write_record(Path("run"), rundir.read_record(Path("run")) | {"status": "running"})
    Path("run/shards").mkdir()
    code = (
        "from pathlib import Path; from softeval.runs.journal import Journal; import sys\n"
        "journal = Journal(Path('run/shards')); print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        for extra in ([], ["--overwrite"]):
            ended = softeval("run", *SMALL, "--modes", "hard_greedy", "-o", "run", *extra)
            assert ended.code == 2 and "another process is writing" in ended.err
        other.communicate()
    assert len(load_run("run").samples()) == 2


@pytest.mark.slow
def test_another_checkpoint_is_another_run(softeval: Callable[..., Ended]) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(BUNDLED_CHECKPOINT, "model")
    small_run(softeval, "run", "--model", "model", mode="hard_greedy")
    weights = load_file("model/model.safetensors")
    name = min(weights)
    weights[name] = weights[name] * 2
    save_file(weights, "model/model.safetensors", metadata={"format": "pt"})
    ended = softeval("run", *SMALL, "--model", "model", "--modes", "hard_greedy", "-o", "run")
    assert ended.code == 2 and "weights" in ended.err


@pytest.mark.slow
def test_a_failing_cell_costs_no_other(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    from softeval.decoding.decoder import Decoder

    real = Decoder.run

    def failing(self: Decoder, questions: Any) -> Any:
        if self.mode.name == "hard_sample":
            raise RuntimeError("the accelerator fell over")
        return real(self, questions)

    monkeypatch.setattr(Decoder, "run", failing)
    arguments = ["run", *SMALL, "--modes", "hard_greedy,hard_sample,soft_greedy", "-o", "run"]
    ended = softeval(*arguments)
    assert ended.code == 3
    assert "4 samples are missing" in ended.err
    partial = load_run("run")
    assert partial.info["status"] == "partial" and not partial.complete
    assert "fell over" in partial.info["failures"]["arithmetic@hard_sample"]
    assert set(partial.samples()["mode"]) == {"hard_greedy", "soft_greedy"}
    monkeypatch.setattr(Decoder, "run", real)
    assert softeval(*arguments).code == 0
    whole = small_run(softeval, "whole", mode="hard_greedy,hard_sample,soft_greedy")
    ours, theirs = (r.samples().drop(columns="seconds") for r in (load_run("run"), whole))
    assert ours.equals(theirs)
    assert load_run("run").info["failures"] == {}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_says_how_to_go_on(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    from softeval.runs.journal import Journal as Shards

    added: list[object] = []
    real = Shards.add

    def add(self: Shards, generation: Any, prompt: str) -> None:
        if len(added) == 2:
            signal.raise_signal(number)
        added.append(generation)
        real(self, generation, prompt)

    monkeypatch.setattr(Shards, "add", add)
    ended = softeval("run", *SMALL, "--modes", "hard_sample", "-o", "run")
    assert ended.code == code
    assert ended.err.splitlines()[-1] == "softeval: interrupted; the same command continues"
    assert "Traceback" not in ended.err
    assert load_run("run").info["status"] == "partial"
    journal = Journal(Path("run/shards"))
    assert len(journal.names()) == 2
    journal.close()


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_finished_samples(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    lines: list[int] = []

    def write(fd: int, data: bytes) -> int:
        if data.startswith(b'{"kind"'):
            if len(lines) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            lines.append(len(data))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    ended = softeval("run", *SMALL, "--modes", "hard_sample", "-o", "run")
    assert ended.code == 2
    assert "No space left on device" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    monkeypatch.setattr(os, "write", real)
    assert softeval("run", *SMALL, "--modes", "hard_sample", "-o", "run").code == 0
    whole = small_run(softeval, "whole", mode="hard_sample")
    ours, theirs = (r.samples().drop(columns="seconds") for r in (load_run("run"), whole))
    assert ours.equals(theirs)


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    def inside(script: str) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).resolve().parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root), "TQDM_DISABLE": "1"}
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", script],
            capture_output=True, check=False, text=True, cwd=tmp_path, env=environment,
        )  # fmt: skip

    (tmp_path / "disk").mkdir()
    if shutil.which("unshare") is None or inside("mount -t tmpfs tmpfs disk").returncode:
        pytest.skip("this system lets no user mount a small disk")
    options = ["run", "-o", "disk/run", "--limit", "4", "-n", "16", "--modes", "soft_sample"]
    code = f"""
import os
from softeval.cli.main import run
print("first", run({options + SMALL[4:]}), flush=True)
os.system("wc -l < disk/run/shards/rank-0000.jsonl; mount -o remount,size=40m disk")
print("second", run({options + SMALL[4:]}))
"""
    (tmp_path / "twice.py").write_text(code)
    done = inside(f"mount -t tmpfs -o size=72k tmpfs disk && {sys.executable} twice.py")
    lines = done.stdout.splitlines()
    assert "first 2" in lines, done.stderr
    assert int(lines[lines.index("first 2") + 1]) > 10
    assert "second 0" in lines, done.stderr
    assert done.stderr.count("No space left on device") == 1
    assert "Traceback" not in done.stderr


# ---- Python


def test_evaluate_takes_a_loaded_model(elsewhere: None) -> None:
    from softeval import load_model

    lm = load_model(device="cpu")
    judged_before = sum(scorer().counts.values())
    run = evaluate(
        lm=lm, limit=2, num_samples=2, max_cot_tokens=40, modes=["hard_sample"], output_path="run"
    )
    assert len(run.samples()) == 4
    assert sum(scorer().counts.values()) == judged_before + 4, "each sample is judged once"
    again = evaluate(
        limit=2, num_samples=2, max_cot_tokens=40, modes="hard_sample", output_path="x"
    )
    assert again.info["identity"] == run.info["identity"]
    assert again.samples().drop(columns="seconds").equals(run.samples().drop(columns="seconds"))


@pytest.mark.slow
def test_the_default_cap_fits_the_context(softeval: Callable[..., Ended]) -> None:
    copy = Path(shutil.copytree(BUNDLED_CHECKPOINT, "short"))
    settings = json.loads((copy / "config.json").read_text())
    run = small_run(softeval, "probe", mode="hard_greedy")
    longest = max(len(ids) for ids in _prompt_ids(run))
    settings["max_position_embeddings"] = longest + 150
    (copy / "config.json").write_text(json.dumps(settings))
    arguments = ["run", "--model", "short", "--limit", "2", "--modes", "hard_greedy", "-q"]
    assert softeval(*arguments, "-o", "fitted").code == 0
    cap = load_run("fitted").info["config"]["max_cot_tokens"]
    assert 64 <= cap < 118
    refused = softeval(*arguments, "--max-cot-tokens", str(cap + 1), "-o", "refused")
    assert refused.code == 2 and f"lower --max-cot-tokens to at most {cap}" in refused.err
    assert softeval(*arguments, "--max-cot-tokens", str(cap), "-o", "exact").code == 0


@pytest.mark.slow
def test_a_trained_checkpoint_says_how(softeval: Callable[..., Ended]) -> None:
    shutil.copytree(BUNDLED_CHECKPOINT, "trained")
    training = {"method": "soft", "dataset": "arithmetic", "train_seed": 3}
    Path("trained/softeval_training.json").write_text(json.dumps(training))
    run = small_run(softeval, "run", "--model", "trained", mode="hard_greedy")
    assert run.info["training"] == training
    Path("trained/softeval_training.json").write_text("{")
    ended = softeval("run", *SMALL, "--model", "trained", "-o", "other")
    assert ended.code == 2 and "softeval_training.json cannot be read" in ended.err


def _prompt_ids(run: Run) -> list[list[int]]:
    from softeval import load_model

    tokenizer = load_model(device="cpu").tokenizer
    return [tokenizer.encode(text) for text in run.prompts()["prompt"]]


# ---- contrasts declared in advance


@pytest.mark.slow
def test_primary_contrasts_are_declared_once_and_outside_the_identity(
    softeval: Callable[..., Ended],
) -> None:
    from softeval.reports.contrasts import find_comparisons
    from softeval.reports.measured.arms import measure

    declared = "soft_sample:hard_sample@2"
    more = ("--modes", "soft_sample,hard_sample", "-o", "declared")
    first = softeval("run", *SMALL, *more, "--primary", declared)
    assert first.code == 0, first.err
    info = load_run("declared").info
    assert info["config"]["primary"] == [declared] and "primary" not in info["identity"]
    again = softeval("run", *SMALL, *more)
    assert again.code == 0, again.err
    late = softeval("run", *SMALL, *more, "--primary", "soft_sample:hard_sample@1")
    assert late.code == 2 and "cannot be declared now" in late.err
    found = find_comparisons(measure([(None, "declared")], positions=False))
    primary = [(c.metric.k, c.origin) for c in found if c.primary]
    assert primary == [(2, f"declared in advance, {info['started'][:10]}")]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_report_of_an_interrupted_run_says_how_to_go_on(
    softeval: Callable[..., Ended], finished: Run, tmp_path: Path
) -> None:
    from softeval.reports.measured.arms import measure
    from softeval.reports.notes import unfinished_notes

    folder = tmp_path / "stopped"
    (folder / "shards").mkdir(parents=True)
    lines = ['{"kind": "prompt"}', *['{"kind": "generation"}'] * 7, '{"kind": "generat']
    (folder / "shards" / "rank-0000.jsonl").write_text("\n".join(lines))
    record = {**finished.info, "status": "partial", "counts": {}, "command": "softeval run -n 4"}
    record["config"] = {**record["config"], "limit": 3}
    (folder / "run.json").write_text(json.dumps(record))
    (first, *_) = unfinished_notes(measure([(None, folder)]))
    asked = 3 * (3 * 4 + 3)
    assert first == (
        f"stopped is not finished: 7 of {asked} samples so far and no table yet; the same command"
        " continues it (softeval run -n 4)."
    )
    Path("report.html").write_text("an earlier page")
    alone = softeval("report", str(folder))
    assert alone.code == 2 and first in alone.err and alone.err.count("\n") == 1
    assert Path("report.html").read_text() == "an earlier page"
    ended = softeval("report", str(folder), f"done={finished.path}", "-o", "both.html")
    assert ended.code == 0, ended.err
    page = Path("both.html").read_text()
    assert first in page and "--overwrite" not in page and "no generative task" not in page
