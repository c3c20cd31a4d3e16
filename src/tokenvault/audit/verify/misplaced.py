"""Where an event with a wrong MAC comes from: another place, a copy, or someone's own making."""

from __future__ import annotations

from itertools import islice
from typing import Final

from tokenvault.audit.event import leaf_of
from tokenvault.audit.verify.pages import about_pages
from tokenvault.audit.verify.report import FindingKind, Findings
from tokenvault.audit.verify.stream import Suspects
from tokenvault.audit.verify.trusted_keys import Proof
from tokenvault.stores.port import SealedEvent, TokenStore

PLACES_MAX: Final = 200


def look_into(suspects: Suspects, proof: Proof, store: TokenStore, findings: Findings) -> None:
    """Note what each event with a wrong MAC is: moved here, copied, edited or inserted."""
    places = _places(suspects)
    for row, there in suspects.rows:
        origin = _origin(row, places, proof)
        if origin is not None:
            findings.add_event(
                FindingKind.MOVED,
                f"the vault wrote this event as number {origin[1]} of stream {origin[0].hex()}",
                row,
            )
            continue
        copied = _copied(row, proof, store) if row.reference else None
        if copied is not None:
            findings.add_event(
                FindingKind.INSERTED,
                f"this is a copy of the event that stands as number {copied.number} in stream {copied.stream.hex()}",
                row,
            )
        elif there:
            findings.add_event(
                FindingKind.EDITED, "the MAC of this event is wrong: it was edited, or put there by hand", row
            )
        else:
            findings.add_event(FindingKind.INSERTED, "the vault writes no event here", row)


def _places(suspects: Suspects) -> list[tuple[bytes, int]]:
    """Where an event of the vault is missing, or may be under another one."""
    gone = ((stream, n) for stream, first, last in suspects.missing for n in range(first, last + 1))
    return [(row.stream, row.number) for row, _ in suspects.rows] + list(islice(gone, PLACES_MAX))


def _origin(row: SealedEvent, places: list[tuple[bytes, int]], proof: Proof) -> tuple[bytes, int] | None:
    """The place for which an event's MAC is right."""
    here = (row.stream, row.number)
    moved = [row._replace(stream=s, number=n) for s, n in places if (s, n) != here]
    genuine = proof.genuine(moved, [leaf_of(each) for each in moved])
    return next(
        ((each.stream, each.number) for each, right in zip(moved, genuine, strict=True) if right), None
    )


def _copied(row: SealedEvent, proof: Proof, store: TokenStore) -> SealedEvent | None:
    """The genuine event, standing elsewhere, of which this is a copy."""
    for page in about_pages(store, row.reference):
        same = [each for each in page if (each.mac, each.body) == (row.mac, row.body)]
        genuine = proof.genuine(same, [leaf_of(each) for each in same])
        found = next((each for each, right in zip(same, genuine, strict=True) if right), None)
        if found is not None:
            return found
    return None
