"""What README and the documentation tell people to type."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ended
from conftest import ROOT

from softeval.cli.main import COMMANDS, load_command
from softeval.model import BUNDLED_CHECKPOINT

pytest_plugins = ("command_line_fixtures",)

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLLOWED = ("Three commands", "A tutorial: did training in soft tokens help?")
# What wants the hub is the same with what is in the package, and the counts are smaller.
REPLACED = {
    "Qwen/Qwen2.5-0.5B-Instruct": BUNDLED_CHECKPOINT,
    "--tasks gsm8k": "--tasks arithmetic",
    "--dataset gsm8k": "--dataset demo --validation-size 4 --report-to none --num-generations 4",
    "--limit 50": "--limit 5 --max-cot-tokens 60",
    "--limit 20": "--limit 4",
    "--max-steps 100 --eval-steps 25": "--max-steps 2 --eval-steps 2",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def commands(text: str) -> list[str]:
    """Lines of a script, continued ones as one, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_options_that_there_are(page: Path) -> None:
    for line in commands("".join(blocks(page.read_text(encoding="utf-8"), "sh"))):
        for part in re.split(r"&&|;", line):
            words = shlex.split(part)
            if "softeval" not in words or len(words) < 2:
                continue
            name, *rest = words[words.index("softeval") + 1 :]
            assert name in COMMANDS or name.startswith("--"), line
            if name in COMMANDS and name not in ("lm-eval", "ls"):
                params = load_command(name).params
                known = {option for p in params for option in (*p.opts, *p.secondary_opts)}
                flags = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
                assert {flag.replace("_", "-") for flag in flags} <= known, line


def test_python_in_the_readme_is_python() -> None:
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert found and all(ast.parse(block) for block in found)


def test_the_site_has_every_page() -> None:
    site = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(
        re.findall(r"[\w-]+\.md", site)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_readme_can_be_followed(softeval: Callable[..., Ended]) -> None:
    """To the letter but for `REPLACED`, in an empty folder; the wheel's test installs."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = {part.partition("\n")[0]: part for part in readme.split("\n## ")}
    script = "".join(block for name in FOLLOWED for block in blocks(parts[name], "sh"))
    for said, done in REPLACED.items():
        assert said in script
        script = script.replace(said, done)
    assert list(Path().iterdir()) == []
    lines = commands(script)
    assert len(lines) >= 10
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "softeval"
        ended = softeval(*words)
        assert ended.code == 0, f"{line}\n{ended.err}"
        assert ended.out.strip(), line
    assert {path.name for path in Path().iterdir()} == {"runs", "first.html", "report.html"}
    assert "<title>Soft training" in Path("report.html").read_text()
