"""The canonical encodings of records and events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests.strategies import REQUESTORS, big, records
from tokenvault.audit.acknowledgement import Acknowledgement, Loss
from tokenvault.audit.checkpoint import CROSS_REFERENCES_MAX, Checkpoint, CrossReference
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.guard_note import LEVEL_MAX, Failure, FailureKind, LockOut
from tokenvault.audit.purge_note import PurgeNote
from tokenvault.audit.use_note import UseNote
from tokenvault.errors import IntegrityError
from tokenvault.model.kinds import Kind
from tokenvault.records.record import STATUS_CODES, TokenRecord
from tokenvault.stores.port import SealedEvent, SealedRecord
from tokenvault.vault.risk import SCORE_MAX


def row_of(record: TokenRecord, body: bytes) -> SealedRecord:
    return SealedRecord(
        record.token,
        record.reference,
        record.pan_fingerprint,
        record.requestor,
        record.program,
        record.revision,
        1,
        body,
        b"",
        record.customer,
        record.last4_key,
        STATUS_CODES[record.status],
        record.created_ms,
    )


@given(records())
def test_a_record_reads_back_as_it_was_written(record: TokenRecord) -> None:
    assert TokenRecord.parse(row_of(record, record.body())) == record


@given(records(), st.data())
def test_a_changed_body_is_refused_or_encodes_back_to_the_same_bytes(
    record: TokenRecord, data: st.DataObject
) -> None:
    body = bytearray(record.body())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    _refused_or_identical(record, bytes(body))


@given(records(), st.binary(max_size=300), st.integers(0, 300))
def test_a_cut_or_lengthened_body_is_refused_or_encodes_back(
    record: TokenRecord, more: bytes, cut: int
) -> None:
    body = record.body()
    _refused_or_identical(record, body[:cut])
    _refused_or_identical(record, body + more)
    _refused_or_identical(record, more)


def _refused_or_identical(record: TokenRecord, body: bytes) -> None:
    try:
        parsed = TokenRecord.parse(row_of(record, body))
    except IntegrityError:
        return
    assert parsed.body() == body


OWN_PAYLOAD = (Action.CHECKPOINT, Action.LOCK_OUT, Action.ACKNOWLEDGE, Action.PURGE_EVENTS)
hashes = st.binary(min_size=32, max_size=32)
checkpoints = st.builds(
    Checkpoint,
    size=big,
    root=hashes,
    closes=st.booleans(),
    cross_references=st.lists(
        st.builds(CrossReference, st.binary(min_size=16, max_size=16), big, hashes),
        max_size=CROSS_REFERENCES_MAX,
    ).map(tuple),
) | st.builds(
    Checkpoint,
    size=big,
    root=hashes,
    key_id=st.binary(min_size=7, max_size=7).map(b"\x01".__add__),
    signature=st.binary(min_size=64, max_size=64),
)
failures = st.lists(
    st.builds(
        Failure,
        st.sampled_from(FailureKind),
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=8, max_size=8),
    ),
    max_size=5,
).map(tuple)
plain_events = st.builds(
    Event,
    time_ms=big,
    action=st.sampled_from([action for action in Action if action not in OWN_PAYLOAD]),
    outcome=st.sampled_from(Outcome),
    requestor=st.none() | st.sampled_from(REQUESTORS),
    reference=st.binary(min_size=16, max_size=16) | st.just(b""),
    transaction_id=st.none() | st.text("abc 123", min_size=1, max_size=64),
    codes=st.lists(st.sampled_from(["A", "LONG_CODE"]), max_size=20).map(tuple),
    revision=big,
    operator=st.none() | st.text("abc 123", min_size=1, max_size=64),
    use=st.none(),
    checkpoint=st.none(),
    lock_out=st.none(),
    acknowledgement=st.none(),
    purge=st.none(),
    failures=st.just(()),
)
sixteen = st.binary(min_size=16, max_size=16).filter(any)
use_events = st.builds(
    Event,
    time_ms=big,
    action=st.just(Action.DETOKENIZE),
    outcome=st.sampled_from([Outcome.DONE, Outcome.DENIED, Outcome.TAMPERED]),
    requestor=st.sampled_from(REQUESTORS),
    reference=sixteen,
    transaction_id=st.text("abc 123", min_size=1, max_size=64),
    codes=st.just(()),
    revision=big,
    operator=st.none(),
    use=st.builds(
        UseNote,
        kind=st.sampled_from(Kind),
        content=st.binary(min_size=16, max_size=16),
        use_id=sixteen,
        original=st.just(b"") | sixteen,
        amount=st.integers(0, 2**63),
        currency=st.sampled_from(["", "EUR"]),
        final=st.booleans(),
        strong=st.booleans(),
        retry=st.booleans(),
        score=st.none() | st.integers(0, SCORE_MAX),
        counted=st.lists(sixteen, max_size=64, unique=True).map(sorted).map(tuple),
    ),
    checkpoint=st.none(),
    lock_out=st.none(),
    acknowledgement=st.none(),
    purge=st.none(),
    failures=failures,
)
lock_outs = st.builds(
    Event,
    time_ms=big,
    action=st.just(Action.LOCK_OUT),
    outcome=st.just(Outcome.DONE),
    requestor=st.sampled_from(REQUESTORS),
    reference=st.just(b""),
    transaction_id=st.none(),
    codes=st.just(()),
    revision=st.just(0),
    operator=st.none(),
    use=st.none(),
    checkpoint=st.none(),
    lock_out=st.builds(LockOut, big, st.integers(0, LEVEL_MAX)),
    acknowledgement=st.none(),
    purge=st.none(),
    failures=st.just(()),
)
filled = st.binary(min_size=16, max_size=16).filter(any) | st.just(b"")
acknowledgements = st.builds(
    Event,
    time_ms=big,
    action=st.just(Action.ACKNOWLEDGE),
    outcome=st.just(Outcome.DONE),
    requestor=st.none(),
    reference=st.just(b""),
    transaction_id=st.none(),
    codes=st.just(()),
    revision=st.just(0),
    operator=st.just("ann"),
    use=st.none(),
    checkpoint=st.none(),
    lock_out=st.none(),
    acknowledgement=st.builds(
        Acknowledgement,
        reason=st.text("abc 123", max_size=64),
        losses=st.lists(
            st.builds(
                Loss,
                kind=st.sampled_from(tv.FindingKind),
                stream=filled,
                first=big,
                last=big,
                reference=filled,
                revision=big,
            ),
            max_size=3,
        ).map(tuple),
    ),
    purge=st.none(),
    failures=st.just(()),
)
purges = st.builds(
    Event,
    time_ms=big,
    action=st.just(Action.PURGE_EVENTS),
    outcome=st.just(Outcome.DONE),
    requestor=st.none(),
    reference=sixteen,
    transaction_id=st.none(),
    codes=st.just(()),
    revision=st.just(0),
    operator=st.none() | st.just("ann"),
    use=st.none(),
    checkpoint=st.none(),
    lock_out=st.none(),
    acknowledgement=st.none(),
    purge=st.builds(
        PurgeNote.of,
        st.dictionaries(st.integers(1, 60), hashes, min_size=1).map(lambda leaves: sorted(leaves.items())),
        st.lists(st.tuples(sixteen, st.integers(1, 9)), max_size=9),
    ),
    failures=st.just(()),
)
events = (
    use_events
    | plain_events
    | lock_outs
    | acknowledgements
    | purges
    | st.builds(
        Event,
        time_ms=big,
        action=st.just(Action.CHECKPOINT),
        outcome=st.sampled_from(Outcome),
        requestor=st.none(),
        reference=st.binary(min_size=16, max_size=16),
        transaction_id=st.none(),
        codes=st.just(()),
        revision=st.just(0),
        operator=st.none(),
        use=st.none(),
        checkpoint=checkpoints,
        lock_out=st.none(),
        acknowledgement=st.none(),
        purge=st.none(),
        failures=st.just(()),
    )
)


@given(events)
def test_an_event_reads_back_as_it_was_written(event: Event) -> None:
    assert Event.parse(SealedEvent(bytes(16), 1, event.reference, event.body(), bytes(16))) == event


@pytest.mark.parametrize("code", [*Action, *Outcome])
def test_codes_of_events_print_as_names_not_numbers(code: Action | Outcome) -> None:
    assert str(code) == f"{code}" == f"{type(code).__name__}.{code.name}"


@given(events, st.data())
def test_a_changed_event_is_refused_or_encodes_back(event: Event, data: st.DataObject) -> None:
    body = bytearray(event.body() + data.draw(st.binary(max_size=2)))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    row = SealedEvent(bytes(16), 1, event.reference, bytes(body), bytes(16))
    try:
        parsed = Event.parse(row)
    except IntegrityError:
        return
    assert parsed.body() == row.body


def test_the_fixed_part_of_a_body_is_as_documented() -> None:
    """Byte for byte, as docs/formats.md lays it out: a change here breaks every database there is."""
    from tokenvault.model.counters import Counter, Usage
    from tokenvault.model.lifecycle import Actor, TokenStatus
    from tokenvault.model.pan import CardExpiry

    record = TokenRecord(
        token="9999120000001111", reference=bytes(16), pan_fingerprint=bytes(16), requestor="40012345678",
        program="p",
        revision=3, domain=bytes(range(32)), status=TokenStatus.SUSPENDED,
        suspended_by=frozenset({Actor.ISSUER, Actor.VAULT}), token_expiry=CardExpiry(2029, 12), assurance="10",
        par="V" * 29, usage=Usage((Counter(bytes(range(16)), 20_000, 4_200, 19_999, 1, 2**63 - 1),), 7, 9, 16, -1),
        created_ms=1, updated_ms=2, assurance_ms=3, purge_after_ms=4, batch=b"b" * 16, source=b"s" * 16,
        request=b"r" * 16, metadata=b"sealed",
    )  # fmt: skip
    assert record.body().hex() == (
        "02" "7f" "03" "09" "0168" + bytes(range(32)).hex() + "0000000000000001" "0000000000000002" "01" "0006"
        "3130" "0000000000000003" + "56" * 29
        + "0000000000000008" "000000000000000a" "0000000000000011" "0000000000000000" "0000000000000004"
        + "62" * 16 + "73" * 16 + "72" * 16 + bytes(range(16)).hex()
        + "0000000000004e20" "0000000000001068" "0000000000004e20" "0000000000000001" "7fffffffffffffff"
        + b"sealed".hex()
    )  # fmt: skip
    assert TokenRecord.parse(row_of(record, record.body())) == record


@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_another_encoding_version_is_refused(version: int) -> None:
    with pytest.raises(IntegrityError, match="newer version"):
        TokenRecord.parse(
            SealedRecord(
                "9" * 16, bytes(16), bytes(16), "4" * 11, "p", 1, 1, bytes([version]) + bytes(200), b""
            )
        )
