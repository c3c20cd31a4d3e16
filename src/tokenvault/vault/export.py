"""Exporting cards with their tokens to another vault, encrypted to its public key, under dual control.

An export is lines, each a JWE over JSON: `{"export", "number", "domains", "rows"}`, numbered from 0, and a last one
with `"rows": null`. So a line that is missing, repeated or of another export shows. A row names its
domain by the place of its document in `domains`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import attrs

from tokenvault.audit.batch_event import BatchEvent, Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Event, Outcome
from tokenvault.errors import IntegrityError, InvalidInputError, boundary_init, given, iterator_boundary
from tokenvault.interrupts import is_interrupt
from tokenvault.model.domain import Domain
from tokenvault.model.dual_control import KEY_BYTES, RevealRequest, letters
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card
from tokenvault.records.portable import state_of
from tokenvault.records.record import STATUS_CODES, TokenRecord
from tokenvault.stores.port import SealedRecord
from tokenvault.vault import dual_control
from tokenvault.vault.batch.imports import TokenToImport
from tokenvault.vault.core import Core, unsealed
from tokenvault.vault.dual_control import EXPORT, Call
from tokenvault.vault.recipient import Opener, Recipient
from tokenvault.vault.uses import genuine_events

LINE_ROWS: Final = 500
"""Tokens of one line."""

LINE_DOCUMENT_BYTES: Final = 2**22
"""Domain documents of one line: the largest one fits."""

_INCOMPLETE: Final = "the export lacks lines, has some twice, or holds those of another one"


class Writable(Protocol):
    """What lines are written to: a text file, for one."""

    def write(self, text: str, /) -> object:
        """Take a text."""
        ...


@boundary_init
@attrs.frozen(kw_only=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        tokens: how many tokens, with their cards.
        lines: in how many lines.
    """

    tokens: int
    lines: int


# Asking and approving.


async def request_export(
    core: Core,
    operator: object,
    purpose: object,
    recipient: Recipient,
    program: str | None,
    requestor: str | None,
) -> RevealRequest:
    """Ask to export the cards of a program, a requestor, both or all."""
    number = secrets.token_bytes(KEY_BYTES)
    call = await dual_control.step(core, EXPORT, EXPORT.request, operator, number)
    allowed = await dual_control.allowed_purpose(core, call, purpose)
    return await dual_control.ask(core, call, number, (allowed, *_terms(recipient, program, requestor)))


async def approve(core: Core, number: bytes, operator: object) -> RevealRequest:
    """Approve another person's export."""
    call = await dual_control.step(core, EXPORT, EXPORT.approve, operator, number)
    found = await dual_control.check(core, call, number, await _events(core, call))
    await core.trail.note(call.event(core.clock.now_ms(), found.asked.codes, number))
    return found.request(core, number, approved_by=call.operator)


def _terms(recipient: Recipient, program: str | None, requestor: str | None) -> tuple[str, ...]:
    """What is asked and approved, beside the purpose. In letters, no part of a thumbprint looks like a PAN."""
    chosen = (("program", program), ("requestor", requestor))
    return (
        letters(recipient.thumbprint),
        *(f"{name} {value}" for name, value in chosen if value is not None),
    )


async def _events(core: Core, call: Call) -> list[Event]:
    await call.policy(core)
    rows = await core.store.uses([(call.number, call.number)])
    try:
        return [event for _, event in await genuine_events(core, rows, (call.number,))]
    except IntegrityError:
        await call.deny(core, reference=call.number, outcome=Outcome.TAMPERED)
        raise


# Exporting.


async def export_cards(
    core: Core, request: tuple[bytes, bytes], operator: object, recipient: Recipient, to: Writable
) -> ExportReport:
    """Write the cards of an approved export, once, for who asked; each chunk once its event is written."""
    subject, number = request
    call = await dual_control.step(core, EXPORT, EXPORT.use, operator, number)
    found = await dual_control.check(core, call, subject, await _events(core, call))
    purpose, thumbprint, *chosen = found.asked.codes
    if thumbprint != letters(recipient.thumbprint):
        await call.refuse(core, "RECIPIENT_DIFFERS", subject)
    await dual_control.claim(core, call, subject)
    await core.trail.note(call.event(core.clock.now_ms(), found.asked.codes, subject))
    wanted = dict(text.split(" ", 1) for text in chosen)
    lines = tokens = 0
    after, size = "", core.store.write_limits.items(2, LINE_ROWS)  # a row of the index, and the fence
    while page := await core.store.scan(after=after, limit=size):
        after = page[-1].token
        rows = await _exported(core, call, page, purpose, wanted)
        for content in _lines(rows):
            await _write(core, recipient, to, {"export": letters(number), "number": lines, **content})
            lines += 1
        tokens += len(rows)
    end = {"export": letters(number), "number": lines, "domains": [], "rows": None}
    await _write(core, recipient, to, end)
    return ExportReport(tokens=tokens, lines=lines + 1)


def _is_wanted(row: SealedRecord, wanted: Mapping[str, str]) -> bool:
    """Whether a row is one of those that were approved; a tombstone has no card."""
    return (
        row.status != STATUS_CODES[TokenStatus.DELETED]
        and wanted.get("program", row.program) == row.program
        and wanted.get("requestor", row.requestor) == row.requestor
    )


