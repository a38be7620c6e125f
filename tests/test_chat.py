"""Chat templates: the same prompt on every day, in bounded time, and one line for what they raise."""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as clock
from command_line import SMALL, Ended

from softeval import load_run
from softeval.errors import UserError
from softeval.model import BUNDLED_CHECKPOINT
from softeval.model.chat import render_chat

pytest_plugins = ("command_line_fixtures",)

# As in Llama 3.2's template.
DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y %H:%M:%S") %}{%- endif %}{%- endif %}'
    "{{ 'Today Date: ' + date_string }} User: {{ messages[0]['content'] }} Assistant:"
)


def checkpoint(template: str, **settings: str) -> str:
    """The bundled checkpoint with a chat template, in ./m."""
    shutil.copytree(BUNDLED_CHECKPOINT, "m", dirs_exist_ok=True)
    file = Path("m/tokenizer_config.json")
    content = json.loads(file.read_text()) | {"chat_template": template} | settings
    file.write_text(json.dumps(content))
    return "./m"


def arguments(*more: str, modes: str = "hard_greedy,soft_greedy") -> list[str]:
    return ["run", *SMALL, "--model", "./m", "--apply-chat-template", "--modes", modes, *more]


@pytest.fixture
def travel(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets every clock that a template or a run could ask to some days from now."""
    real_date, real_datetime = datetime.date, datetime.datetime

    def to(days: int) -> None:
        class Day(real_date):
            @classmethod
            def today(cls) -> Any:
                return real_date.today() + datetime.timedelta(days)

        class Now(real_datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return real_datetime.now(tz) + datetime.timedelta(days)

        monkeypatch.setattr(clock, "datetime", Now)
        for name, module in list(sys.modules.items()):
            if name.startswith("softeval") and issubclass(getattr(module, "date", int), real_date):
                monkeypatch.setattr(module, "date", Day)

    return to


def stop_after(monkeypatch: pytest.MonkeyPatch, samples: int, then: Callable[[], None]) -> None:
    """Call `then` after so many finished samples."""
    from softeval.runs.journal import Journal

    real, added = Journal.add, []

    def add(self: Journal, generation: Any, prompt: str) -> None:
        real(self, generation, prompt)
        added.append(generation)
        if len(added) == samples:
            then()

    monkeypatch.setattr(Journal, "add", add)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_goes_on_on_another_day(
    softeval: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    travel: Callable[[int], None],
) -> None:
    checkpoint(DATED)
    whole = softeval(*arguments("-o", "whole"))
    assert whole.code == 0, whole.err
    with monkeypatch.context() as stopping:
        stop_after(stopping, 1, interrupt)
        assert softeval(*arguments("-o", "run")).code == 130
    travel(1)
    ended = softeval(*arguments("-o", "run"))
    assert ended.code == 0, ended.err
    ours, theirs = load_run("run"), load_run("whole")
    assert ours.prompts().equals(theirs.prompts())
    assert ours.samples().drop(columns="seconds").equals(theirs.samples().drop(columns="seconds"))
    today = datetime.datetime.now().date()
    assert ours.prompts()["prompt"].str.startswith(f"Today Date: {today:%d %b %Y} 00:00:00").all()
    assert ours.info["identity"]["chat_date"] == ours.info["config"]["chat_date"] == f"{today}"
    # A new run is of the new day, and the old one can be asked for by its date.
    assert softeval(*arguments("-o", "other", modes="hard_greedy")).code == 0
    assert load_run("other").info["config"]["chat_date"] == f"{today + datetime.timedelta(1)}"
    same = softeval(*arguments("-o", "again", "--chat-date", f"{today}", modes="hard_greedy"))
    assert same.code == 0, same.err
    again = load_run("again").prompts()
    assert again["prompt"].tolist() == theirs.prompts()["prompt"].tolist()


def test_a_run_that_is_alive_at_midnight_keeps_its_date(
    softeval: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    travel: Callable[[int], None],
) -> None:
    checkpoint(DATED)
    stop_after(monkeypatch, 1, lambda: travel(1))
    ended = softeval(*arguments("-o", "run"))
    assert ended.code == 0, ended.err
    prompts = load_run("run").prompts()["prompt"]
    assert len({text.split(" User:")[0] for text in prompts}) == 1


def test_another_date_or_whatever_else_changes_the_prompt_is_another_run(
    softeval: Callable[..., Ended],
) -> None:
    checkpoint("{{ unk_token }}{{ messages[0]['content'] }}")
    assert softeval(*arguments("-o", "run", modes="hard_greedy")).code == 0
    dated = softeval(*arguments("-o", "run", "--chat-date", "2020-01-02", modes="hard_greedy"))
    assert dated.code == 2 and "chat_date" in dated.err
    checkpoint("{{ unk_token }}{{ messages[0]['content'] }}", unk_token="?")
    changed = softeval(*arguments("-o", "run", modes="hard_greedy"))
    assert changed.code == 2 and "chat_example" in changed.err


def test_a_date_without_a_template_is_refused(softeval: Callable[..., Ended]) -> None:
    ended = softeval("run", "--chat-date", "2020-01-02", "--dry-run")
    assert ended.code == 2 and "no effect without --apply-chat-template" in ended.err
    ended = softeval("run", "--chat-date", "soon", "--apply-chat-template", "--dry-run")
    assert ended.code == 2 and "--chat-date 'soon'" in ended.err


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "not done after 0.5 seconds",
        ),
        ("{{ 'x' * 30000000000 }}", "MemoryError"),
        ("{{ 'x' * 5000000 }}", "5000000 characters"),
        ("{{ raise_exception('\x1b[31mboo\nhoo') }}", "[31mboo hoo"),
        ("{{ raise_exception('y' * 100000) }}", "yyy"),
        ("{{ messages[0].content }}{{ range(99999) | random }}", "another text each time"),
    ],
)
def test_what_a_template_can_do_wrong_is_one_line(
    softeval: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, template: str, reason: str
) -> None:
    monkeypatch.setattr("softeval.model.chat.CPU_SECONDS", 0.5)
    checkpoint(template)
    started = time.process_time()
    ended = softeval(*arguments("--dry-run"))
    assert ended.code == 2 and reason in ended.err
    assert ended.err.count("\n") == 1 and len(ended.err) < 600 and "\x1b" not in ended.err
    assert time.process_time() - started < 20


class FirstAlone:
    """A tokenizer whose template drops all but what is said first, white space aside."""

    chat_template = ""

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return messages[0]["content"].strip()


def test_a_template_that_drops_what_is_said_is_refused() -> None:
    def said(*roles: str) -> str:
        return render_chat(FirstAlone(), [{"role": r, "content": f" {r} "} for r in roles])

    assert said("user") == "user" and said("user", "assistant") == "user"
    with pytest.raises(UserError, match=r"leaves out what the user says.*--num-fewshot"):
        said("system", "user")


def test_a_template_leaves_no_limit_behind() -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    assert render_chat(FirstAlone(), [{"role": "user", "content": "1"}]) == "1"
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
