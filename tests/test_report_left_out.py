"""Nothing that a run holds, and no fault of a figure, costs the page; each is said in one line."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import write_checkpoint, write_training
from typer.testing import CliRunner

from softeval.reports.left_out import SectionFailed
from softeval.reports.measured.arms import measure
from softeval.reports.page import build_report
from softeval.reports.sections import curves
from softeval.reports.sections.entropy import entropy_block, find_entropy

SMALL = {"questions": 4, "samples": 2, "modes": ("hard_greedy", "hard_sample")}
UNFIT = [float("nan"), float("inf"), -float("inf")]


def _spoil(path, column: str, value: float, rows: slice = slice(None)) -> None:
    """Put a value into a column; into the rows' lists, where it holds lists."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    for row in range(len(values))[rows]:
        old = values[row]
        values[row] = [value] * len(old) if isinstance(old, list) else old and value
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)


@pytest.fixture
def strict():
    """Whatever is unforeseen fails the test here, and matplotlib has nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SectionFailed)
        warnings.filterwarnings("error", module="matplotlib")
        yield


@pytest.mark.slow
def test_a_run_of_short_chains_beside_one_of_long_ones_gives_a_page(tmp_path, strict):
    other = {"model": {"path": "checkpoints/short", "weights_hash": "short"}}
    long = write_checkpoint(tmp_path / "long", positions=60, **SMALL)
    short = write_checkpoint(tmp_path / "short", positions=4, record_changes=other, **SMALL)
    page = build_report([long, short])
    cohort = page[page.index("Fixed cohort") :]
    assert "no chain of thought of short is long enough under hard sample" in cohort


@pytest.mark.slow
@pytest.mark.parametrize("value", UNFIT[:2])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 4)], ids=["all", "one"])
def test_entropies_that_are_not_finite_are_named(tmp_path, strict, drawing_only, value, rows):
    if rows != slice(None) and np.isnan(value):  # which matplotlib leaves out without a word
        drawing_only()
    run = write_checkpoint(tmp_path / "run", positions=6, **SMALL)
    _spoil(run / "positions.parquet", "entropy", value, rows)
    found = find_entropy(measure([(None, run)]))
    figures = [entropy_block(view) for view in found]
    if rows == slice(None):
        assert not any(figure.svg for figure in figures)
    assert all("not finite" in figure.left_out + figure.caption for figure in figures)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "values", "shown"),
    [  # each with what is no number, and with one of the two infinities, which take one path
        (("entropy", "forward", "nll"), UNFIT[:2], ("entropy", "kl", "ood")),
        (("mode_entropy", "reverse", "nll_per_token"), UNFIT[::2], ("kl", "ood")),
        (("top1_prob",), UNFIT[:2], ()),
        (("mixture_prob",), UNFIT[::2], ()),
    ],
)
def test_no_number_of_a_file_costs_the_page(tmp_path, strict, drawing_only, columns, values, shown):
    """No section is made of two of the tables, so that one page shows what each costs."""
    drawing_only(*shown)
    run = write_checkpoint(
        tmp_path / "run", positions=6, kl=True, likelihood_tasks=("arc",), **SMALL
    )
    for value in values:
        for table, column in zip(("positions", "kl", "likelihoods"), columns, strict=False):
            _spoil(run / f"{table}.parquet", column, value)
        assert "</html>" in build_report([run])


@pytest.mark.slow
def test_a_figure_that_fails_is_one_line_and_a_warning(tmp_path, monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("no such luck\nat all")

    run = write_checkpoint(tmp_path / "run", positions=6, **SMALL)
    monkeypatch.setattr(curves, "draw_curves", broken)
    monkeypatch.setattr("softeval.reports.sections.families.crossed_mean", broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        page = build_report([run])
    line = "is left out, because making it failed (RuntimeError: no such luck at all)"
    assert f"pass@k on arithmetic: run {line}" in page and f"Modes side by side {line}" in page
    assert sum(issubclass(w.category, SectionFailed) for w in caught) == 2
    assert "Problems solved, percent." in page  # the numbers of the figure are still there


def test_a_failure_is_said_on_the_terminal(tmp_path, monkeypatch):
    from softeval.cli.main import build_app

    def warn_only(*_args):
        warnings.warn("KL is left out", SectionFailed, stacklevel=1)
        return "<html></html>"

    monkeypatch.setattr("softeval.reports.page.build_report", warn_only)
    with warnings.catch_warnings():
        warnings.simplefilter("always", SectionFailed)
        done = CliRunner().invoke(build_app(), ["report", "x", "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 0
    assert "softeval: warning: KL is left out\n" in done.stderr


@pytest.mark.slow
def test_in_tests_a_failure_of_a_section_is_an_error(tmp_path, monkeypatch):
    """What the page survives must not pass unseen here: pytest turns the warning into an error."""
    run = write_checkpoint(tmp_path / "run", positions=6, **SMALL)
    monkeypatch.setattr(curves, "draw_curves", lambda _: 1 / 0)
    with pytest.raises(SectionFailed, match="ZeroDivisionError"):
        build_report([run])


@pytest.mark.slow
def test_long_names_neither_fail_nor_make_matplotlib_warn(tmp_path, strict):
    name = "a-rather-long-name-of-a-checkpoint-" * 6
    runs = [
        write_checkpoint(
            tmp_path / f"r{i}", positions=6, tasks=("t" * 200,), kl=True, **SMALL,
            record_changes={"model": {"path": f"hub/{i}{name}", "weights_hash": str(i)}},
        )
        for i in range(2)
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert "</html>" in build_report(runs)


@pytest.mark.slow
def test_training_values_that_are_not_finite_give_a_page(tmp_path, strict, drawing_only):
    drawing_only("training")
    training = write_training(tmp_path / "t")
    lines = [json.loads(line) for line in (training / "metrics.jsonl").read_text().splitlines()]
    text = "\n".join(json.dumps(line | {"reward/success": np.nan}) for line in lines)
    (training / "metrics.jsonl").write_text(text + "\n")
    run = write_checkpoint(tmp_path / "run", positions=6, **SMALL)
    assert "greedy validation" in build_report([run, training])
