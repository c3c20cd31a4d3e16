"""`tokenvault`, the command: the vault's public face for those who run it. Needs the extra `payment-tokenvault[cli]`.

`run` is where it begins and ends, `command` what each command is given, and `commands` has the commands, each one
function. `configuration` reads the TOML file, `inputs` what must not be an argument, `output` and `views` write.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

NEEDED: Final = ("typer", "rich")
NOT_INSTALLED: Final = "the command needs typer and rich: pip install 'payment-tokenvault[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on its arguments; unset, those of this process. Returns the exit code."""
    try:
        from tokenvault.cli import run  # noqa: PLC0415 # the library is installed without the extra, too
    except ModuleNotFoundError as missing:
        if missing.name not in NEEDED:
            raise
        sys.stderr.write(f"{NOT_INSTALLED}\n")
        return 3
    return run.main(sys.argv[1:] if arguments is None else arguments)
