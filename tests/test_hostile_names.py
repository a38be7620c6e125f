"""Names and texts of a run directory from somebody else steer neither a terminal nor a page."""

from __future__ import annotations

import ast
import base64
import csv
import io
import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Ended
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from report_runs import write_checkpoint

from softeval.__main__ import main
from softeval.cli import main as cli
from softeval.errors import UserError
from softeval.reports.page import build_report
from softeval.reports.tables import Table, simple_table
from softeval.runs import rundir
from softeval.terminal import say, say_json

pytest_plugins = ("command_line_fixtures",)

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
EVIL = "\x1b[41mEVIL\x1b]0;own\x07\x9b2J\u202e"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every name, stop reason and label holds control characters."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    write_checkpoint(folder, modes=("hard_greedy", "soft_sample"), questions=4, samples=2)
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        for name in {"task", "mode", "stop_reason", "answer_stop", "target"} & {
            *table.schema.names
        }:
            texts = [f"{text}{EVIL}" for text in table[name].cast(pa.string()).to_pylist()]
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(texts))
        pq.write_table(table, path)
    rundir.write_record(folder, poisoned(rundir.read_record(folder)))
    return folder


def poisoned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: poisoned(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    plain = not isinstance(value, str) or value in ("complete", "") or "softeval" in value
    return value if plain else value + EVIL


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "RUN"], 0),
        (["show", "RUN", "--json"], 0),
        (["show", "RUN", "--task", "nope"], 2),
        (["show", "RUN", "--mode", "nope"], 2),
        (["ls", "runs", "RUN/.."], 0),
        (["ls", "runs", "RUN/..", "--json"], 0),
        (["compare", "RUN", "RUN"], 0),
        (["compare", "RUN", "RUN", "--json"], 0),
        (["compare", "RUN", "RUN", "--task", "nope"], 2),
        (["diagnose", "RUN", "--base", "RUN"], 2),
        (["attribute", "RUN"], 2),
        (["score", "RUN/samples.parquet"], 2),
    ],
)
def test_no_command_prints_control_characters(
    softeval: Callable[..., Ended], hostile: Path, arguments: list[str], code: int
) -> None:
    ended = softeval(*(a.replace("RUN", str(hostile)) for a in arguments))
    assert ended.code == code, ended.err
    assert not STEERING.search(ended.out + ended.err)
    if "--json" in arguments:
        assert "EVIL" in str(json.loads(ended.out))
    elif code:
        assert ended.err.count("\n") == 1


@pytest.mark.slow
def test_no_page_holds_control_characters(hostile: Path) -> None:
    page = build_report([hostile])
    assert "EVIL" in page and not STEERING.search(page)
    downloads = re.findall(r'data:text/csv[^,"]*base64,([^"]*)"', page)
    assert downloads
    for download in downloads:
        text = base64.b64decode(download).decode()
        assert "EVIL" in text and not STEERING.search(text)


@given(text=st.text(st.characters(exclude_categories=[])))
def test_what_is_said_steers_nothing(text: str) -> None:
    shown, written = io.StringIO(), io.StringIO()
    with redirect_stdout(shown):
        say(text)
    with redirect_stdout(written):
        say_json({"text": text})
    assert not STEERING.search(shown.getvalue() + written.getvalue())
    shown.getvalue().encode()
    assert json.loads(written.getvalue()) == {"text": text}


def test_commands_print_through_one_place_only() -> None:
    """What goes round `say` and `say_json` would not be cleaned."""
    modules = {module for module, _ in cli.COMMANDS.values()}
    commands = [ROOT / "softeval/cli" / f"{module}.py" for module in modules]
    for path in commands:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "typer.echo", "typer.secho"), f"{path}: {called}"


def test_an_error_stays_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise UserError(f"no task a\nb\r{EVIL}")

    monkeypatch.setattr(cli, "build_app", fails)
    assert cli.run([]) == 2
    assert capsys.readouterr().err == "softeval: no task a b[41mEVIL]0;own2J\n"


def test_a_bare_command_says_what_can_follow_and_nothing_of_an_error(
    softeval: Callable[..., Ended],
) -> None:
    bare, group = softeval(), softeval("ls")
    assert bare.code == 0 and bare.err == ""
    assert group.code == 2 and group.err.startswith("Usage") and "softeval: " not in group.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt, 130, "interrupted"),
        (MemoryError, 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory.\nMore"), 1, "out of memory. More; take less"),
    ],
)
def test_what_ends_the_imports_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException] | BaseException,
    code: int,
    message: str,
) -> None:
    def fails(name: str) -> None:
        raise error

    monkeypatch.setattr(cli, "import_module", fails)
    assert cli.run(["ls", "tasks"]) == code
    assert message in capsys.readouterr().err


def test_ctrl_c_before_the_command_line_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "softeval.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "softeval.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "softeval: interrupted\n"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("", ""),
        ("0", "0"),
        ("-1.5", "-1.5"),
        ("=1+1", "'=1+1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+cmd", "'+cmd"),
        ("−2", "−2"),
        ("a\x1b[2J", "a⟨U+001B⟩[2J"),
    ],
)
def test_cells_of_a_download(text: str, cell: str) -> None:
    table: Table = simple_table("", ["a", "b"], [["x", text]])
    assert list(csv.reader(io.StringIO(table.csv())))[1] == ["x", cell]
