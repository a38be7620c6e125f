"""`softeval`, and `python -m softeval` as torchrun wants it: ``torchrun -m softeval run ...``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends it quietly, too."""
    try:
        from softeval.cli.main import main as command_line
    except KeyboardInterrupt:
        print("softeval: interrupted", file=sys.stderr)
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
