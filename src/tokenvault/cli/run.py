"""Where the command begins and ends: secrets among the arguments are refused, and every error becomes a message."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import typer

from tokenvault.cli import configuration
from tokenvault.cli.commands import (
    audit,
    capacity,
    cards,
    dual_control,
    import_tokens,
    keys,
    life,
    parties,
    retention,
    rotation,
    schema,
    setup,
    tokens,
)
from tokenvault.cli.commands.apps import PANELS, app
from tokenvault.cli.exits import DONE, INTERRUPTED, READER_GONE, USAGE, exit_code_of
from tokenvault.cli.inputs import refuse_secrets
from tokenvault.cli.output import Output, mask_digits
from tokenvault.errors import TokenVaultError, bare

COMMANDS = (
    audit,
    capacity,
    cards,
    dual_control,
    import_tokens,
    keys,
    life,
    parties,
    retention,
    rotation,
    schema,
    setup,
    tokens,
)
"""The modules whose functions are commands: importing them adds those to the app."""

app.registered_commands.sort(key=lambda added: PANELS.index(str(added.rich_help_panel)))


def main(arguments: Sequence[str]) -> int:
    """Run the command on its arguments. Returns the exit code."""
    try:
        refuse_secrets(arguments, lambda: _token_bins(arguments))
        told = app(args=list(arguments), prog_name="tokenvault", standalone_mode=False)
        sys.stdout.flush()
        return told if isinstance(told, int) else DONE.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit
        return READER_GONE.code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED.code
    except Exception as error:  # noqa: BLE001 # nobody who runs the command reads a traceback, and it holds locals
        failure = error if hasattr(error, "format_message") else bare(error)
    return _report(failure, Output(as_json="--json" in arguments))


def _report(error: BaseException, output: Output) -> int:
    """Write what went wrong. Returns the exit code."""
    say = getattr(error, "format_message", None)  # an error of typer's parser
    if say is not None:
        if not say():  # nothing was asked: the help stands there already
            return USAGE.code
        place = getattr(getattr(error, "ctx", None), "command_path", "tokenvault")
        output.error(error, f"{mask_digits(say())} See: {place} --help", USAGE.code)
        return USAGE.code
    code = exit_code_of(error)
    output.error(error, str(error) if isinstance(error, TokenVaultError) else type(error).__name__, code)
    return code


def _token_bins(arguments: Sequence[str]) -> list[str]:
    """The token BINs of the configured programs; none where there is no configuration."""
    named = [after for before, after in pairwise(arguments) if before == "--config"]
    named += [each.removeprefix("--config=") for each in arguments if each.startswith("--config=")]
    try:
        found = configuration.load(Path(named[0]) if named else None)
    except TokenVaultError:
        return []
    return [program.format.bin for program in found.programs]
