"""Benchmarks of a user's own: one YAML, or a bare JSONL file, and everything that ours get."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Ended

from softeval import UserError, load_run
from softeval.lmeval.adapter import SoftEvalLM
from softeval.model import BUNDLED_CHECKPOINT
from softeval.tasks.benchmark import BenchmarkTask
from softeval.tasks.catalogue import find_benchmarks, task_catalogue
from softeval.tasks.data import load
from softeval.tasks.templates import Template
from softeval.trainers.config import make_config
from softeval.trainers.questions import load_questions

pytest_plugins = ("command_line_fixtures",)

AIME = [
    {
        "id": i,
        "problem": f"Find $n$ with $n-{i}={i}$.",
        "answer": f"{2 * i:03d}",
        "solution": f"Add {i}.",
    }
    for i in range(3)
]
YAML = """
task: my_aime
class: !function softeval.tasks.benchmark.BenchmarkTask
dataset_path: aime.jsonl
question: problem
answer: '{{ answer | int }}'
solution: solution
"""
SMALL = (
    *("--device", "cpu", "--modes", "hard_greedy,hard_sample", "-n", "2"),
    *("--max-cot-tokens", "6", "--max-answer-tokens", "4", "--quiet"),
)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_task(folder: Path, yaml: str = YAML, rows: list[dict[str, Any]] = AIME) -> Path:
    write_jsonl(folder / "aime.jsonl", rows)
    (folder / "my_aime.yaml").write_text(yaml)
    return folder


# ---- a definition


def test_a_definition_of_ones_own_is_read_like_ours(tmp_path: Path) -> None:
    folder = str(write_task(tmp_path / "mine"))
    (benchmark,) = find_benchmarks(["my_aime"], folder)
    loaded = load(benchmark)
    assert [problem.target for problem in loaded.problems] == ["0", "2", "4"]
    assert loaded.problems[1].question == AIME[1]["problem"]
    assert (loaded.source.name, loaded.source.origin) == ("my_aime", "local")
    assert set(task_catalogue(folder)) == {*task_catalogue(), "my_aime"}


def test_another_template_is_other_data(tmp_path: Path) -> None:
    def hashed(old: str, new: str, rows: list[dict[str, Any]] = AIME) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_task(folder, YAML.replace(old, new), rows)
        return load(find_benchmarks(["my_aime"], str(folder))[0]).source.sha256

    base = hashed("", "")
    assert hashed("question: problem", "question: '{{problem}}'") == base  # the same questions
    assert hashed("", "", [row | {"more": 1} for row in AIME]) == base
    others = [
        hashed("question: problem", "question: '{{problem}} Answer in full.'"),
        hashed("{{ answer | int }}", "{{ answer }}"),
        hashed("question:", "error: '0.1'\nquestion:"),
        hashed("question:", "scoring: letter\nquestion:"),
        hashed("", "", AIME[::-1]),
    ]
    assert len({base, *others}) == 6


def test_an_include_and_lettered_choices(tmp_path: Path) -> None:
    rows = [{"asked": "Which?", "options": ["red", "blue"], "right": 1}]
    write_jsonl(tmp_path / "aime.jsonl", rows)
    (tmp_path / "_base_yaml").write_text("dataset_path: aime.jsonl\nquestion: asked\nanswer: right")
    given = "include: _base_yaml\nchoices: options\n"
    (tmp_path / "a.yaml").write_text(f"{given}task: lettered\nscoring: letter\n")
    (tmp_path / "b.yaml").write_text(f"{given}task: scored\nscoring: likelihood\n")
    lettered, scored = (
        load(one).problems[0] for one in find_benchmarks(["lettered", "scored"], str(tmp_path))
    )
    assert lettered.target == "B" and "A. red\nB. blue\n" in lettered.question
    assert (scored.query, scored.choices, scored.gold) == ("Which?", ("red", "blue"), 1)
    assert [e.kind for n, e in task_catalogue(str(tmp_path)).items() if n == "scored"] == [
        "log-likelihood"
    ]


MISTAKES = {
    "unknown field of a row": ("question: problem", "question: '{{problm}}'", "no problm; every"),
    "no answer": ("answer | int", "reply | int", "line 1: no reply; every row needs problem"),
    "no file": ("aime.jsonl", "absent.jsonl", "no file .*absent.jsonl; put one there"),
    "no Jinja": ("{{ answer | int }}", "{{ answer", "answer is no Jinja template"),
    "unknown filter": ("| int", "| integer", "answer is no Jinja template .*integer"),
    "unknown key": ("question:", "qestion:", "unknown field 'qestion'; did you mean question"),
    "key of lm-eval": ("question:", "doc_to_text: x\nquestion:", "unknown field 'doc_to_text'"),
    "no data": ("dataset_path: aime.jsonl", "", "no dataset_path; a benchmark needs"),
    "kind of scoring": ("question:", "scoring: maths\nquestion:", "scoring: Input should be"),
    "choices of maths": ("question:", "choices: x\nquestion:", "choices need scoring"),
    "text for a list": (
        "question:", "scoring: letter\nchoices: problem\nquestion:", "row 0: choices: .* no list",
    ),
    "executing": (
        "question: problem",
        "question: '{{ problem.__class__.__mro__ }}'",
        "question: .*unsafe",
    ),
    "an empty answer": ("{{ answer | int }}", "{{ answer[3:] }}", "row 0: the answer is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_definition_is_one_line_with_a_remedy(
    case: str, softeval: Callable[..., Ended]
) -> None:
    old, new, message = MISTAKES[case]
    assert old in YAML
    folder = write_task(Path("mine"), YAML.replace(old, new))
    ended = softeval("run", "--tasks", "my_aime", "--include-path", str(folder), *SMALL)
    assert ended.code == 2, ended.err
    (line,) = ended.err.strip().splitlines()[-1:]
    assert re.search(message, line), line


def test_names_are_given_once(tmp_path: Path, softeval: Callable[..., Ended]) -> None:
    folder = write_task(tmp_path / "mine")
    (folder / "again.yaml").write_text(YAML)
    with pytest.raises(UserError, match="both define my_aime; rename one"):
        find_benchmarks(["my_aime"], str(folder))
    other = write_task(tmp_path / "other", YAML.replace("my_aime", "gsm8k"))
    with pytest.raises(UserError, match="both define gsm8k; rename one"):
        find_benchmarks(["gsm8k"], str(other))
    file = write_jsonl(tmp_path / "gsm8k.jsonl", AIME)
    with pytest.raises(UserError, match="gsm8k is a task already; rename the file"):
        find_benchmarks([str(file)])
    with pytest.raises(UserError, match="no folder nowhere; give --include-path"):
        find_benchmarks(["gsm8k"], "nowhere")


def test_a_task_of_lm_evals_own_form_names_the_other_command(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: json\ndoc_to_text: '{{x}}'\n")
    with pytest.raises(UserError, match="run it with `softeval lm-eval`"):
        find_benchmarks(["mine"], str(tmp_path))


# ---- templates

ATTACKS = [
    "{{ cycler.__init__.__globals__.os.popen('touch attacked').read() }}",
    "{{ x.__class__.__base__.__subclasses__() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ lipsum.__globals__['os'].system('touch attacked') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(x) }}",
    "{{ x | attr('__class__') }}",
    "{{ rows.append(1) }}",
    "{% include 'attacked' %}",
    "{{ range(999999999) | list }}",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_template_executes_nothing(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows: list[int] = []
    with pytest.raises(UserError):
        Template("question", attack).render({"x": "text", "rows": rows})
    assert not list(tmp_path.iterdir()) and rows == []


@pytest.mark.parametrize("scoring", ["letter", "likelihood"])
def test_the_words_of_a_row_are_never_a_template(scoring: str, tmp_path: Path) -> None:
    """Ours are sandboxed, lm-eval's are not: no text of a row may reach one."""
    words = "{{ cycler.__init__.__globals__.os.popen('touch attacked').read() }}"
    rows = [{"q": words, "options": [words, f"{words} 2"], "right": 0, "about": words}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    about = "description: about" if scoring == "likelihood" else ""
    (tmp_path / "t.yaml").write_text(
        f"task: t\ndataset_path: rows.jsonl\nquestion: q\nanswer: right\n"
        f"choices: options\nscoring: {scoring}\n{about}\n"
    )
    task = BenchmarkTask(find_benchmarks(["t"], str(tmp_path))[0])
    task.build_all_requests()
    texts = [part for request in task.instances for part in request.args if isinstance(part, str)]
    count = sum(text.count(words) for text in texts)
    assert count == (3 if scoring == "letter" else 2 * 2 + 2)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "t.yaml"}


