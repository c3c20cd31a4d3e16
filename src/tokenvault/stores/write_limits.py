"""How much a token store takes in one atomic write, as the store says itself.

Databases differ: DynamoDB takes 100 actions and 4 MB, FoundationDB 10 MB with values of 100 kB, others what the
memory of a server holds. A vault cuts its batches by that, so that each chunk is one write.
"""

from __future__ import annotations

from typing import Final

import attrs

from tokenvault.errors import InvalidInputError

BODY_BYTES_MAX: Final = 16_384
"""The largest body of a record, and the largest of an event that is no batch's."""

EVENT_BODY_BYTES_MAX: Final = 2**20
DOCUMENT_BYTES_MAX: Final = 2**22
DOCUMENT_BESIDE_BYTES_MAX: Final = 65_536
"""The largest document that a vault writes with a record: any store takes both in one write."""

ROW_BYTES: Final = 400
"""What a row of any kind is counted with beside its body: no key and no column to look up by takes more."""

ROWS_MIN: Final = 16
ROWS_MAX: Final = 40_000
BYTES_MIN: Final = 2**17
BYTES_MAX: Final = 2**26
"""Twice as many take PostgreSQL longer than a statement may, where the machine is busy."""

EVENT_BYTES_MIN: Final = 16_384

_ROWS_BESIDE: Final = 8
"""Of a batch's write, those that are no item's: its event, a checkpoint, their index rows."""

_EVENT_BYTES_BESIDE: Final = 8_000
EVENT_BYTES_OF_AN_ITEM: Final = 130
"""What a batch's event needs at most for an item: its reference, revision, transaction id, and a kind of its own."""


@attrs.frozen(kw_only=True)
class WriteLimits:
    """The most that a store takes in one atomic write.

    Attributes:
        rows: records, events, index rows and the document, together; 16 to 40,000.
        bytes: of all bodies and the document, and ROW_BYTES more for each row; 131,072 to 67,108,864.
        event_bytes: of the body of one event; 16,384 to 1,048,576.

    Raises:
        InvalidInputError: one is no whole number, or outside its range.
    """

    rows: int = ROWS_MAX
    bytes: int = BYTES_MAX
    event_bytes: int = EVENT_BODY_BYTES_MAX

    def __attrs_post_init__(self) -> None:
        for name, value, least, most in (
            ("rows", self.rows, ROWS_MIN, ROWS_MAX),
            ("bytes", self.bytes, BYTES_MIN, BYTES_MAX),
            ("event_bytes", self.event_bytes, EVENT_BYTES_MIN, EVENT_BODY_BYTES_MAX),
        ):
            if type(value) is not int or not least <= value <= most:
                raise InvalidInputError(f"{name} of WriteLimits is a whole number from {least} to {most}")

    def items(
        self, rows_each: int, items_max: int, event_bytes_each: int = EVENT_BYTES_OF_AN_ITEM, *,
        body_bytes_each: int = BODY_BYTES_MAX,
    ) -> int:  # fmt: skip
        """How many items of a batch go in one write, whatever they are: at least 1, at most `items_max`.

        Args:
            rows_each: a record and the index rows that one item may need.
            items_max: a bound of the caller's own.
            event_bytes_each: what the batch's event needs for one item.
            body_bytes_each: the most that the body of an item's record takes.
        """
        beside = _ROWS_BESIDE * ROW_BYTES + BODY_BYTES_MAX + _EVENT_BYTES_BESIDE
        each = rows_each * ROW_BYTES + body_bytes_each + event_bytes_each
        return min(
            items_max,
            (self.rows - _ROWS_BESIDE) // rows_each,
            (self.bytes - beside) // each,
            (self.event_bytes - _EVENT_BYTES_BESIDE) // event_bytes_each,
        )
