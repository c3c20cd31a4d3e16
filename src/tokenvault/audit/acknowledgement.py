"""What an operator has acknowledged of the trail: losses that a restore or a failover left, each by its range.

Layout of the payload of an event of action ACKNOWLEDGE, which follows its body, big endian:

    1   length of the reason, then its ASCII
    2   number of losses, at most 1,000; each:
        1   kind of the finding, by its place in FindingKind, from 1
        16  stream; zeros where it is about a record
        8   first number, 8 last number; of a record, its revisions that no event tells of; where it fell, twice how
            many events tell of the revision, or of the record if an older row was put back; 0 where it names none
        16  reference; zeros where it is about a stream
        8   revision; 0 where it names none
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from tokenvault.audit.verify.report import AuditFinding, FindingKind

LOSSES_MAX: Final = 1_000
"""Losses that one event names; the next event names the next ones."""

_KINDS: Final = tuple(FindingKind)
_LOST: Final = frozenset(
    {FindingKind.REMOVED, FindingKind.TRUNCATED, FindingKind.STREAM_DROPPED, FindingKind.GAP}
)
"""One loss in several shapes: what was cut off the end is missing in between once the stream goes on."""

_COUNT: Final = struct.Struct(">H")
_LOSS: Final = struct.Struct(">B16sQQ16sQ")
_NONE: Final = bytes(16)


class Loss(NamedTuple):
    """A finding that was acknowledged; attributes as in AuditFinding, empty or 0 where it has none."""

    kind: FindingKind
    stream: bytes = b""
    first: int = 0
    last: int = 0
    reference: bytes = b""
    revision: int = 0

    @classmethod
    def of(cls, finding: AuditFinding) -> Loss | None:
        """The loss that a finding is about; None where it names neither a stream's events nor a record."""
        if finding.kind is FindingKind.UNSIGNED or (finding.stream is None and finding.reference is None):
            return None  # it would cover what is not known yet
        first, last = finding.number or 0, finding.last or finding.number or 0
        if finding.kind is FindingKind.STREAM_DROPPED:
            first = 1  # up to what was known of it
        return cls(
            finding.kind,
            bytes.fromhex(finding.stream or ""),
            first,
            last,
            bytes.fromhex(finding.reference or ""),
            finding.revision or 0,
        )

    def covers(self, other: Loss) -> bool:
        """Whether another loss lies within this one."""
        alike = self.kind is other.kind or {self.kind, other.kind} <= _LOST
        if self.kind is FindingKind.REVISION_FELL and self.first != other.first:
            return False  # it fell again, or more has been told of it since
        if self.kind is FindingKind.REMOVED and self.reference and self.last != other.last:
            return False  # the run ends elsewhere: an older row was put back, or more is missing
        if self.kind is not FindingKind.REMOVED and self.revision != other.revision:
            return False
        within = self.first <= other.first <= other.last <= self.last
        return alike and within and (self.stream, self.reference) == (other.stream, other.reference)


class Acknowledgement(NamedTuple):
    """What one event acknowledges."""

    reason: str
    losses: tuple[Loss, ...]

    def payload(self) -> bytes:
        """The canonical encoding."""
        reason = self.reason.encode("ascii")
        return b"".join(
            (
                bytes((len(reason),)),
                reason,
                _COUNT.pack(len(self.losses)),
                *(
                    _LOSS.pack(
                        _KINDS.index(kind) + 1, stream or _NONE, first, last, reference or _NONE, revision
                    )
                    for kind, stream, first, last, reference, revision in self.losses
                ),
            )
        )

    @classmethod
    def parse(cls, payload: bytes) -> Acknowledgement:
        """Read a payload. Raises struct.error, IndexError or ValueError; the caller compares the encoding."""
        end = 1 + payload[0]
        (count,) = _COUNT.unpack_from(payload, end)
        if count > LOSSES_MAX:
            raise ValueError(count)
        losses = [
            Loss(_kind(kind), _name(stream), first, last, _name(reference), revision)
            for kind, stream, first, last, reference, revision in _LOSS.iter_unpack(
                payload[end + _COUNT.size :]
            )
        ]
        return cls(payload[1:end].decode("ascii"), tuple(losses))


def _name(packed: bytes) -> bytes:
    return b"" if packed == _NONE else packed


def _kind(place: int) -> FindingKind:
    if not 1 <= place <= len(_KINDS):
        raise ValueError(place)
    return _KINDS[place - 1]


class Acknowledged:
    """What the events that were read acknowledge, and which findings that covers."""

    def __init__(self) -> None:
        self._streams: dict[bytes, list[Loss]] = {}

    def add(self, losses: Iterable[Loss]) -> None:
        """Note what an event acknowledges."""
        for loss in losses:
            self._streams.setdefault(loss.reference or loss.stream, []).append(loss)

    def covers(self, finding: AuditFinding) -> bool:
        """Whether a finding was acknowledged."""
        loss = Loss.of(finding)
        if loss is None:
            return False
        return any(each.covers(loss) for each in self._streams.get(loss.reference or loss.stream, ()))


def described(acknowledgement: Acknowledgement) -> Mapping[str, object]:
    """An acknowledgement for the export."""
    return {
        "reason": acknowledgement.reason,
        "losses": [
            {
                "kind": each.kind.name,
                "stream": each.stream.hex() or None,
                "first": each.first,
                "last": each.last,
                "reference": each.reference.hex() or None,
                "revision": each.revision,
            }
            for each in acknowledgement.losses
        ],
    }
