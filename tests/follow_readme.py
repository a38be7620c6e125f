"""README followed by a newcomer: `python tests/follow_readme.py EMPTY_FOLDER` (minutes, a package index).

Clones this repository into the folder, makes a new environment there and types README's commands from
"Install" to the end of the tutorial, small where `test_readme.REPLACED` says so; `make demo` comes
last, to the letter. The other commands are in test_readme.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from test_readme import TUTORIAL, blocks, sections, smaller


def script(folder: Path) -> str:
    wheel, demo = blocks(sections()["Install"], "sh")
    steps = [
        "set -euxo pipefail",
        f"git clone --quiet '{ROOT}' '{folder}/clone'",
        f"python3 -m venv '{folder}/env'",
        f"source '{folder}/env/bin/activate'",
        f"cd '{folder}/clone'",
        wheel,
        f"mkdir '{folder}/elsewhere'",
        f"cd '{folder}/elsewhere'",
        *(smaller(block) for name in TUTORIAL for block in blocks(sections()[name], "sh")),
        "deactivate",
        f"cd '{folder}/clone'",
        demo,
        "softeval ls runs",
    ]
    return "\n".join(steps)


if __name__ == "__main__":
    empty = Path(sys.argv[1]).resolve()
    empty.mkdir(parents=True, exist_ok=True)
    assert not any(empty.iterdir()), f"{empty} is not empty"
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("SOFTEVAL", "PYTHON"))}
    sys.exit(subprocess.run(["bash", "-c", script(empty)], env=kept, check=False).returncode)
