"""What a run shows elsewhere: trackers, with tables of samples, and the Hugging Face hub.

Trackers are accelerate's; all of them are optional packages. Knows nothing of what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softeval.errors import UserError
from softeval.terminal import one_line

PROJECT = "softeval"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be used.

    Raises:
        UserError: one is unknown or not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = {str(getattr(t, "value", t)) for t in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(f"--report-to {name}: none of {', '.join(known)}, none")
        if name not in installed:
            raise UserError(f"--report-to {name}: not installed; pip install {name}, or name none")


def tracking(names: Sequence[str], folder: Path, on_cpu: bool) -> Any:
    """Accelerate's Accelerator with these trackers; UserError as of `check_trackers`."""
    from accelerate import Accelerator

    check_trackers(names)
    return Accelerator(cpu=on_cpu, log_with=list(names) or None, project_dir=str(folder))


def begin_trackers(
    accelerator: Any, kinds: Sequence[str], folder: Path, run_id: str, facts: Any, step: int = 0
) -> None:
    """Begin a run with the trackers, or go on with it from `step`.

    Its name is its folder's, `run_id` tells it from others of that name, `facts` are shown with it.
    """
    name = folder.resolve().name
    options = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": name, "id": run_id, "resume": "allow", "dir": str(folder)},
        "trackio": {"name": f"{name}-{run_id}", "resume": "allow"},
    }
    told = any((folder / PROJECT).glob("*/hparams.yml"))  # TensorBoard adds it at every start
    accelerator.init_trackers(
        PROJECT,
        config=None if told else facts,
        init_kwargs={kind: options.get(kind, {}) for kind in kinds},
    )


def log_table(
    tracker: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Show a table in one of accelerate's trackers; one that has no tables shows none."""
    kind = getattr(tracker, "name", "")
    if kind == "trackio":
        import pandas as pd
        import trackio  # pyright: ignore[reportMissingImports]

        table = trackio.Table(dataframe=pd.DataFrame(rows, columns=list(columns)))
        tracker.log({name: table}, step=step)
    elif kind == "tensorboard":
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        tracker.tracker.add_text(name, text, step)
    elif hasattr(tracker, "log_table"):
        tracker.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)


def _cell(value: Any) -> str:
    return one_line(str(value)).replace("|", "\\|")


class HubRepository:
    """A repository that gets a checkpoint, or results.

    Args:
        name: user/name. Without one that is there it is made, private.
        kind: "model" or "dataset".

    Raises:
        UserError: nobody is logged in, or the hub does not let us write there.
    """

    def __init__(self, name: str, kind: str = "model") -> None:
        from huggingface_hub import HfApi

        self.name, self.kind = name, kind
        self.address = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{name}"
        self._api = HfApi()
        try:
            self._api.create_repo(name, repo_type=kind, private=True, exist_ok=True)
        except Exception as error:  # offline, no token, no right, no such user
            raise self._refused(error) from error

    def push(self, folder: Path, message: str) -> None:
        """Upload a folder as one commit.

        Raises:
            UserError: the hub refuses; the folder stays where it is.
        """
        try:
            self._api.upload_folder(
                repo_id=self.name,
                repo_type=self.kind,
                folder_path=str(folder),
                commit_message=message,
            )
        except Exception as error:
            refused = self._refused(error)
            raise UserError(
                f"{refused}; {folder} is whole:"
                f" hf upload {self.name} {folder} --repo-type {self.kind}"
            ) from error

    def _refused(self, error: Exception) -> UserError:
        reason = one_line(str(error))[:200] or type(error).__name__
        return UserError(
            f"--push-to-hub {self.name}: {reason}; log in with hf auth login, or leave it out"
        )
