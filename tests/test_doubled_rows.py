"""A sample that stands in two rows is an error wherever samples are read: it would count twice."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import write_run

import softeval
from softeval.cli.main import run
from softeval.errors import UserError
from softeval.reports.compare import compare_runs
from softeval.reports.measured.arms import measure


@pytest.fixture
def doubled(tmp_path):
    """A run with one row twice, at the end of the file, so that no order shows it."""
    folder = tmp_path / "run"
    write_run(folder, modes=["hard_greedy", "hard_sample"], questions=4, samples=3)
    path = folder / "samples.parquet"
    table = pq.read_table(path)
    row = table.num_rows - 1
    pq.write_table(pa.concat_tables([table, table.slice(row, 1)]), path)
    key = table.slice(row, 1).to_pylist()[0]
    return folder, f"holds sample {key['sample']} of question {key['doc_id']} twice"


@pytest.mark.parametrize(
    "read",
    [
        softeval.load_run,
        lambda folder: measure([(None, folder)]),
        lambda folder: compare_runs([folder], [folder]),
    ],
    ids=["load_run", "report", "compare"],
)
def test_a_doubled_sample_is_named_and_refused(doubled, read):
    folder, message = doubled
    with pytest.raises(UserError, match=message):
        read(folder)


@pytest.mark.parametrize("command", ["score", "report", "show", "compare"])
def test_every_command_refuses_it_in_one_line(doubled, command, capsys):
    folder, message = doubled
    before = (folder / "samples.parquet").read_bytes()
    both = [str(folder)] * (2 if command == "compare" else 1)
    assert run([command, *both]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown and "Traceback" not in shown
    assert (folder / "samples.parquet").read_bytes() == before
