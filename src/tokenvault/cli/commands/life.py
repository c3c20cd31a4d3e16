"""A token's life: activate, suspend, resume, wind down, delete; what it has; the card behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import CARDS, LIFE, app
from tokenvault.cli.commands.options import (
    ActingRequestor,
    DomainFile,
    ShowToken,
    TokenArgument,
    Yes,
    domain_of,
    instant_of,
    token_of,
)
from tokenvault.cli.inputs import ask_pan, confirm, read_document
from tokenvault.cli.views import token_document, token_facts, token_table, verdict
from tokenvault.errors import InvalidInputError
from tokenvault.model.lifecycle import Actor
from tokenvault.records.token_info import TokenInfo

By = Annotated[Actor, typer.Option("--by", help="On whose behalf.")]


@command(app, "activate", LIFE)
def activate(session: Session, token: TokenArgument) -> None:
    """Make an inactive token active.

    After identification and verification.
    """
    _show(session, session.vault.activate(token_of(session.vault, token)))


@command(app, "suspend", LIFE)
def suspend(session: Session, token: TokenArgument, by: By, requestor: ActingRequestor = None) -> None:
    """Suspend a token on behalf of an actor."""
    _show(session, session.vault.suspend(token_of(session.vault, token), by=by, requestor=requestor))


@command(app, "resume", LIFE)
def resume(session: Session, token: TokenArgument, by: By, requestor: ActingRequestor = None) -> None:
    """Lift an actor's own suspension."""
    _show(session, session.vault.resume(token_of(session.vault, token), by=by, requestor=requestor))


@command(app, "wind-down", LIFE)
def wind_down(
    session: Session,
    token: TokenArgument,
    purge_after: Annotated[
        str, typer.Option("--purge-after", metavar="INSTANT", help="When the last of these may come.")
    ],
    requestor: ActingRequestor = None,
) -> None:
    """Let a token take no new payments, only what follows those that it made.

    Captures, reversals, refunds and disputes, until an instant such as 2030-06-30T00:00:00Z; `purge` deletes it then.
    """
    until = instant_of("--purge-after", purge_after)
    _show(
        session,
        session.vault.wind_down(token_of(session.vault, token), purge_after=until, requestor=requestor),
    )


@command(app, "update-token", LIFE)
def update_token(
    session: Session,
    token: TokenArgument,
    token_expiry: Annotated[str | None, typer.Option(help="The token's own expiry, YYYY-MM.")] = None,
    customer: Annotated[str | None, typer.Option(help="The customer's id; empty takes it away.")] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            "--metadata", metavar="FILE", help="All pairs, as a JSON object; - is the standard input."
        ),
    ] = None,
    requestor: ActingRequestor = None,
) -> None:
    """Give a token another expiry, customer or metadata; what is unset stays."""
    pairs = None if metadata is None else _pairs(read_document(metadata))
    _show(
        session,
        session.vault.update_token(
            token_of(session.vault, token),
            token_expiry=token_expiry,
            customer=customer,
            metadata=pairs,
            requestor=requestor,
        ),
    )


@command(app, "update-assurance", LIFE)
def update_assurance(
    session: Session,
    token: TokenArgument,
    method: Annotated[
        str | None, typer.Option("--method", help="Token assurance method, 2 characters.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="None holds any more.")] = False,
    at: Annotated[
        str | None, typer.Option("--at", metavar="INSTANT", help="When it was; unset, now.")
    ] = None,
) -> None:
    """State how the cardholder was identified and verified."""
    if (method is None) != none:
        raise InvalidInputError("say --method, or --none where none holds any more")
    stated = None if at is None else instant_of("--at", at)
    _show(session, session.vault.update_assurance(token_of(session.vault, token), method, at=stated))


@command(app, "delete", LIFE)
def delete(
    session: Session, token: TokenArgument, requestor: ActingRequestor = None, yes: Yes = False
) -> None:
    """Delete a token for ever.

    Its record loses the card, and it is never issued again. Asks first.
    """
    found = token_of(session.vault, token)
    confirm(f"Delete the token that ends in {found[-4:]} for ever?", yes=yes)
    _show(session, session.vault.delete(found, requestor=requestor))


@command(app, "update-domain", LIFE)
def update_domain(
    session: Session,
    token: TokenArgument,
    domain: DomainFile = None,
    none: Annotated[bool, typer.Option("--none", help="Take its own domain away.")] = False,
    requestor: ActingRequestor = None,
) -> None:
    """Give a token another domain of its own.

    What was counted stays counted.
    """
    if (domain is None) != none:
        raise InvalidInputError("say --domain FILE, or --none for no domain of its own")
    own_domain = domain_of(domain)
    found = token_of(session.vault, token)
    _show(session, session.vault.update_domain(found, own_domain, requestor=requestor))


@command(app, "update-card", CARDS)
def update_card(
    session: Session,
    new_pan: Annotated[
        bool,
        typer.Option(
            "--new-pan", help="Ask for the new card number too: a second line of the standard input."
        ),
    ] = False,
    expiry: Annotated[str | None, typer.Option(help="The card's new expiry, YYYY-MM.")] = None,
    par: Annotated[str | None, typer.Option(help="The new card number's payment account reference.")] = None,
    requestor: ActingRequestor = None,
    show_token: ShowToken = False,
) -> None:
    """Put a renewed card behind the tokens of a card.

    The card's number is asked for, or read from the standard input.
    """
    if not new_pan and expiry is None:
        raise InvalidInputError("say what is new: --new-pan, --expiry, or both")
    vault = session.vault
    pan = ask_pan("Card number so far")
    changed = vault.update_card(
        pan,
        new_pan=ask_pan("New card number") if new_pan else None,
        expiry=expiry,
        par=par,
        requestor=requestor,
    )
    session.output.result(
        {"tokens": [token_document(each, whole=show_token) for each in changed]},
        verdict(f"{len(changed)} changed", good=True),
        token_table(changed, whole=show_token),
    )


def _pairs(document: str) -> Mapping[str, str]:
    """The object of a JSON document. Raises InvalidInputError."""
    try:
        pairs = json.loads(document)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, dict):
        raise InvalidInputError('metadata is a JSON object such as {"order": "17"}')
    return pairs


def _show(session: Session, info: TokenInfo) -> None:
    session.output.result(token_document(info, whole=False), token_facts(info, whole=False))