def test_what_a_template_needs_is_read_from_it() -> None:
    needs = Template("q", "{{ a }}{% for b in c %}{{ b }}{% endfor %}{{ d | default('') }}{{ a }}")
    assert needs.fields == ("a", "c")
    assert Template("q", "word").fields == ("word",)
    assert Template("q", "word").render({"word": " as\n it {{ is }} "}) == " as\n it {{ is }} "


# ---- everything that ours get


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return write_task(tmp_path / "mine")


_generate_until = SoftEvalLM.generate_until


def interrupted_in_the_second_mode(lm: SoftEvalLM, *arguments: Any, **options: Any) -> Any:
    if lm.mode.name == "hard_sample":
        raise KeyboardInterrupt
    return _generate_until(lm, *arguments, **options)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_task_of_ones_own_gets_everything(
    softeval: Callable[..., Ended], mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AIME from a folder: run, resume, show, score, diagnose, report, compare, train."""
    asked = ("run", "--tasks", "my_aime", "--include_path", str(mine), *SMALL)
    with monkeypatch.context() as patched:
        patched.setattr(SoftEvalLM, "generate_until", interrupted_in_the_second_mode)
        assert softeval(*asked, "-o", "a").code == 130
    ended = softeval(*asked, "-o", "a", "--json")
    assert ended.code == 0, ended.err
    run = load_run("a")
    assert len(run.info["sessions"]) == 2
    assert set(run.samples()["target"]) == {"0", "2", "4"}
    assert run.info["datasets"][0]["location"] == str(mine / "aime.jsonl")
    assert run.info["datasets"][0]["scoring"] == "math"

    again = softeval(*asked, "-o", "a")
    assert again.code == 0 and "Run directory: a" in again.out
    assert softeval("run", "--config", "a/config.yaml", "-o", "repeated", "--quiet").code == 0
    repeated = load_run("repeated")
    assert repeated.info["identity"] == run.info["identity"]
    assert list(repeated.samples()["cot_text"]) == list(run.samples()["cot_text"])

    changed = YAML.replace("question: problem", "question: '{{ problem }} Think.'")
    (mine / "my_aime.yaml").write_text(changed)
    other = softeval(*asked, "-o", "a")
    assert other.code == 2 and "tasks" in other.err
    (mine / "my_aime.yaml").write_text(YAML)

    assert "Find $n$ with" in softeval("show", "a", "--task", "my_aime", "--doc", "2").out
    scored = softeval("score", "a")
    assert scored.code == 0 and "9 samples scored" in scored.out
    base = BUNDLED_CHECKPOINT
    diagnosed = softeval("diagnose", "a", "--base", base, "--sets", "gold", "--device", "cpu")
    assert diagnosed.code == 0, diagnosed.err
    assert not load_run("a").info["diagnose"]["missing_gold"]
    listed = json.loads(softeval("ls", "tasks", "--include-path", str(mine), "--json").out)
    assert {"task": "my_aime", "kind": "generative", "members": ""} in listed
    planned = softeval(*asked, "--dry-run", "--json", "-o", "planned")
    assert json.loads(planned.out)["tasks"]["my_aime"]["questions"] == 3

    reported = softeval("report", "a", "--output", "page.html")
    assert reported.code == 0 and "my_aime" in Path("page.html").read_text(), reported.err
    compared = softeval("compare", "a", "repeated")
    assert compared.code == 0 and "my_aime" in compared.out, compared.err


def test_training_drops_the_questions_of_ones_own_task(mine: Path, tmp_path: Path) -> None:
    rows = [{"question": row["problem"], "answer": row["answer"]} for row in AIME[1:]]
    rows += [{"question": f"q{n}", "answer": "1"} for n in range(9)]
    asked = {
        "dataset": str(write_jsonl(tmp_path / "own.jsonl", rows)),
        "exclude_tasks": "my_aime",
        "include_path": str(mine),
        "validation_size": 2,
    }
    found = load_questions(make_config(asked), lambda text: list(text.encode()))
    assert found.overlaps == {"my_aime": 2}
    assert len(found.train) + len(found.validation) == 9
    bare = asked | {"exclude_tasks": str(mine / "aime.jsonl"), "include_path": None}
    config = make_config({name: value for name, value in bare.items() if value is not None})
    assert sum(load_questions(config, lambda text: list(text.encode())).overlaps.values()) == 2


def test_a_file_may_have_a_comma_in_its_name(softeval: Callable[..., Ended]) -> None:
    for name in ("my,aime.jsonl", "aime.jsonl"):
        write_jsonl(Path(name), AIME)
    asked = ("run", "--dry-run", "--json", "--question", "problem", *SMALL, "--tasks")
    for given in (["my,aime.jsonl"], ["aime.jsonl,arithmetic", "-t", "./my,aime.jsonl"]):
        planned = softeval(*asked, *given)
        assert planned.code == 0, planned.err
        assert "my,aime" in json.loads(planned.out)["tasks"]
    missing = softeval(*asked, "no,file.jsonl")
    assert missing.code == 2 and missing.err.count("\n") == 1 and "no" in missing.err


@pytest.mark.slow
def test_a_bare_file_is_a_task(softeval: Callable[..., Ended]) -> None:
    write_jsonl(Path("aime.jsonl"), AIME)
    given = ("--tasks", "./aime.jsonl", "--question", "Solve: {{problem}}", "--answer", "answer")
    ended = softeval("run", *given, *SMALL, "-o", "bare")
    assert ended.code == 0, ended.err
    run = load_run("bare")
    assert set(run.samples()["task"]) == {"aime"}
    assert all("User: Solve: Find $n$" in prompt for prompt in run.prompts()["prompt"])
    assert softeval("run", "--config", "bare/config.yaml", "-o", "again", "--quiet").code == 0
    assert load_run("again").info["identity"] == run.info["identity"]
    assert softeval("score", "bare").code == 0
    other = softeval("run", "--tasks", "./aime.jsonl", "--answer", "id", *SMALL, "-o", "bare")
    assert other.code == 2 and "tasks" in other.err
    alone = softeval("run", "--tasks", "arithmetic", "--question", "x", *SMALL)
    assert alone.code == 2 and "--question has no effect without a .jsonl file" in alone.err
    default = softeval("run", "--tasks", "./aime.jsonl", "--dry-run", *SMALL)
    assert default.code == 0 and "-aime" in default.out, default.err


@pytest.mark.slow
@pytest.mark.usefixtures("no_defaults", "unasked")
def test_lm_evals_own_command_line_runs_a_task_of_ones_own(
    softeval: Callable[..., Ended], mine: Path
) -> None:
    from adapter_cases import CAPS, save_lm

    caps = ",".join(f"{name}={value}" for name, value in CAPS.items())
    model = f"pretrained={save_lm(Path('tiny'))},mode=hard_sample,num_samples=2,{caps}"
    ended = softeval(
        "lm-eval", "run", "--model", "softeval", "--model_args", model, "--tasks", "my_aime",
        "--include_path", str(mine), "--device", "cpu", "--output_path", "out", "--log_samples",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    (logged,) = Path("out").glob("*/samples_my_aime_*.jsonl")
    samples = [json.loads(line) for line in logged.read_text().splitlines()]
    assert [sample["target"] for sample in samples] == ["0", "2", "4"]
    assert all(len(sample["resps"][0]) == 2 for sample in samples)


SHIPPED = {
    "aime24": ("aime24_train", {"problem": "p", "answer": "073", "solution": "s"}),
    "aime25": ("aime25_test", {"problem": "p", "answer": "70"}),
    "amc23": ("amc23_test", {"question": "p", "answer": "27.0"}),
    "minerva_math": ("minerva_math_test", {"question": "p", "answer": "4.5e33"}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_competition_sets_read_rows_of_the_hubs_form(name: str, tmp_path: Path) -> None:
    file, row = SHIPPED[name]
    write_jsonl(tmp_path / f"{file}.jsonl", [row])
    loaded = load(find_benchmarks([name])[0], str(tmp_path))
    assert (loaded.problems[0].question, loaded.problems[0].target) == ("p", row["answer"])
    assert loaded.source.split == file.rpartition("_")[2]