async def _exported(
    core: Core, call: Call, page: Sequence[SealedRecord], purpose: str, wanted: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What an export holds of a page, once the event of their export is written, as its rows are by then.

    Raises IntegrityError, ConflictError.
    """
    conflicts = 0
    while rows := [row for row in page if _is_wanted(row, wanted)]:
        exported, event = await _rows(core, call, rows, purpose)
        # A deletion that was acknowledged holds.
        fence = [(row.token, row.revision) for row in rows]
        if event is None or not await core.trail.note(event, fence):
            return exported
        conflicts = await core.conflict(conflicts)
        page = await core.store.get([row.token for row in rows])
    return []


async def _rows(
    core: Core, call: Call, rows: list[SealedRecord], purpose: str
) -> tuple[list[dict[str, Any]], BatchEvent | None]:
    """What an export holds of rows, and the event of their export. Raises IntegrityError."""
    cards, genuine = await core.runtime.call(core.keys.unseal_many, rows)
    notes = BatchEventBuilder(len(rows), core.trail.ids.kept)
    exported = []
    for place, row in enumerate(rows):
        if not genuine[place]:
            await call.deny(core, reference=row.reference, outcome=Outcome.TAMPERED)
            raise IntegrityError("a token record is not what the vault sealed: nothing more was exported")
        card = cards.card(place) if cards.pans.lengths[place] else None
        record, card = unsealed(TokenRecord.parse(row), card)
        if card is not None:
            exported.append(await _row(core, record, card))
            notes.note(
                place,
                record.reference,
                0,
                Kind(Outcome.DONE, None, (purpose,), call.operator),
                letters(call.number),
            )
    return exported, notes.event(core.clock.now_ms(), call.action)


async def _row(core: Core, record: TokenRecord, card: Card) -> dict[str, Any]:
    domain = await core.documents.get(record.domain)
    metadata = await core.runtime.call(core.keys.metadata, record) if record.metadata else None
    return {
        "token": record.token,
        "pan": card.pan.reveal(),
        "expiry": None if card.expiry is None else str(card.expiry),
        "requestor": record.requestor,
        "program": record.program,
        "domain": domain.document.decode("ascii"),
        "customer": record.customer or None,
        "metadata": metadata,
        "reference": record.reference.hex(),
        "state": state_of(record),
    }


def _lines(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What lines hold of rows: each domain document once a line, and not too many bytes of them."""
    places: dict[str, int] = {}
    line: list[dict[str, Any]] = []
    for row in rows:
        document = row["domain"]
        if line and document not in places and sum(map(len, [*places, document])) > LINE_DOCUMENT_BYTES:
            yield {"domains": list(places), "rows": line}
            places, line = {}, []
        line.append({**row, "domain": places.setdefault(document, len(places))})
    if line:
        yield {"domains": list(places), "rows": line}


async def _write(core: Core, recipient: Recipient, to: Writable, content: Mapping[str, object]) -> None:
    plaintext = json.dumps(content, separators=(",", ":")).encode("ascii")

    def write() -> None:
        line = recipient.encrypt(plaintext)
        try:
            to.write(f"{line}\n")
        except Exception as error:  # the caller's own file failed
            if is_interrupt(error):
                raise
            raise InvalidInputError(
                "what the export is written to failed; the request is used up", code="EXPORT_NOT_WRITTEN"
            ) from None

    await core.runtime.block(write)


# Opening.


@iterator_boundary
def open_export(
    lines: Iterable[str], *, private_key: str | bytes, password: bytes | None = None
) -> Generator[TokenToImport, None, None]:
    """The tokens of an export, as `Vault.import_tokens` takes them. Each holds a card number.

    Args:
        lines: of the export, as an open file gives them.
        private_key: of the public key that it was encrypted to, in PEM.
        password: of the private key, if it has one.

    Raises:
        InvalidInputError: a line is damaged, encrypted to another key, missing, or of another export: the tokens of
            the lines before were given already.
        ConfigurationError: joserfc is not installed.
    """
    opener = Opener(private_key, password)
    if isinstance(lines, str | bytes) or not isinstance(lines, Iterable):
        raise InvalidInputError("lines is an iterable of texts, such as an open file")
    export: object = None
    ended = False
    for number, line in enumerate(given("the lines of the export failed as they were read", lines)):
        if not isinstance(line, str):
            raise InvalidInputError("a line of an export is text")
        content = _content(opener.decrypt(line.strip()))
        export = content["export"] if number == 0 else export
        if ended or (content["export"], content["number"]) != (export, number):
            raise InvalidInputError(_INCOMPLETE, code="EXPORT_INCOMPLETE")
        domains = [Domain.from_json(document) for document in content["domains"]]
        for row in content["rows"] or ():
            row["domain"] = domains[row["domain"]]
            yield row
        ended = content["rows"] is None
    if not ended:
        raise InvalidInputError(_INCOMPLETE, code="EXPORT_INCOMPLETE")


def _content(plaintext: bytes) -> dict[str, Any]:
    """The JSON of a line. Raises InvalidInputError where it is none that `export_cards` writes."""
    with suppress(ValueError, RecursionError):
        content = json.loads(plaintext)
        if isinstance(content, dict) and {"export", "number", "domains", "rows"} <= content.keys():
            domains, rows = content["domains"], content["rows"]
            if isinstance(domains, list) and (rows is None or isinstance(rows, list)):
                places = range(len(domains))
                if all(isinstance(row, dict) and row.get("domain") in places for row in rows or ()):
                    return content
    raise InvalidInputError(
        "a line of the export is not one that export_cards writes", code="EXPORT_UNREADABLE"
    )
