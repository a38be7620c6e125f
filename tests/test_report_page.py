"""The report as bytes: well-formed, closed to the world, the same every time, honest on bad input."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from conftest import ROOT
from report_runs import keep_documents, write_checkpoint, write_family, write_training

from softeval.errors import UserError
from softeval.reports.page import ReportOptions, build_report, split_label
from softeval.runs import rundir

pytestmark = pytest.mark.slow

VOID = {"meta", "link", "br", "input", "img", "hr", "wbr"}


class Outline(HTMLParser):
    """What the page holds: ids, references, scripts, texts; and whether its tags are balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.scripts: list[dict] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        self.references += [found[n] for n in ("href", "src", "xlink:href", "action") if n in found]
        self.handlers += [name for name in found if name.startswith("on")]
        if tag == "script":
            self.scripts.append(found)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    runs = write_family(
        folder, seeds=2, questions=10, samples=4, positions=16, likelihood_tasks=("arc",), kl=True,
        modes=("hard_greedy", "hard_sample", "soft_sample"),
    )  # fmt: skip
    return [*runs, write_training(folder / "training")]


@pytest.fixture(scope="module")
def page(folders) -> str:
    return build_report(folders)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Three methods, one seed, hard inference only: quick to report."""
    return write_family(
        tmp_path_factory.mktemp("small"), ("base", "hard", "soft"), seeds=1, questions=8,
        samples=2, positions=6, modes=("hard_greedy", "hard_sample"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return write_checkpoint(
        tmp_path_factory.mktemp("one") / "base", questions=6, samples=4, positions=12,
        modes=("hard_greedy", "hard_sample", "soft_sample"),
    )  # fmt: skip


def test_the_page_is_well_formed_with_unique_ids(page):
    outline = Outline(page)
    assert outline.unbalanced == [] and outline.open == []
    assert len(set(outline.ids)) == len(outline.ids)


def test_the_page_refers_to_nothing_outside_itself(page):
    outline = Outline(page)
    assert all(r.startswith(("#", "data:")) for r in outline.references)
    inside = {r[1:] for r in outline.references if r.startswith("#")}
    assert inside <= set(outline.ids)
    assert outline.handlers == []
    assert not re.search(r"@import|url\((?!#)", page)


def test_the_policy_names_the_one_script(page):
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert len(Outline(page).scripts) == 2  # the data and the script


def test_every_section_is_filled(page):
    text = Outline(page).text
    for expected in (
        "Verdict", "soft training against hard training", "cannot be told apart", "hard inference",
        "exploratory", "Fixed cohort", "noise floor", "Accuracy and NLL"[:8], "greedy validation",
        "timed out", "checkpoints/soft-1", "Wilson", "CoTs of fuzzy split in three",
    ):  # fmt: skip
        assert expected in text, expected


def test_two_builds_are_equal_to_the_byte(folders, page, tmp_path):
    code = (
        "import sys; from softeval.reports.page import build_report;"
        "sys.stdout.buffer.write(build_report(sys.argv[1:]).encode())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)],
        cwd=ROOT, capture_output=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "77", "TZ": "Pacific/Apia", "LANG": "C"},
    )  # fmt: skip
    assert other.stdout == page.encode()


@pytest.mark.usefixtures("undrawn")
def test_a_partial_run_gets_a_badge(tmp_path):
    run = write_checkpoint(
        tmp_path / "run", questions=4, samples=2, positions=8, status=rundir.PARTIAL
    )
    text = Outline(build_report([run])).text
    assert "partial: 0 of 1 runs complete" in text
    assert "run is not finished" in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_killed_before_its_tables_is_told_beside_others_and_refused_alone(tmp_path, single):
    folder = tmp_path / "killed"
    folder.mkdir()
    record = json.loads((single / "run.json").read_text())
    record["model"]["weights_hash"] = "another"
    rundir.write_record(folder, record | {"status": rundir.RUNNING})
    told = "killed is not finished: 0 of 54 samples so far and no table yet"
    with pytest.raises(UserError, match=f"nothing to report yet: {told}"):
        build_report([folder])
    beside = Outline(build_report([single, f"other={folder}"])).text
    assert "partial: 1 of 2 runs complete" in beside and told in beside


def _half(folder, method, seed, low, high):
    options = {"modes": ("hard_greedy", "hard_sample"), "likelihood_tasks": ("arc",), "kl": True}
    write_checkpoint(folder, method, seed, questions=8, samples=2, positions=8, **options)
    return keep_documents(folder, low, high)


def test_arms_of_disjoint_questions_give_a_page(tmp_path):
    runs = [_half(tmp_path / "hard", "hard", 0, 0, 4), _half(tmp_path / "soft", "soft", 0, 4, 8)]
    page = build_report(runs)
    assert "Nothing to compare" in Outline(page).text
    assert '<td class="strong"' not in page


def test_seeds_of_disjoint_questions_give_dashes(tmp_path):
    seeds = [_half(tmp_path / f"soft{s}", "soft", s, 4 * s, 4 * s + 4) for s in range(2)]
    alone = Outline(build_report(seeds, ReportOptions(extrapolate=4)))
    assert alone.unbalanced == [] and "2 seeds – – –" in alone.text
    base = write_checkpoint(
        tmp_path / "base", questions=8, samples=2, positions=8, likelihood_tasks=("arc",), kl=True,
        modes=("hard_greedy", "hard_sample"),
    )  # fmt: skip
    beside = Outline(build_report([base, *seeds])).text
    assert "soft 2 seeds – – –" in beside and "hold no generative task" not in beside


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_positions_says_why_the_section_is_empty(tmp_path):
    run = write_checkpoint(tmp_path / "run", questions=4, samples=2, positions=8)
    (run / "positions.parquet").unlink()
    text = Outline(build_report([run])).text
    assert "no per-position records" in text
    assert "Problems solved" not in text or "pass@k" in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_kl_says_how_to_make_it(single):
    assert "softeval diagnose RUN --base" in Outline(build_report([single])).text


def test_a_greedy_run_and_a_sampled_run_are_both_fine(tmp_path):
    greedy = write_checkpoint(
        tmp_path / "greedy", questions=4, positions=8, modes=("hard_greedy", "soft_greedy")
    )
    assert "No mode was sampled more than once" in Outline(build_report([greedy])).text
    likelihood = write_checkpoint(
        tmp_path / "nll", tasks=(), questions=4, positions=8, likelihood_tasks=("arc",)
    )
    text = Outline(build_report([likelihood])).text
    assert "hold no generative task" in text and "NLL per token" in text


def test_one_question_and_one_sample_are_enough(tmp_path):
    run = write_checkpoint(tmp_path / "run", questions=1, samples=1, positions=4)
    assert "arithmetic" in Outline(build_report([run])).text


def test_strange_names_are_text(tmp_path):
    attack = "</script><script>x=1</script><img src=x onerror=x>{{7*7}}\u202e"
    run = write_checkpoint(
        tmp_path / "run", questions=3, samples=2, positions=6, tasks=(attack,),
        modes=("hard_greedy", "soft_sample"),
        record_changes={"command": attack, "versions": {attack: attack, "softeval": attack}},
    )  # fmt: skip
    page = build_report([f"{run}"], ReportOptions(title=attack))
    outline = Outline(page)
    assert len(outline.scripts) == 2 and outline.handlers == [] and "\u202e" not in page
    assert "{{7*7}}⟨U+202E⟩" in outline.text
    assert outline.unbalanced == []


@pytest.mark.usefixtures("undrawn")
def test_the_data_of_the_samples_cannot_end_its_element(tmp_path):
    texts = ("</script><b>", "<!--", "]]>", "\u2028")
    run = write_checkpoint(tmp_path / "run", questions=4, samples=2, positions=12, texts=texts)
    page = build_report([run])
    data = re.search(r'id="samples-data">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data and ">" not in data and "&" not in data
    joined = json.dumps(json.loads(data), ensure_ascii=False)
    assert "</script><b>" in joined and "⟨U+2028⟩" in joined


@pytest.mark.usefixtures("undrawn")
def test_options_change_the_report(small):
    plain = build_report(small, ReportOptions(problems=4))
    contrasts = ("soft-base:hard_sample@2",)
    changed = build_report(
        small,
        ReportOptions(title="My title", margin=0.05, contrasts=contrasts, problems=4, seed=5),
    )
    for expected in ("My title", "±5 points", "Made from 1 primary comparison"):
        assert expected in changed and expected not in plain
    problems, others = (_problems(page) for page in (plain, changed))
    assert len(problems) == len(others) == 4
    assert problems != others


def _problems(page: str) -> list[dict]:
    found = re.search(r'id="samples-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])["problems"]


@pytest.mark.parametrize(
    "text", ["soft-hard", "soft-hard:hard_sample@99", "x-y:hard_sample@1", "soft-hard:nope@1"]
)
def test_a_contrast_that_is_not_there_is_refused(small, text):
    with pytest.raises(UserError, match="--contrast"):
        build_report(small, ReportOptions(contrasts=(text,)))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        build_report([tmp_path])
    with pytest.raises(UserError, match="no run directory given"):
        build_report([])


def test_labels_are_split_from_folders(tmp_path):
    assert split_label("soft=runs/x") == ("soft", "runs/x")
    assert split_label("runs/x") == (None, "runs/x")
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert split_label(str(odd)) == (None, str(odd))


def _papers_run(folder):
    return write_checkpoint(
        folder, "soft", questions=4, samples=2, positions=8, tasks=("gsm8k",),
        modes=("hard_greedy", "hard_sample"),
        record_changes={
            "training": {"method": "soft", "dataset": "gsm8k", "train_seed": 0,
                         "base": "meta-llama/Llama-3.2-3B-Instruct", "step": 1},
        },
    )  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_the_paper_stands_beside_its_own_models_only(tmp_path, page, small):
    assert "paper" not in Outline(page).text.lower().replace("soft tokens, hard truths", "")
    other = Outline(build_report(small, ReportOptions(paper_reference=True))).text
    assert "No value of the paper matches these runs" in other
    run = _papers_run(tmp_path / "run")
    page = build_report([run], ReportOptions(paper_reference=True))
    text = Outline(page).text
    assert "No value of the paper" not in text
    downloads = [
        base64.b64decode(code).decode()
        for code in re.findall(r'download="[^"]*" href="data:[^"]*,([^"]*)"', page)
    ]
    table, latex = downloads
    assert table.splitlines()[0].endswith(",paper_mean_percent,paper_sd_percent")
    assert any(line.endswith(",77.2,0.9") for line in table.splitlines())
    assert r"paper 77.2 $\pm$ 0.9" in latex
    assert "paper 77.2 ± 0.9" in text  # table 3, soft on gsm8k, hard greedy
    assert "paper 70.5 ± 3.3" in text  # hard sample pass@1
    assert "paper 97.9" not in text  # pass@32 was not measured here


@pytest.mark.usefixtures("undrawn")
def test_settings_that_differ_are_named_beside_the_verdict(tmp_path):
    options = {"questions": 4, "samples": 2, "positions": 8, "modes": ("soft_sample",)}
    folders = [write_checkpoint(tmp_path / m, m, **options) for m in ("base", "soft")]
    assert "Not decoded alike" not in build_report(folders)
    other = {"modes": [{"name": "soft_sample", "temperature": 0.7}]}
    rundir.write_record(folders[1], rundir.read_record(folders[1]) | other)
    text = Outline(build_report(folders)).text
    assert "on arithmetic, temperature of soft_sample: 0.5 in base, 0.7 in soft;" in text


def test_a_run_of_the_papers_size_stays_under_two_megabytes(tmp_path):
    """Four samples a question for its 32: all of them on the page would be 5 megabytes."""
    modes = ("hard_greedy", "hard_sample", "soft_sample")
    run = write_checkpoint(tmp_path / "run", questions=500, samples=4, positions=40, modes=modes)
    page = build_report([run])
    assert len(page.encode()) < 2_000_000
    assert re.search(r"of 4,500 samples shown", page)
