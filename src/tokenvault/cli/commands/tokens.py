"""Tokens: issue, check, detokenize, look up."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from tokenvault.audit.event import Outcome
from tokenvault.audit.export import HISTORY_MAX, AuditEvent
from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import TOKENS, app
from tokenvault.cli.commands.options import (
    ActingRequestor,
    DomainFile,
    Program,
    Requestor,
    ShowToken,
    TokenArgument,
    domain_of,
    token_of,
)
from tokenvault.cli.commands.use import Use
from tokenvault.cli.exits import NO
from tokenvault.cli.inputs import ask_pan, require_private_output
from tokenvault.cli.output import refusal
from tokenvault.cli.views import (
    NOTHING,
    facts,
    listing,
    moment,
    token_document,
    token_facts,
    token_table,
    verdict,
)


@command(app, "issue", TOKENS)
def issue(
    session: Session,
    requestor: Requestor,
    program: Program,
    expiry: Annotated[str | None, typer.Option(help="The card's expiry, YYYY-MM.")] = None,
    token_expiry: Annotated[
        str | None, typer.Option(help="The token's own, YYYY-MM; unset, the card's.")
    ] = None,
    domain: DomainFile = None,
    assurance: Annotated[str | None, typer.Option(help="Token assurance method, 2 characters.")] = None,
    par: Annotated[str | None, typer.Option(help="Payment account reference, 29 characters.")] = None,
    inactive: Annotated[bool, typer.Option("--inactive", help="To be activated later.")] = False,
) -> None:
    """Issue a token for a card.

    The card's number is asked for, or read from the standard input.
    """
    own_domain = domain_of(domain)
    vault = session.vault
    info = vault.issue(
        ask_pan("Card number"),
        expiry=expiry,
        requestor=requestor,
        program=program,
        domain=own_domain,
        token_expiry=token_expiry,
        assurance=assurance,
        par=par,
        active=not inactive,
    )
    session.output.result(token_document(info, whole=True), token_facts(info, whole=True))


@command(app, "check", TOKENS)
def check(session: Session, token: TokenArgument, use: Use) -> None:
    """Decide on a use of a token without making it.

    Ends with 1 where it is not allowed.
    """
    transaction = use.transaction()
    decision = session.vault.check(token_of(session.vault, token), transaction)
    session.output.result(
        {"allowed": decision.allowed, "transaction_id": transaction.id, "violations": decision.violations},
        verdict("allowed" if decision.allowed else "not allowed", good=decision.allowed),
        *map(refusal, decision.violations),
    )
    if not decision.allowed:
        raise typer.Exit(NO.code)


@command(app, "detokenize", TOKENS)
def detokenize(
    session: Session,
    token: TokenArgument,
    use: Use,
    show_pan: Annotated[
        bool,
        typer.Option(
            "--show-pan", help="Show all digits: on a terminal, or in a file that you alone can read."
        ),
    ] = False,
) -> None:
    """Use a token, and show its card, masked.

    The use is counted and recorded first. The same --id again is a retry, and counts once.
    """
    if show_pan:
        require_private_output()
    transaction = use.transaction()
    card = session.vault.detokenize(token_of(session.vault, token), transaction)
    number = card.pan.reveal() if show_pan else card.pan.masked
    expiry = None if card.expiry is None else str(card.expiry)
    session.output.result(
        {"pan": number, "expiry": expiry, "transaction_id": transaction.id},
        facts({"card": Text(number, "bold"), "valid through": expiry or NOTHING, "use": transaction.id}),
    )


@command(app, "info", TOKENS)
def info(session: Session, token: TokenArgument, show_token: ShowToken = False) -> None:
    """Show what the vault has of a token."""
    found = session.vault.get(token)
    session.output.result(token_document(found, whole=show_token), token_facts(found, whole=show_token))


@command(app, "tokens", TOKENS)
def tokens(session: Session, requestor: ActingRequestor = None, show_token: ShowToken = False) -> None:
    """List the live tokens of a card.

    The card's number is asked for, or read from the standard input.
    """
    vault = session.vault
    found = vault.tokens_of(ask_pan("Card number"), requestor=requestor)
    shown = token_table(found, whole=show_token) if found else Text("no live token", "dim")
    session.output.result({"tokens": [token_document(each, whole=show_token) for each in found]}, shown)


@command(app, "history", TOKENS)
def history(
    session: Session,
    token: TokenArgument,
    after: Annotated[int, typer.Option(min=0, help="How many events to pass over.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=HISTORY_MAX, help="The most events to show.")] = 100,
) -> None:
    """Show what the audit trail says of a token.

    Each event is authenticated.
    """
    events = session.vault.history(token, after=after, limit=limit)
    table = listing(("time", "event", "requestor", "use"), map(_event_row, events))
    session.output.result({"events": events}, table)


def _event_row(event: AuditEvent) -> tuple[RenderableType, ...]:
    done = event.outcome is Outcome.DONE
    name = event.action.name.lower()
    about = [event.transaction_id] if event.transaction_id else []
    return (
        moment(event.time),
        name if done else Text(f"{name} {event.outcome.name.lower()}", "yellow"),
        event.requestor or NOTHING,
        Text("\n").join(map(Text, [*about, *event.codes])) or NOTHING,
    )
