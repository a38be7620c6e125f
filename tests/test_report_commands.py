"""`report`, `compare`, `score` and `notebook` as commands, and the figures in Python."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, mostly_slow
from report_runs import keep_documents, write_checkpoint, write_family, write_training

from softeval.errors import UserError
from softeval.reports.compare import compare_runs, comparison_frame
from softeval.reports.measured.cells import read_cells
from softeval.reports.notebook import write_notebook
from softeval.reports.plots import (
    plot_comparisons,
    plot_entropy,
    plot_kl,
    plot_out_of_domain,
    plot_pass_at_k,
)
from softeval.reports.sections.training import is_training, read_training
from softeval.runs import rundir
from softeval.runs.run import load_run
from softeval.statistics import pass_at_k
from softeval.statistics.paired import mcnemar


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_family(
        tmp_path_factory.mktemp("family"), ("base", "soft"), seeds=2, questions=16, samples=4,
        positions=6, likelihood_tasks=("arc",), kl=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def app():
    from softeval.cli.main import build_app

    return build_app()


def _run(app, *words):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.usefixtures("undrawn")
def test_report_writes_one_file(app, folders, tmp_path):
    output = tmp_path / "new" / "r.html"
    done = _run(app, "report", folders[1], "--output", output, "--title", "T", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"output": str(output), "bytes": output.stat().st_size}
    assert [p.name for p in output.parent.iterdir()] == ["r.html"]


@pytest.mark.slow
def test_report_names_what_is_wrong(app, folders, tmp_path):
    assert isinstance(_run(app, "report", tmp_path).exception, UserError)
    blocked = _run(app, "report", folders[0], "--output", folders[0] / "run.json" / "x.html")
    assert "give another --output" in str(blocked.exception)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(app, tmp_path, monkeypatch):
    def worked(*_args):
        raise AssertionError("the report was made first")

    monkeypatch.setattr("softeval.reports.page.build_report", worked)
    (tmp_path / "file").touch()
    for output in (tmp_path, tmp_path / "file" / "r.html"):
        refused = _run(app, "report", "run", "-o", output)
        assert isinstance(refused.exception, UserError), refused.exception
        assert "give a" in str(refused.exception)


def test_a_training_directory_alone_says_what_is_needed(app, tmp_path):
    training = write_training(tmp_path / "t")
    message = str(_run(app, "report", training, "-o", tmp_path / "r.html").exception)
    assert "training curves alone" in message and f"--model {training}/best" in message


def test_compare_names_an_unknown_task_or_mode(folders, tmp_path):
    with pytest.raises(UserError, match="mode 'hard_sampel' is not in A, which has hard_greedy"):
        compare_runs([folders[1]], [folders[0]], mode="hard_sampel")
    with pytest.raises(UserError, match="did you mean hard_sample"):
        compare_runs([folders[1]], [folders[0]], mode="hard_sampel")
    with pytest.raises(UserError, match="task 'gsm8k' is not in A, which has arithmetic, arc"):
        compare_runs([folders[1]], [folders[0]], task="gsm8k")
    few = write_checkpoint(
        tmp_path / "few", questions=4, samples=2, positions=4, modes=("hard_greedy",)
    )
    with pytest.raises(UserError, match="mode 'hard_sample' is not in B, which has hard_greedy"):
        compare_runs([folders[1]], [few], mode="hard_sample")


def test_compare_says_on_how_many_questions_it_stands(app, folders, tmp_path):
    other = write_checkpoint(tmp_path / "soft", "soft", 0, questions=16, samples=4, positions=10)
    keep_documents(other, 0, 12)
    printed = _run(app, "compare", other, folders[0], "--mode", "hard_sample").stdout
    assert printed.count("| 12 of 16 |") == 2
    assert "| 16 |" in _run(app, "compare", folders[1], folders[0], "--mode", "hard_sample").stdout


def test_compare_equals_the_statistics_on_the_files(folders):
    compared = [c for c in compare_runs([folders[1]], [folders[0]]) if c.metric.mode]
    found = {(c.metric.mode, c.metric.k): c for c in compared}
    a, b = (read_cells(load_run(f)) for f in (folders[1], folders[0]))
    for (mode, k), one in found.items():
        cells = a["arithmetic", mode], b["arithmetic", mode]
        x, y = (pass_at_k(c.n_M, c.c_M, [k])[:, 0] for c in cells)
        assert one.contrast.diff == pytest.approx((x - y).mean())
        assert (one.contrast.mean_a, one.contrast.mean_b) == (
            pytest.approx(x.mean()),
            pytest.approx(y.mean()),
        )
        if cells[0].mode.is_greedy:
            assert one.contrast.p == mcnemar(int((x > y).sum()), int((y > x).sum()))
        assert one.verdict.p >= one.contrast.p
        assert one.contrast.scope == "these checkpoints only"
    assert {("hard_sample", 1), ("hard_sample", 4), ("soft_greedy", 1)} <= found.keys()


@pytest.mark.parametrize("power", mostly_slow([0.8, 0.95], [0.95]))
def test_a_plan_detects_what_compare_detects_and_needs_more_for_less(app, folders, power):
    sides = f"{folders[1]},{folders[2]}", folders[0]

    def planned(difference: float):
        options = ("--difference", difference, "--power", power, "--json")
        return json.loads(_run(app, "plan", *sides, *options).stdout)

    easily, hardly = planned(50), planned(20)
    metrics = {(one["mode"], one["k"]): one for one in easily}
    for one in compare_runs(folders[1:3], [folders[0]]):
        if one.metric.mode:
            found = metrics[one.metric.mode, one.metric.k]
            assert found["detectable"] >= one.contrast.mde - 1e-9
            assert (found["seeds_a"], found["seeds_b"]) == (2, 1)
    for easy, hard in zip(easily, hardly, strict=True):
        for name in ("questions_needed", "seeds_needed"):
            assert hard[name] is None or easy[name] <= hard[name]
    assert easily != hardly


def test_a_run_under_way_is_named_and_not_its_tasks(app, folders, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    record = rundir.read_record(folders[0])
    rundir.write_record(begun, record | {"status": rundir.PARTIAL})
    failed = _run(app, "compare", folders[0], begun)
    assert isinstance(failed.exception, UserError)
    assert str(failed.exception) == f"nothing to compare yet in {begun}: finish what was begun"


def test_runs_that_never_differ_plan_nothing(app, folders):
    sides = folders[0], folders[0]
    options = ["--mode", "soft_greedy", "--power", 0.9, "-d", 3, "--json"]
    [record, *_] = json.loads(_run(app, "plan", *sides, *options).stdout)
    assert record["detectable"] is None and record["questions_needed"] is None
    printed = _run(app, "plan", *sides, "--mode", "soft_greedy", "-d", 30).stdout
    assert "–" in printed and "0.0" not in printed


def test_a_plan_is_a_table_of_what_is_needed(app, folders):
    printed = _run(app, "plan", folders[1], folders[0], "--mode", "hard_sample", "-d", 30).stdout
    assert "| arithmetic | hard sample pass@1 | 16 | 4 | 1 |" in printed
    assert "Needed to find 30 points" in printed
    failed = _run(app, "plan", folders[1], folders[0], "--task", "nope")
    assert failed.exit_code and "nope" in str(failed.exception)


def test_a_plan_counts_the_time_and_room_that_samples_took(app, folders):
    def planned(*sides):
        options = ("--mode", "hard_sample", "--k", 1, "-d", 30, "--json")
        [record] = json.loads(_run(app, "plan", *sides, *options).stdout)
        return record

    one, several = (
        planned(folders[1], folders[0]),
        planned(f"{folders[1]},{folders[2]}", folders[0]),
    )
    records = [rundir.read_record(folder) for folder in folders[:2]]
    seconds = sum(record["seconds"] for record in records)
    share = one["questions"] * 4 * 2 / sum(r["counts"]["rows"]["samples"] for r in records)
    assert one["cost"]["hours"] == pytest.approx(seconds * share / 3600)
    assert one["cost"]["bytes"] > 0
    needed = one["questions_needed_cost"]["hours"] / one["cost"]["hours"]
    assert needed == pytest.approx(one["questions_needed"] / one["questions"])
    assert several["seeds_needed_cost"]["hours"] == pytest.approx(
        several["cost"]["hours"] * (several["seeds_needed"] + 1) / 3
    )


def test_compare_of_seeds_speaks_of_seeds(folders):
    found = compare_runs(folders[1:], [folders[0]])
    assert all("over seeds" in one.contrast.scope for one in found)
    assert {one.metric.measure for one in found} == {"pass@k", "accuracy", "nll_per_token"}


def test_compare_with_itself_finds_nothing(folders):
    for one in compare_runs([folders[0]], [folders[0]]):
        assert one.contrast.diff == 0 and one.verdict.word != "better"


def test_compare_options_narrow_the_metrics(folders):
    found = compare_runs([folders[1]], [folders[0]], mode="hard_sample", ks=(2, 3))
    assert [(one.metric.mode, one.metric.k) for one in found] == [
        ("hard_sample", 2),
        ("hard_sample", 3),
    ]
    assert {c.metric.task for c in compare_runs([folders[1]], [folders[0]], task="arc")} == {"arc"}
    wide = compare_runs([folders[0]], [folders[0]], mode="hard_greedy", margin=0.9)
    narrow = compare_runs([folders[0]], [folders[0]], mode="hard_greedy", margin=0.001)
    assert [wide[0].verdict.word, narrow[0].verdict.word] == ["equivalent", "inconclusive"]


def test_the_margin_of_the_command_decides_what_is_equivalent(app, folders):
    for margin, word in ((90, "equivalent"), (0.1, "inconclusive")):
        asked = ("compare", folders[0], folders[0], "--mode", "hard_greedy", "--margin", margin)
        found = json.loads(_run(app, *asked, "--json").stdout)
        assert [one["verdict"] for one in found] == [word]


def test_compare_refuses_other_data(folders, tmp_path):
    data = [{"name": "arithmetic", "sha256": "other", "split": "test"}]
    other = write_checkpoint(
        tmp_path / "x", questions=4, samples=2, positions=6, record_changes={"datasets": data}
    )
    with pytest.raises(UserError, match="sha256"):
        compare_runs([folders[0]], [other])


def test_compare_refuses_two_methods_on_one_side(folders, tmp_path):
    hard = write_checkpoint(tmp_path / "hard", "hard", questions=16, samples=4, positions=6)
    with pytest.raises(UserError, match="A holds several methods"):
        compare_runs([hard, folders[1]], [folders[0]])


def test_compare_names_settings_that_differ(app, folders, tmp_path):
    config = {"max_cot_tokens": 16}
    other = write_checkpoint(
        tmp_path / "soft", "soft", questions=16, samples=4, positions=6,
        record_changes={"config": config},
    )  # fmt: skip
    printed = _run(app, "compare", other, folders[0]).stdout
    assert "max_cot_tokens: " in printed and "16 in soft" in printed
    assert "max_cot_tokens" not in _run(app, "compare", folders[1], folders[0]).stdout


def test_compare_says_why_there_is_nothing(folders, tmp_path):
    with pytest.raises(UserError, match="--k 64: arithmetic under hard_sample has 4 samples"):
        compare_runs([folders[1]], [folders[0]], mode="hard-sample", ks=(64,))
    one = write_checkpoint(tmp_path / "one", questions=1, samples=2, positions=4)
    with pytest.raises(UserError, match="two questions or more"):
        compare_runs([one], [one])


def test_compare_of_a_log_likelihood_task_names_its_margin(app, folders):
    printed = _run(app, "compare", folders[1], folders[0]).stdout
    assert "within ±2 points or ±0.02 nats" in printed
    narrow = _run(app, "compare", folders[1], folders[0], "--mode", "soft_sample").stdout
    assert "within ±2 points." in narrow


def test_compare_prints_a_table_and_json(app, folders):
    printed = _run(app, "compare", folders[1], folders[0], "--mode", "hard-sample")
    assert printed.exit_code == 0
    rows = [line for line in printed.stdout.splitlines() if line.startswith("| arithmetic")]
    assert len(rows) == 2 and "Scope: these checkpoints only." in printed.stdout
    seeds = f"{folders[1]},{folders[2]}"
    records = json.loads(_run(app, "compare", seeds, folders[0], "--json").stdout)
    assert all("over seeds" in record["scope"] for record in records)
    assert len(comparison_frame(compare_runs(folders[1:], [folders[0]]))) == len(records)


@pytest.mark.slow
def test_score_prints_what_changed(app, tmp_path):
    run = write_checkpoint(tmp_path / "run", questions=4, samples=2, positions=6)
    printed = _run(app, "score", run, "--json")
    assert json.loads(printed.stdout)["samples"] == 4 * (3 * 2 + 3)
    assert "0 now wrong" in _run(app, "score", run).stdout


def test_notebook_names_the_run_and_keeps_edits(app, folders, tmp_path):
    path = write_notebook(folders[0], tmp_path)
    notebook = json.loads(path.read_text())
    (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert str(folders[0]) in "".join(cell["source"])
    path.write_text("edited")
    assert write_notebook(folders[0], tmp_path) == path and path.read_text() == "edited"
    printed = _run(app, "notebook", folders[1], "--no-open")
    assert printed.exit_code == 0 and (folders[1] / "analysis.ipynb").is_file()
    with pytest.raises(UserError, match="not a run directory"):
        write_notebook(tmp_path)


def test_a_notebook_opens_its_run_from_any_folder(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    path = write_notebook(folders[0].name, tmp_path)
    assert str(folders[0].resolve()) in path.read_text(encoding="utf-8")


def test_a_notebook_of_another_run_is_not_taken_for_this_ones(folders, tmp_path):
    path = write_notebook(folders[0], tmp_path / "n.ipynb")
    assert write_notebook(folders[0], path) == path
    with pytest.raises(UserError, match="another run"):
        write_notebook(folders[1], path)
    with pytest.raises(UserError, match=r"ends in \.ipynb"):
        write_notebook(folders[0], tmp_path / "nobody")


RUNS = {
    "out of domain only": {"tasks": (), "likelihood_tasks": ("arc",)},
    "one mode": {"modes": ("hard_greedy",)},
    "one question": {"questions": 1, "samples": 1},
    "no positions": {},
    "nothing diagnosed": {"kl": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_no_run_stops_the_notebook(tmp_path, kind):
    options = {"questions": 3, "samples": 2, "positions": 5} | RUNS[kind]
    run = write_checkpoint(tmp_path / "run", **options)
    if kind == "no positions":
        (run / "positions.parquet").unlink()
    if kind == "nothing diagnosed":
        path = run / "kl.parquet"
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    notebook = json.loads(write_notebook(run).read_text())
    names: dict = {}
    for cell in (c for c in notebook["cells"] if c["cell_type"] == "code"):
        exec("".join(cell["source"]), names)  # noqa: S102
    assert names["run"].path == run


def test_the_shipped_notebook_holds_no_results_and_is_short():
    notebook = json.loads((ROOT / "reports" / "notebooks" / "analysis.ipynb").read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(notebook["cells"]) < 40
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)
    source = "\n".join("".join(c["source"]) for c in code)
    assert "softeval.reports" not in source and "_" + "context" not in source


@pytest.mark.slow
def test_the_notebook_runs_on_a_run(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    run = write_checkpoint(
        tmp_path / "run", questions=8, samples=2, positions=6, likelihood_tasks=("arc",), kl=True,
        modes=("hard_greedy", "hard_sample", "soft_sample"),
    )  # fmt: skip
    notebook = nbformat.read(write_notebook(run, tmp_path), 4)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = [o for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    images = [o for o in shown if "image/png" in o.data]
    assert len(images) == 8
    assert all(len(o.metadata["image/png"]["alt"]) > 12 for o in images)
    assert sum("text/html" in o.data for o in shown) >= 3


@pytest.mark.parametrize(
    "plot", mostly_slow([plot_pass_at_k, plot_kl, plot_comparisons, plot_out_of_domain], [plot_kl])
)
def test_figures_are_drawn_for_paths(folders, plot):
    assert plot(folders)._repr_png_()[0].startswith(b"\x89PNG")


def test_a_task_that_is_not_there_is_named(folders):
    for plot in (plot_kl, plot_comparisons, plot_pass_at_k, plot_entropy):
        with pytest.raises(UserError, match="'nope' is not among these: arithmetic"):
            plot(folders, task="nope")


def test_a_run_without_tables_is_shown_as_such(tmp_path):
    run = write_checkpoint(tmp_path / "run", questions=2, samples=2, positions=4)
    (run / "samples.parquet").unlink()
    assert "samples.parquet is missing" in load_run(run)._repr_html_()


@pytest.mark.slow
def test_entropy_views_differ(folders):
    drawn = {view: plot_entropy([folders[0]], view=view) for view in ("all", "progress", "end")}
    labels = {view: figure.axes[-1].get_xlabel() for view, figure in drawn.items()}
    assert len(set(labels.values())) == 3
    with pytest.raises(UserError, match="choose from"):
        plot_entropy([folders[0]], view="nope")


def test_drawing_leaves_matplotlib_as_it_was(folders):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_pass_at_k([folders[0]])
    assert dict(matplotlib.rcParams) == before


def test_plots_of_what_is_not_there_say_so(tmp_path):
    run = write_checkpoint(tmp_path / "run", questions=3, samples=2, positions=6)
    for plot in (plot_kl, plot_out_of_domain):
        with pytest.raises(UserError):
            plot([run])
    likelihoods = write_checkpoint(tmp_path / "ood", tasks=(), likelihood_tasks=("arc",))
    with pytest.raises(UserError, match="no samples in these runs"):
        plot_pass_at_k([likelihoods])


def test_training_curves_are_those_of_the_file(tmp_path):
    folder = write_training(tmp_path / "t", "soft", 3)
    assert is_training(folder) and not is_training(tmp_path)
    curve = read_training(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(curve.success, [line["reward/success"] for line in lines])
    assert curve.name == "soft seed 3" and len(curve.validation) == 6
    kept = next(line["validation/success"] for line in lines if line["step"] == 20)
    assert curve.kept == (20, kept) and kept < max(curve.validation)


def test_a_torn_last_line_is_passed_over_and_a_torn_middle_is_named(tmp_path):
    folder = write_training(tmp_path / "t")
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 61, "rew')
    assert len(read_training(folder).steps) == 60
    path.write_text('{"step": 0, "rew\n' + whole)
    with pytest.raises(UserError, match="line 1"):
        read_training(folder)
