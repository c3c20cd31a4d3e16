"""The apps that commands are added to: the whole command, and its groups."""

from __future__ import annotations

from typing import Final

import typer

TOKENS: Final = "Tokens"
LIFE: Final = "A token's life"
CARDS: Final = "Cards"
SET_UP: Final = "Set up and look after"
PANELS: Final = (TOKENS, LIFE, CARDS, SET_UP)
"""The panels of the help, from top to bottom."""

MAIN_HELP: Final = """\
Payment tokens bound to a domain: set up a vault, work with its tokens, watch over it.

Card numbers are read from the standard input or a prompt, never from an argument.
"""


def _app(text: str) -> typer.Typer:
    """An app that shows its help when nothing is asked of it, and no traceback of rich's: it prints locals."""
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app: Final = _app(MAIN_HELP)
keys: Final = _app("Keys: list, create, rotate, and the signer.")
audit: Final = _app("The audit trail: verify, anchor, acknowledge, export, archive.")
schema: Final = _app("The database's schema: sql, status, upgrade.")
reveal: Final = _app("A card number under dual control: request, approve, show.")
export: Final = _app("Cards to another vault, under dual control: request, approve, write.")
programs: Final = _app("Token programs: list, put.")
requestors: Final = _app("Token requestors: list, show, put, disable.")

for _name, _group, _panel in (
    ("reveal", reveal, CARDS),
    ("export", export, CARDS),
    ("keys", keys, SET_UP),
    ("schema", schema, SET_UP),
    ("audit", audit, SET_UP),
    ("programs", programs, SET_UP),
    ("requestors", requestors, SET_UP),
):
    app.add_typer(_group, name=_name, rich_help_panel=_panel)
