"""Each field of a record's body, one at a time: at its border it is read, beyond it the record is refused."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenvault.errors import IntegrityError, InvalidInputError
from tokenvault.model.counters import Counter, Usage
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.pan import CardExpiry
from tokenvault.records import layout, portable
from tokenvault.records.record import STATUS_CODES, TokenRecord
from tokenvault.records.token_info import TokenInfo, info_of
from tokenvault.stores.port import SealedRecord

FIELDS = (
    "version",
    "parts",
    "status",
    "actors",
    "expiry",
    "domain",
    "created",
    "updated",
    "counters",
    "metadata",
)
RECORD = TokenRecord(
    token="9999120000000000",
    reference=b"r" * 16,
    pan_fingerprint=b"f" * 16,
    requestor="40012345678",
    program="p",
    revision=3,
    domain=hashlib.sha256(b"{}").digest(),
    status=TokenStatus.ACTIVE,
    created_ms=1_000,
    updated_ms=2_000,
)
FULL = RECORD._replace(
    assurance="0A",
    assurance_ms=5,
    par="A" * 29,
    purge_after_ms=7,
    batch=b"b" * 16,
    source=b"s" * 16,
    request=b"q" * 16,
    metadata=b"sealed",
    usage=Usage((Counter(b"a" * 16, 3, 4, 2, 1, 9), Counter(b"b" * 16, 3, 4)), 2**32 - 1, 11, 10, 9),
)
PARTS_START = layout.BODY.size


def row(record: TokenRecord, body: bytes, **fields: Any) -> SealedRecord:
    return record.row(1, b"")._replace(body=body, **fields)


def with_fields(record: TokenRecord, **fields: Any) -> bytes:
    """Its body with other values in the fixed part."""
    body = record.body()
    values = dict(zip(FIELDS, layout.BODY.unpack_from(body), strict=True)) | fields
    return layout.BODY.pack(*values.values()) + body[layout.BODY.size :]


def refused(record: TokenRecord, body: bytes, **fields: Any) -> str:
    with pytest.raises(IntegrityError) as error:
        TokenRecord.parse(row(record, body, **fields))
    return error.value.code


@pytest.mark.parametrize(
    "fields",
    [
        {"parts": 128}, {"parts": 255}, {"status": 0}, {"status": 6}, {"actors": 1}, {"actors": 16},
        {"expiry": 1_201},        {"counters": 1}, {"counters": 65}, {"metadata": 1}, {"created": 1_001},
    ],
)  # fmt: skip
def test_a_body_with_one_field_out_of_range_is_refused(fields: dict[str, int]) -> None:
    refused(RECORD, with_fields(RECORD, **fields))
    assert TokenRecord.parse(row(RECORD, with_fields(RECORD))) == RECORD


def test_what_a_newer_version_wrote_or_is_cut_short_is_told_from_what_nobody_writes() -> None:
    body = RECORD.body()
    for wrong in (b"", body[:-1], with_fields(RECORD, version=1), with_fields(RECORD, version=3)):
        assert refused(RECORD, wrong) == "WRITTEN_BY_NEWER_VERSION"
    assert refused(RECORD, body + b"x") != "WRITTEN_BY_NEWER_VERSION"


@pytest.mark.parametrize("status", TokenStatus)
@pytest.mark.parametrize("actors", range(16))
def test_suspenders_stand_beside_a_status_that_may_have_them(status: TokenStatus, actors: int) -> None:
    """SUSPENDED has some; ACTIVE and DELETED have none; the others either."""
    body = with_fields(RECORD, status=STATUS_CODES[status], actors=actors)
    listed = {"status": STATUS_CODES[status]}
    if status in (TokenStatus.INACTIVE, TokenStatus.WINDING_DOWN) or (
        status is TokenStatus.SUSPENDED
    ) == bool(actors):
        read = TokenRecord.parse(row(RECORD, body, **listed))
        names = (Actor.ISSUER, Actor.REQUESTOR, Actor.CARDHOLDER, Actor.VAULT)
        assert read.suspended_by == {actor for place, actor in enumerate(names) if actors & (1 << place)}
        assert read.body() == body
    else:
        refused(RECORD, body, **listed)


@pytest.mark.parametrize("fields", [{"status": 1}, {"created_ms": 999}, {"status": 0}])
def test_a_row_that_is_listed_otherwise_than_its_body_says_is_refused(fields: dict[str, int]) -> None:
    refused(RECORD, RECORD.body(), **fields)
    body = RECORD.body()
    assert layout.is_listed_as_it_is(body, 2, 1_000)
    assert not layout.is_listed_as_it_is(body, 1, 1_000)
    assert not layout.is_listed_as_it_is(body, 2, 999)


def test_each_field_of_a_full_record_reads_back_and_stands_where_the_layout_says() -> None:
    body = FULL.body()
    assert TokenRecord.parse(row(FULL, body)) == FULL
    assert body[layout.BODY_STATUS] == 2
    assert body[layout.BODY_CREATED] == (1_000).to_bytes(8)
    assert body[layout.BODY_TIMES] == (1_000).to_bytes(8) + (2_000).to_bytes(8)
    assert body[layout.BODY_METADATA_BYTES] == (6).to_bytes(2)
    assert body.endswith(b"sealed")
    months = RECORD._replace(token_expiry=CardExpiry(2099, 12))
    assert TokenRecord.parse(row(months, months.body())) == months
    assert with_fields(RECORD, expiry=1_200) == months.body()


PARTS = {
    1: layout.ASSURANCE.pack(b"0A", 5), 2: layout.PAR.pack(b"A" * 29), 4: layout.USED.pack(1, 1, 2, 1),
    8: layout.PURGE.pack(1), 16: layout.BATCH.pack(b"b" * 16), 32: layout.SOURCE.pack(b"s" * 16),
    64: layout.REQUEST.pack(b"q" * 16),
}  # fmt: skip
WRONG_PARTS = [
    (1, layout.ASSURANCE.pack(b"0a", 5)), (1, layout.ASSURANCE.pack(b"\0\0", 5)),
    (1, layout.ASSURANCE.pack(b"\0\0", 0)),
    (2, layout.PAR.pack(b"a" * 29)), (2, layout.PAR.pack(b"A" * 28)), (2, layout.PAR.pack(b"")),
    (4, layout.USED.pack(2**32 + 1, 0, 0, 0)), (4, layout.USED.pack(0, 0, 1, 2)), (4, layout.USED.pack(0, 0, 0, 0)),
    (8, layout.PURGE.pack(0)), (16, layout.BATCH.pack(b"")), (32, layout.SOURCE.pack(b"")),
    (64, layout.REQUEST.pack(b"")),
    *((bit, part[:-1]) for bit, part in PARTS.items()),
]  # fmt: skip


def with_part(bit: int, part: bytes) -> bytes:
    return with_fields(RECORD, parts=bit) + part


@pytest.mark.parametrize("bit", PARTS)
def test_an_optional_part_is_read_under_its_own_bit(bit: int) -> None:
    body = with_part(bit, PARTS[bit])
    read = TokenRecord.parse(row(RECORD, body))
    assert read.body() == body
    assert read != RECORD


@pytest.mark.parametrize(("bit", "part"), WRONG_PARTS)
def test_an_optional_part_with_a_field_out_of_range_or_all_unset_is_refused(bit: int, part: bytes) -> None:
    refused(RECORD, with_part(bit, part))


def test_the_highest_cryptogram_counter_and_equal_times_are_read() -> None:
    for values in ((2**32, 0, 0, 0), (0, 0, 2, 2), (0, 0, 2, 1)):
        body = with_part(4, layout.USED.pack(*values))
        read = TokenRecord.parse(row(RECORD, body)).usage
        assert (
            read.cryptogram_counter + 1, read.authenticated_ms + 1, read.last_used_ms + 1, read.used_before_ms + 1,
        ) == values  # fmt: skip


def with_counters(*counters: tuple[bytes, int, int, int, int, int]) -> bytes:
    return with_fields(RECORD, counters=len(counters)) + b"".join(
        layout.COUNTER.pack(*each) for each in counters
    )


@pytest.mark.parametrize(
    "counters",
    [
        [(b"b" * 16, 1, 1, 0, 0, 9), (b"a" * 16, 1, 1, 0, 0, 9)],  # not sorted
        [(b"a" * 16, 1, 1, 0, 0, 9), (b"a" * 16, 2, 1, 0, 0, 9)],  # one key twice
        [(b"a" * 16, 1, 1, 2, 0, 9)],  # the window before is the same
        [(b"a" * 16, 1, 1, 3, 0, 9)],  # or a later one
        [(bytes((0, place)) * 8, 1, 1, 0, 0, 9) for place in range(65)],
    ],
)
def test_counters_out_of_order_or_too_many_are_refused(
    counters: list[tuple[bytes, int, int, int, int, int]],
) -> None:
    refused(RECORD, with_counters(*counters))


def test_counters_up_to_sixty_four_are_read_in_order() -> None:
    body = with_counters(*((bytes((0, place)) * 8, 1, 1, place % 2, 0, 9) for place in range(64)))
    read = TokenRecord.parse(row(RECORD, body))
    assert read.body() == body
    assert [counter.previous_window for counter in read.usage.counters] == [-1, 0] * 32


@pytest.mark.parametrize("par", [b"a" * 29, bytes(29)], ids=["of other characters", "that is not there"])
def test_a_part_that_is_refused_is_not_read_as_metadata(par: bytes) -> None:
    record = RECORD._replace(par="A" * 29)
    body = with_fields(record, metadata=29).replace(b"A" * 29, par)
    assert refused(record, body) == IntegrityError.code


def test_each_status_has_the_code_that_its_document_states() -> None:
    text = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
    (stated,) = re.findall(r"\| status: ([^|]*) \|", text)
    codes = {name.replace(" ", "_"): int(code) for code, name in re.findall(r"(\d) ([a-z ]+)", stated)}
    assert codes == {status.name.lower(): code for status, code in STATUS_CODES.items()}
    assert len(codes) == len(TokenStatus)


def test_a_use_makes_the_next_revision_and_changes_nothing_else() -> None:
    used = FULL.used(Usage(), 9_000)
    assert used == FULL._replace(revision=4, updated_ms=9_000, usage=Usage())
    assert repr(used) == f"<TokenRecord {'72' * 16}, revision 4>"


def test_a_state_is_carried_to_another_vault_without_what_only_the_first_can_read() -> None:
    new = RECORD._replace(reference=b"n" * 16, revision=1, created_ms=9, updated_ms=9)
    read = portable.read_state(portable.state_of(FULL), new)
    kept = FULL._replace(metadata=b"", batch=b"", request=b"", reference=b"n" * 16, revision=1)
    assert read == kept


@pytest.mark.parametrize(
    "wrong",
    [
        FULL, FULL._replace(batch=b"", request=b""), FULL._replace(metadata=b"", batch=b""),
        FULL._replace(metadata=b"", request=b""), RECORD._replace(status=TokenStatus.DELETED),
        RECORD._replace(domain=bytes(32)),
    ],
)  # fmt: skip
def test_a_state_with_more_than_it_may_carry_is_refused(wrong: TokenRecord) -> None:
    with pytest.raises(InvalidInputError, match="state is what export_cards writes"):
        portable.read_state(base64.urlsafe_b64encode(wrong.body()).decode(), RECORD)


def test_a_state_of_another_form_is_refused() -> None:
    state = portable.state_of(RECORD)
    assert portable.read_state(state, RECORD) == RECORD
    for text in (
        None,
        5,
        state.encode(),
        "",
        "é",
        "!",
        state[:-4],
        state + "AAAA",
        state[:8] + "\n" + state[8:],
        state[:8] + "!" + state[8:],
        state + "\n",
        "A" * 16_388,
    ):
        with pytest.raises(InvalidInputError, match="state is what export_cards writes"):
            portable.read_state(text, RECORD)


def test_what_is_told_of_a_token_shows_its_last_four_digits_alone_and_takes_no_other_field() -> None:
    info = info_of(RECORD._replace(token="9999120000001234"), None, {"order": "named"})
    assert repr(info).startswith("TokenInfo(token='************1234', ")
    assert "999912" not in repr(info)
    assert "named" not in repr(info)
    assert info.metadata == {"order": "named"}
    assert info.customer is None
    assert info_of(RECORD._replace(customer="c"), None).customer == "c"
    by_position: Callable[..., TokenInfo] = TokenInfo
    with pytest.raises(InvalidInputError):
        by_position(*vars(info).values())
    with pytest.raises(InvalidInputError):
        TokenInfo(tokne="9999120000001234")  # type: ignore[call-arg] # no such argument, and others are missing
