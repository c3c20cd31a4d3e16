"""Tokens with given values: each row is checked, collisions are told by row, and an import is done again at will."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from typing import Any

import pytest

import tokenvault as tv
from tests import vault_workers, vaults
from tests.strategies import NOW_MS
from tests.test_batches import CountingStore
from tests.test_idempotency import Meanwhile
from tests.vaults import ISSUER_ONLY, MASTERCARD, SHOP, STRANGER, VISA, all_records, batch_events, issue, use
from tokenvault.audit.batch_event import items, parse
from tokenvault.audit.event import Action, Outcome
from tokenvault.keys import KeyStore
from tokenvault.model.pan import luhn_check_digit
from tokenvault.records.keyring import KeyRing
from tokenvault.records.portable import state_of
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import SealedEvent, TokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.vault.batch import imports
from tokenvault.vault.batch import run as batches


@pytest.fixture
def vault(keys: KeyStore, store: TokenStore) -> tv.Vault:
    return vaults.open_vault(keys, store)


def token(number: int, bin_digits: str = "999913") -> str:
    payload = f"{bin_digits}{number:09}"
    return payload + luhn_check_digit(payload)


def row(number: int = 1, **given: Any) -> Any:
    return {"token": token(number), "pan": vault_workers.card_number(number), "expiry": "2029-12", **given}


def imported(vault: tv.Vault, *rows: object, **common: Any) -> list[str]:
    """The token of each row, or the code of its error."""
    results = vault.import_tokens(rows, **{"requestor": SHOP, "program": "one-time", **common})  # type: ignore[arg-type]
    return [each.code if isinstance(each, tv.TokenVaultError) else each.token for each in results]


def test_a_token_keeps_its_value_and_works_as_if_it_were_issued(vault: tv.Vault, store: TokenStore) -> None:
    domain = tv.Domain(limits=[tv.Limit(uses=1)])
    given = row(7, domain=domain, customer="c-7", metadata={"from": "vendor"}, par="P" * 29, assurance="12")
    (info,) = vault.import_tokens([given], requestor=SHOP, program="one-time", operator="alice")
    assert isinstance(info, tv.TokenInfo)
    assert (info.token, info.customer, dict(info.metadata)) == (token(7), "c-7", {"from": "vendor"})
    assert (info.status, info.par, info.assurance) == (tv.TokenStatus.ACTIVE, "P" * 29, "12")
    assert vault.get(token(7)) == info == vault.get(info.reference)
    assert vault.search(customer="c-7") == [info] == vault.tokens_of(given["pan"])
    assert vault.detokenize(token(7), use(1)).pan.reveal() == given["pan"]
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(token(7), use(2))
    first = vault.history(info.reference)[0]
    assert (first.action, first.codes, first.operator) == (Action.ISSUE, ("IMPORTED",), "alice")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"token": token(1, "999912")}, "TOKEN_FORMAT_DIFFERS"),
        ({"token": token(1)[:-1] + str((int(token(1)[-1]) + 1) % 10)}, "TOKEN_FORMAT_DIFFERS"),
        ({"token": "999913" + "0" * 8}, "TOKEN_FORMAT_DIFFERS"),
        ({"token": vault_workers.card_number(1)}, "TOKEN_FORMAT_DIFFERS"),
        ({"token": "x"}, "INVALID_INPUT"),
        ({"token": None}, "INVALID_INPUT"),
        ({"pan": token(1)}, "PAN_IS_TOKEN"),
        ({"pan": VISA[:-1] + "2"}, "PAN_CHECK_DIGIT"),
        ({"pan": None}, "PAN_CHARACTERS"),
        ({"expiry": "12/29"}, "EXPIRY_FORM"),
        ({"requestor": STRANGER}, "REQUESTOR_UNKNOWN"),
        ({"requestor": ISSUER_ONLY, "program": "online"}, "PROGRAM_NOT_ALLOWED"),
        ({"program": "no such"}, "PROGRAM_UNKNOWN"),
        ({"customer": vault_workers.card_number(1)}, "CARD_NUMBER_IN_TEXT"),
        ({"par": "P" * 13 + vault_workers.card_number(1)}, "CARD_NUMBER_IN_TEXT"),
        ({"metadata": {"a": "b" * 65}}, "METADATA_TOO_LONG"),
        ({"reference": "0" * 32}, "INVALID_INPUT"),
        ({"reference": token(1)}, "INVALID_INPUT"),
        ({"state": "AAAA"}, "INVALID_INPUT"),
        ({"cvv": "123"}, "INVALID_INPUT"),
    ],
)
def test_a_row_that_is_wrong_fails_alone(vault: tv.Vault, wrong: dict[str, Any], code: str) -> None:
    answers = imported(vault, row(1, **wrong), VISA, row(2))
    assert answers == [code, "INVALID_INPUT", token(2)]


def test_formats_that_keep_digits_or_fail_the_check_digit_are_followed(vault: tv.Vault) -> None:
    kept = next(t for t in (f"999912{n:06}{VISA[-4:]}" for n in range(99)) if luhn(t))
    other = next(t for t in (f"999912{n:06}0000" for n in range(99)) if luhn(t))
    assert imported(vault, row(token=kept, pan=VISA), program="card-on-file") == [kept]
    assert imported(vault, row(token=other, pan=VISA), program="card-on-file") == ["TOKEN_FORMAT_DIFFERS"]
    failing = token(3, "999914")[:-1] + str((int(token(3, "999914")[-1]) + 1) % 10)
    assert imported(vault, row(token=failing), row(token=token(3, "999914")), program="online") == [
        failing, "TOKEN_FORMAT_DIFFERS"
    ]  # fmt: skip


def luhn(digits: str) -> bool:
    return luhn_check_digit(digits[:-1]) == digits[-1]


def test_a_refused_requestor_is_noted_once_for_all_its_rows(vault: tv.Vault, store: TokenStore) -> None:
    assert imported(vault, *(row(n) for n in range(50)), requestor=STRANGER) == ["REQUESTOR_UNKNOWN"] * 50
    (stream,) = store.streams()
    assert len([event for event in vaults.all_events(store, stream) if event.reference != stream]) == 1


def test_an_import_is_done_again_with_the_same_answers(
    vault: tv.Vault, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHUNK_ITEMS", 40)
    rows = [row(number) for number in range(100)]
    first = imported(vault, *rows[:50])
    vault.detokenize(first[3], use())
    assert imported(vault, *rows) == [token(number) for number in range(100)]
    assert len(all_records(store)) == 100
    assert len(batch_events(store)) == 2 + 3


def test_a_token_that_is_there_of_another_card_is_told_row_by_row(
    vault: tv.Vault, store: TokenStore, keys: KeyStore
) -> None:
    taken = issue(vault, MASTERCARD).token
    gone = vault.delete(issue(vault, VISA).token).token
    answers = imported(
        vault, row(1, token=taken), row(2), row(3, token=gone, pan=VISA), row(4, token=token(2)), row(5)
    )
    assert answers == ["TOKEN_TAKEN", token(2), "TOKEN_TAKEN", "TOKEN_TAKEN", token(5)]
    assert imported(vault, row(2, requestor=ISSUER_ONLY)) == ["TOKEN_TAKEN"]
    assert vault.detokenize(taken, use()).pan.reveal() == MASTERCARD
    denied = [event for event in vault.history(vault.get(taken).reference) if event.codes == ("TOKEN_TAKEN",)]
    assert len(denied) == 1
    vault.close()
    assert tv.verify_audit(store, keys=keys).intact


def test_references_are_kept_and_no_two_tokens_have_one(vault: tv.Vault) -> None:
    reference = "0123456789abcdef" * 2
    assert imported(vault, row(1, reference=reference), row(2, reference=reference)) == [
        token(1),
        "TOKEN_TAKEN",
    ]
    assert vault.get(reference).token == token(1)
    assert imported(vault, row(2, reference=reference)) == ["TOKEN_TAKEN"]
    assert imported(vault, row(1, reference=reference)) == [token(1)]


def test_a_card_of_a_convergent_program_has_one_token(vault: tv.Vault) -> None:
    def kept(number: int, at: int) -> str:
        last4 = vault_workers.card_number(number)[-4:]
        return [t for t in (f"999912{n:06}{last4}" for n in range(99)) if luhn(t)][at]

    rows = [row(n, token=kept(n, 0)) for n in range(3)]
    assert imported(vault, *rows, program="card-on-file") == [kept(n, 0) for n in range(3)]
    assert issue(vault, rows[0]["pan"], program="card-on-file").token == kept(0, 0)
    again = [
        row(0, token=kept(0, 1)),
        row(1, token=kept(1, 0)),
        row(7, token=kept(7, 0)),
        row(7, token=kept(7, 1)),
    ]
    assert imported(vault, *again, program="card-on-file") == [
        "CARD_HAS_ANOTHER_TOKEN", kept(1, 0), kept(7, 0), "CARD_HAS_ANOTHER_TOKEN"
    ]  # fmt: skip
    vault.delete(kept(2, 0))
    assert imported(vault, row(2, token=kept(2, 1)), program="card-on-file") == [kept(2, 1)]
    assert imported(vault, row(2, token=kept(2, 2)), program="card-on-file") == ["CARD_HAS_ANOTHER_TOKEN"]


def test_a_card_has_one_par_of_a_requestor_in_an_import_too(vault: tv.Vault) -> None:
    """Also where it comes twice in one chunk; another card, another requestor and a row without one have theirs."""
    one, two = "Q" * 29, "P" * 29
    rows = [row(number, pan=VISA, par=par) for number, par in enumerate((one, None, two, one), 1)]
    others = [row(5, pan=MASTERCARD, par=two), row(6, pan=VISA, par=two, requestor=ISSUER_ONLY)]
    tokens = [token(number) for number in range(1, 9)]
    assert imported(vault, *rows, *others) == [*tokens[:2], "PAR_DIFFERS", *tokens[3:6]]
    assert imported(vault, row(7, pan=VISA, par=two), row(8, pan=VISA, par=one)) == ["PAR_DIFFERS", tokens[7]]


def test_either_token_of_two_cards_that_became_one_is_imported_again(vault: tv.Vault) -> None:
    # The second keeps the last four digits of the card that it was issued for, which the first has too.
    same4 = next(pan for pan in (f"40000000{n:04}1111" for n in range(99)) if luhn(pan))
    one, other = (issue(vault, pan, program="card-on-file").token for pan in (VISA, same4))
    vault.update_card(other, new_pan=VISA)
    assert imported(vault, row(token=one, pan=VISA), program="card-on-file") == [one]
    assert imported(vault, row(token=other, pan=VISA), program="card-on-file") == [other]
    third = next(t for t in (f"999912{n:06}{VISA[-4:]}" for n in range(99)) if luhn(t))
    assert imported(vault, row(token=third, pan=VISA), program="card-on-file") == ["CARD_HAS_ANOTHER_TOKEN"]


def test_expired_cards_and_inactive_tokens_are_imported(vault: tv.Vault) -> None:
    assert imported(vault, row(1, expiry="2020-01"), row(2, expiry=None), active=False) == [
        token(1),
        token(2),
    ]
    assert vault.get(token(1)).status is tv.TokenStatus.INACTIVE
    assert str(vault.get(token(1)).card_expiry) == "2020-01"
    assert vault.activate(token(2)).status is tv.TokenStatus.ACTIVE


def test_a_state_brings_status_counters_and_times(keys: KeyStore, store: TokenStore) -> None:
    clock = ManualClock(NOW_MS)
    source = tv.open_token_store("memory:")
    tv.provision(keys, source)
    domain = tv.Domain(limits=[tv.Limit(uses=3)])
    with vaults.open_vault(keys, source, clock) as there, vaults.open_vault(keys, store, clock) as here:
        issued = issue(there, domain=domain, par="P" * 29)
        there.detokenize(issued.token, use(1))
        info = there.suspend(issued.token, by=tv.Actor.ISSUER)
        (sealed,) = source.get([issued.token])
        state = state_of(KeyRing(keys).unseal(sealed)[0])
        clock.advance(86_400_000)
        given = row(token=issued.token, pan=VISA, reference=info.reference, state=state)
        assert imported(here, given) == ["INVALID_INPUT"], "the domain is missing"
        spoilt = base64.urlsafe_b64encode(b"\2" + base64.urlsafe_b64decode(state)[1:-1]).decode()
        assert imported(here, {**given, "domain": domain, "state": spoilt}) == ["INVALID_INPUT"]
        assert imported(here, {**given, "domain": domain}) == [issued.token]
        found = here.get(info.reference)
        assert (found.created, found.last_used, found.status, found.suspended_by, found.par) == (
            info.created, info.last_used, info.status, info.suspended_by, info.par
        )  # fmt: skip
        here.resume(issued.token, by=tv.Actor.ISSUER)
        assert [left.left for left in here.remaining(issued.token)] == [2]


def test_no_card_number_is_shown_of_a_row_that_fails(vault: tv.Vault) -> None:
    results = vault.import_tokens(
        [row(pan=VISA, token="1" * 16), row(pan=VISA, customer=VISA), row(token=VISA, pan=VISA)],
        requestor=SHOP,
        program="one-time",
    )
    assert len(results.errors) == 3
    assert VISA not in repr(list(results)) + repr(results)


# Others at the same time, and rows that no vault wrote.


@pytest.fixture
def records(local_keys: KeyStore) -> Iterator[MemoryTokenStore]:
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store)
        yield store


def listed(event: SealedEvent) -> list[tuple[Outcome, tuple[str, ...], int]]:
    """What an event says of each row of a chunk."""
    return [(item.outcome, item.codes, item.revision) for item in items(parse(event))]


@pytest.mark.parametrize("times", [imports.WRITES_MAX - 1, imports.WRITES_MAX])
def test_a_chunk_that_others_import_meanwhile_is_told_and_noted_as_a_whole_or_not_at_all(
    local_keys: KeyStore, records: MemoryTokenStore, times: int
) -> None:
    """Another import comes first with a row of it before each write."""
    rows, turns = [row(number) for number in range(times + 2)], count()
    counting: Any = CountingStore(records)
    with vaults.open_vault(local_keys, records) as other, vaults.open_vault(local_keys, counting) as vault:

        def meddle(name: str) -> None:
            if name == "insert" and (turn := next(turns)) < times:
                imported(other, rows[turn])

        counting.before = meddle
        answers = imported(vault, *rows)
        counting.before = lambda _: None
        theirs, ours = [(Outcome.DONE, ("IMPORTED",), revision) for revision in (0, 1)]
        events = [listed(event) for event in batch_events(records)]
        if times < imports.WRITES_MAX:
            assert answers == [each["token"] for each in rows]
            assert sorted(events) == sorted([[ours]] * times + [[theirs] * times + [ours] * 2])
        else:
            assert answers == ["CONFLICT"] * len(rows)
            assert events == [[ours]] * times
            assert {record.token for record in all_records(records)} == {
                row(n)["token"] for n in range(times)
            }
        assert imported(vault, *rows) == [each["token"] for each in rows]
    assert tv.verify_audit(records, keys=local_keys).intact


@pytest.mark.parametrize("how", ["changed", "refused by the store", "gone when it is read"])
def test_a_token_that_a_record_has_which_no_vault_wrote_is_taken(
    local_keys: KeyStore, records: MemoryTokenStore, how: str
) -> None:
    """The other rows are imported; the event names the record that stands there, where there is one to name."""
    with vaults.open_vault(local_keys, records) as vault:
        theirs = bytes.fromhex(vault.get(imported(vault, row(1))[0]).reference)
    there = records._records[token(1)]
    if how == "changed":
        records._records[token(1)] = there._replace(body=there.body[:-1] + bytes((there.body[-1] ^ 1,)))
    elif how == "refused by the store":
        records._records[token(1)] = there._replace(seal=b"short")
    store: Any = Meanwhile(records, "get", lambda: records._records.pop(token(1)))
    with vaults.open_vault(local_keys, records if how != "gone when it is read" else store) as vault:
        ours = "ab" * 16
        rows = [row(1, reference=ours if how != "changed" else None), row(2)]
        taken, other = vault.import_tokens(rows, requestor=SHOP, program="one-time")
        assert isinstance(taken, tv.InvalidInputError)
        assert (taken.code, str(taken)) == (
            "TOKEN_TAKEN",
            "a record that no vault wrote has this token: the row was not imported",
        )
        assert isinstance(other, tv.TokenInfo)
        assert other.token == token(2)
    (event,) = [
        items(parse(event)) for event in batch_events(records) if listed(event)[0][0] is Outcome.DENIED
    ]
    named = theirs if how == "changed" else bytes.fromhex(ours)
    assert [(item.outcome, item.codes, item.reference, item.revision) for item in event] == [
        (Outcome.DENIED, ("TOKEN_TAKEN",), named, 0),
        (Outcome.DONE, ("IMPORTED",), bytes.fromhex(other.reference), 1),
    ]
