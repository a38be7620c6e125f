"""What README and the documentation tell people to type."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from command_line import Ended
from conftest import ROOT

import softeval
from softeval.cli.main import COMMANDS, load_command
from softeval.model import BUNDLED_CHECKPOINT

pytest_plugins = ("command_line_fixtures",)

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ("Three commands", "A tutorial: did training in soft tokens help?")
# What wants the hub is the same with what is in the package, and the counts are smaller.
REPLACED = {
    "Qwen/Qwen2.5-0.5B-Instruct": BUNDLED_CHECKPOINT,
    "--tasks gsm8k": "--tasks arithmetic",
    "--dataset gsm8k": "--dataset demo --validation-size 4 --report-to none --num-generations 4",
    "--limit 50": "--limit 5 --max-cot-tokens 30",
    "--limit 20 --num": "--limit 4 --num",
    "--max-steps 100 --eval-steps 25": "--max-steps 2 --eval-steps 2",
}
TRAINED = Path(BUNDLED_CHECKPOINT).with_name("soft")
SMALL = "--limit 3 --num-samples 2 --max-cot-tokens 16"
# The reference behind the tutorial: what RUN stands for, and a size.
MEANT = {
    r"softeval run$": f"softeval run {SMALL}",
    r"(?<=--model )meta-llama/\S+": f"{TRAINED} --output-path runs/other",
    r"(?<=--model )(\./checkpoint|Qwen/Qwen3-1.7B)": str(BUNDLED_CHECKPOINT),
    r"(?<=pretrained=)\./checkpoint": str(BUNDLED_CHECKPOINT),
    r"math500,gsm8k|math500|aime24": "arithmetic",
    r"--modes all --num-samples 32": f"--modes all {SMALL}",
    r"(--answer answer|--include-path my_tasks)$": rf"\1 {SMALL}",
    r"--max-cot-tokens 8192": f"--no-apply-chat-template --output-path think {SMALL}",
    r"--docs 3,17": "--docs 0,1,2 --num-samples 2 --max-cot-tokens 16",
    r"--data-dir ./data --limit 20": "--output-path planned",
    r"--doc 17": "--doc 2",
    r"(train .*)(--output-path \S+)$": rf"\1--model {BUNDLED_CHECKPOINT} \2 --dry-run",
    r"(lm-eval run .*)": r"\1 --limit 2",
    r"num_samples=8": "num_samples=2,max_cot_tokens=16",
    r"--modes soft_sample --output-path RUN": "--modes all --output-path RUN",
    r"(sweep demo|ablate demo_f1)$": r"\1 --dry-run",
    r"notebook RUN": "notebook RUN --no-open",
    r"--base BASE": f"--base {BUNDLED_CHECKPOINT} --samples 1 --limit 2",
    r"attribute RUN": "attribute RUN --limit 1 --modes soft_sample",
    r"RUN_B|(?<=RUN )RUN": "runs/other",
    r"RUN_A|RUN\b": "runs/whole",
    r"leaderboard runs": "leaderboard .",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def commands(text: str) -> list[str]:
    """Lines of a script, continued ones as one, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_options_that_there_are(page: Path) -> None:
    for line in commands("".join(blocks(page.read_text(encoding="utf-8"), "(?:ba)?sh"))):
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


def sections() -> dict[str, str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {part.partition("\n")[0]: part for part in readme.split("\n## ")}


def smaller(script: str) -> str:
    for said, done in REPLACED.items():
        script = script.replace(said, str(done))
    return script


def follow(softeval: Callable[..., Ended], line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "softeval"
    ended = softeval(*words)
    assert ended.code == 0, f"{line}\n{ended.err}"
    assert ended.out.strip(), line


def test_the_page_of_python_names_what_softeval_exports() -> None:
    """Each once, under softeval where the page says so; MODES is a mapping and has a sentence."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = [name.rpartition(".") for name in re.findall(r"(?m)^::: (\S+)$", page)]
    assert sorted(name for *_, name in named) == sorted({*softeval.__all__, "Mode"} - {"MODES"})
    for module, _, name in named:
        owner = softeval.modes if name == "Mode" else softeval
        assert getattr(owner, name) is getattr(import_module(module), name)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_readme_can_be_followed(softeval: Callable[..., Ended]) -> None:
    """To the letter but for `REPLACED`, in an empty folder; follow_readme.py installs, too."""
    script = "".join(block for name in TUTORIAL for block in blocks(sections()[name], "sh"))
    assert all(said in script for said in REPLACED)
    assert list(Path().iterdir()) == []
    lines = commands(smaller(script))
    assert len(lines) >= 10
    for line in lines:
        follow(softeval, line)
    assert {path.name for path in Path().iterdir()} == {"runs", "first.html", "report.html"}
    assert "<title>Soft training" in Path("report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn", "no_defaults", "unasked")
def test_every_other_command_of_the_readme_does_what_it_says(
    softeval: Callable[..., Ended],
) -> None:
    """Smaller, and with `MEANT` for what stands for something; a line with an ellipsis shows no call."""
    row = {"problem": "14*4-12+24", "answer": "68"}
    Path("aime.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    Path("my_tasks").mkdir()
    shutil.copy("aime.jsonl", "my_tasks")
    Path("my_tasks/aime.yaml").write_text(
        "task: my_aime\ndataset_path: aime.jsonl\nquestion: problem\nanswer: answer\n"
    )
    parts = [sections()[name] for name in ("Evaluate", "Train", "See")]
    lines = commands("".join(block for part in parts for block in blocks(part, "sh")))
    done = 0
    for line in (line for line in lines if "…" not in line):
        for said, meant in MEANT.items():
            line = re.sub(said, meant, line)
        for command in line.split("&&"):
            follow(softeval, command)
            done += 1
    assert done >= 30
    names: dict = {}
    [python] = blocks(sections()["Evaluate"], "python")
    for said in ("meta-llama/Llama-3.2-3B-Instruct", "runs/…"):
        assert said in python
    python = python.replace("meta-llama/Llama-3.2-3B-Instruct", str(BUNDLED_CHECKPOINT))
    python = python.replace("doc=7", "doc=2")
    exec(python.replace("runs/…", "runs/whole"), names)  # noqa: S102
    assert names["sample"].cot_text
