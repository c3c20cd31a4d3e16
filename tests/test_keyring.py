"""What records are found by stays what it is: each derivation from its key, by plain HMAC and CMAC."""

from __future__ import annotations

import hashlib
import hmac
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import pan_digits
from tokenvault.audit.event import AUTHENTICATED_BYTES
from tokenvault.crypto import ccm
from tokenvault.crypto.cmac import Cmac
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import ConfigurationError, IntegrityError, KeyStoreError
from tokenvault.keys import BlockCipher
from tokenvault.keys.port import Custody, KeyName, KeyPurpose
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card, CardExpiry, Pan, PanRule
from tokenvault.records import index_keys, keyring, sealing, sealing_columns
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.key_table import CarriedKey, KeyEntry, KeyState, KeyTable, in_order
from tokenvault.records.keyring import KeyRing, SealPrimary
from tokenvault.records.record import TokenRecord
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.port import SealedRecord

PAN = Pan.parse("4111111111111111")


def key_of(name: KeyName) -> bytes:
    return hashlib.sha256(f"{name.purpose.value} {name.version}".encode()).digest()


class Keys:
    """A key store with a key for each name, of the versions that it is given."""

    def __init__(self, versions: tuple[int, ...] = (1,)) -> None:
        self.of = dict.fromkeys(KeyPurpose, versions)

    def cipher(self, key: KeyName) -> BlockCipher:
        return LocalBlockCipher(key_of(key))

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        return self.of[purpose]

    def create(self, purpose: KeyPurpose, custody: Custody, *, version: int | None = None) -> KeyName:
        return KeyName(purpose, 1)

    def signer(self) -> None:
        pass

    def create_signer(self) -> None:
        pass

    def destroy(self, key: KeyName) -> None:
        pass

    def close(self) -> None:
        pass


def index_key(version: int) -> bytes:
    cmac = Cmac(LocalBlockCipher(key_of(KeyName(KeyPurpose.FINGERPRINT, version))))
    label = b"tokenvault: key of the index of uses, last four digits and requests"
    return cmac.tag(label + b"\0") + cmac.tag(label + b"\1")


def found_by(version: int, *texts: str) -> bytes:
    return hmac.digest(index_key(version), "\x1f".join(texts).encode(), "sha256")[:16]


def test_everything_is_found_under_each_version_the_newest_first() -> None:
    ring = KeyRing(Keys((1, 2, 3)))
    versions = (3, 2, 1)
    expected = {
        ring.use_ids("r", "t"): ("use", "r", "t"),
        ring.last4_keys("1111"): ("last4", "1111"),
        ring.repeatable_references("r", "p", "k"): ("reference", "r", "p", "k"),
        ring.request_digests("q"): ("request", "q"),
        ring.tombstone_fingerprints(PAN): ("deleted", "4111111111111111"),
    }
    assert len(expected) == 5
    for found, texts in expected.items():
        assert found == tuple(found_by(version, *texts) for version in versions)
    assert ring.fingerprint_versions == versions
    assert ring.contents(b"c") == tuple(
        hmac.digest(index_key(version), b"c", "sha256")[:16] for version in versions
    )
    assert ring.id_digest("i") == found_by(3, "id", "i")
    assert ring.failure("a", "b") == found_by(3, "failure", "a", "b")[:8]
    chosen = found_by(3, "choice", "r", "p", "k", "2")
    assert ring.repeatable_choice("r", "p", "k", 2) == int.from_bytes(chosen)


def test_pans_are_found_and_convergent_tokens_chosen_by_cmac() -> None:
    ring = KeyRing(Keys((1, 2)))
    tags = [Cmac(LocalBlockCipher(key_of(KeyName(KeyPurpose.FINGERPRINT, version)))) for version in (2, 1)]
    assert ring.pan_fingerprints(PAN) == tuple(tag.tag(b"4111111111111111") for tag in tags)
    assert ring.pan_fingerprint(PAN) == ring.pan_fingerprints(PAN)[0]
    for customer, scope in (("", b"r\x1fp\x1f5"), ("c", b"r\x1fp\x1fc\x1f5")):
        chosen = tags[0].tag(hashlib.sha256(b"f" * 16 + scope).digest())
        assert ring.convergent_choice(b"f" * 16, "r", "p", customer, 5) == int.from_bytes(chosen)


def test_keys_of_the_process_block_no_call_and_others_do() -> None:
    class InModule:
        """A cipher as a module has it."""

        def encrypt_blocks(self, blocks: bytes) -> bytes:
            return LocalBlockCipher(bytes(32)).encrypt_blocks(blocks)

    class Modular(Keys):
        def __init__(self, purpose: KeyPurpose) -> None:
            super().__init__()
            self.purpose = purpose

        def cipher(self, key: KeyName) -> BlockCipher:
            return InModule() if key.purpose is self.purpose else super().cipher(key)

    assert not KeyRing(Keys()).blocking
    for purpose in keyring.PURPOSES:
        assert KeyRing(Modular(purpose)).blocking


def test_writing_moves_on_to_newer_versions_alone() -> None:
    primary = SealPrimary()
    with pytest.raises(ConfigurationError) as none:
        _ = primary.current
    assert none.value.code == "KEY_MISSING"
    old, new, other = (LocalBlockCipher(bytes([byte]) * 32) for byte in range(3))
    primary.advance(old, 1)
    assert primary.current == (old, 1)
    primary.advance(new, 3)
    primary.advance(other, 2)
    primary.advance(other, 3)
    assert primary.current == (new, 3)


@pytest.mark.parametrize("purpose", keyring.PURPOSES)
def test_a_ring_needs_a_key_of_each_purpose_and_a_probe_tells_of_one_that_went(purpose: KeyPurpose) -> None:
    keys = Keys()
    ring = KeyRing(keys)
    ring.probe()
    keys.of[purpose] = ()
    with pytest.raises(KeyStoreError, match=purpose.value):
        ring.probe()
    with pytest.raises(ConfigurationError, match=purpose.value) as refused:
        KeyRing(keys)
    assert refused.value.code == "KEY_MISSING"


def test_index_keys_are_carried_under_the_primary_one_and_open_under_nothing_else() -> None:
    keys = {version: index_key(version) for version in (1, 2, 3)}
    carried = index_keys.carry(keys, 3)
    assert [(each.version, each.under) for each in carried] == [(1, 3), (2, 3)]
    assert [index_keys.opened(each, {3: keys[3]}) for each in carried] == [keys[1], keys[2]]
    with pytest.raises(KeyStoreError) as missing:
        index_keys.opened(carried[0], {2: keys[2]})
    assert missing.value.code == "KEY_STORE_KEY_MISSING"
    for wrong in (carried[0]._replace(version=2), carried[0]._replace(nonce=bytes(13))):
        with pytest.raises(IntegrityError):
            index_keys.opened(wrong, {3: keys[3]})
    with pytest.raises(IntegrityError):
        index_keys.opened(carried[0], {3: keys[2]})
    assert len({each.nonce for each in carried}) == 2
    wrapping = hmac.digest(keys[3], b"tokenvault: key that carries index keys", "sha256")
    sealer = LocalBlockCipher(wrapping)
    assert [ccm.decrypt(sealer, each.nonce, each.sealed, b"%d under 3" % each.version) for each in carried] == [
        keys[1], keys[2],
    ]  # fmt: skip


def test_what_a_retired_version_leaves_is_carried_with_those_before_it() -> None:
    ring = KeyRing(Keys((1, 2, 3)))
    assert [(each.version, each.under) for each in ring.carried(1)] == [(1, 3)]
    assert [(each.version, each.under) for each in ring.carried(2)] == [(2, 3)]


def test_last_four_digits_are_looked_for_under_live_versions_alone_and_uses_under_carried_ones_too() -> None:
    """Records are brought under the newest version before another is retired; uses stay what they are."""
    carried = KeyRing(Keys((1, 2))).carried(1)
    states = {
        KeyPurpose.SEAL: (PRIMARY,),
        KeyPurpose.FINGERPRINT: (RETIRED, PRIMARY),
        KeyPurpose.AUDIT: (PRIMARY,),
    }
    ring = KeyRing(Keys((1, 2)), table_in(states, carried))
    assert ring.fingerprint_versions == (2,)
    assert ring.last4_keys("1111") == (found_by(2, "last4", "1111"),)
    assert ring.use_ids("r", "tx") == (found_by(2, "use", "r", "tx"), found_by(1, "use", "r", "tx"))


EXPIRIES = st.none() | st.builds(CardExpiry, st.integers(2000, 2099), st.integers(1, 12))
CARDS = st.builds(Card, pan_digits(min_size=13).map(Pan.parse), EXPIRIES)


@given(st.lists(CARDS, min_size=1, max_size=6), st.data())
def test_cards_in_columns_are_the_cards_row_by_row(cards: list[Card], data: st.DataObject) -> None:
    columns = CardColumns.of(cards)
    assert [columns.card(row) for row in range(len(cards))] == cards
    rows = data.draw(st.lists(st.integers(0, len(cards) - 1), unique=True, max_size=len(cards)))
    taken = columns.take(np.array(rows, np.intp))
    assert [taken.card(row) for row in range(len(rows))] == [cards[row] for row in rows]
    empty = CardColumns.empty(len(cards))
    empty.put(rows, taken)
    assert [empty.card(row) for row in rows] == [cards[row] for row in rows]
    others = set(range(len(cards))) - set(rows)
    assert not any(empty.pans.lengths[row] or empty.months[row] for row in others)
    assert repr(columns) == f"<CardColumns of {len(cards)}>"
    none = CardColumns.of([None, *cards])
    assert (none.pans.lengths[0], none.months[0], none.card(1)) == (0, 0, cards[0])


# Rows under versions of the SEAL key.


def table_in(
    states: dict[KeyPurpose, tuple[KeyState, ...]], carried: tuple[CarriedKey, ...] = ()
) -> KeyTable:
    """A table with a version in each of these states, from version 1 on."""
    entries = [
        KeyEntry(KeyName(purpose, version), state, Custody.IN_PROCESS, bytes(8), 0)
        for purpose, found in states.items()
        for version, state in enumerate(found, 1)
    ]
    return KeyTable(1, 1_000, in_order(entries), carried)


def table_of(*seal_states: KeyState, fingerprint: int = 1) -> KeyTable:
    """A table with these versions of SEAL, and the others' first ones."""
    return table_in(
        {
            KeyPurpose.SEAL: seal_states,
            KeyPurpose.FINGERPRINT: (KeyState.PRIMARY,) * fingerprint,
            KeyPurpose.AUDIT: (KeyState.PRIMARY,),
        }
    )


READABLE, PRIMARY, RETIRED, DESTROYED = KeyState
CARD = Card(PAN, CardExpiry(2030, 1))
RECORD = TokenRecord(
    token="9999120000000000", reference=b"r" * 16, pan_fingerprint=b"f" * 16, requestor="40012345678", program="p",
    revision=1, domain=bytes(32), status=TokenStatus.ACTIVE, created_ms=1, updated_ms=1,
)  # fmt: skip


def sealed_under(version: int) -> SealedRecord:
    return sealing.seal(RECORD, CARD, LocalBlockCipher(key_of(KeyName(KeyPurpose.SEAL, version))), version)


@pytest.mark.parametrize("many", [False, True])
def test_a_genuine_row_of_a_newer_version_is_what_moves_writing_on(many: bool) -> None:
    ring = KeyRing(Keys((1, 2)), table_of(PRIMARY, READABLE))
    genuine = sealed_under(2)
    forged = genuine._replace(seal=bytes(len(genuine.seal)))
    assert ring.seal_version == 1
    assert ring.seal(RECORD, CARD).key_version == 1
    if many:
        assert ring.unseal_many([forged])[1].tolist() == [False]
    else:
        with pytest.raises(IntegrityError):
            ring.unseal(forged)
    assert ring.seal_version == 1
    if many:
        cards, sound = ring.unseal_many([sealed_under(1), forged, genuine])
        assert sound.tolist() == [True, False, True]
        assert [cards.card(row) for row in (0, 2)] == [CARD, CARD]
    else:
        assert ring.unseal(genuine) == (RECORD, CARD)
    assert ring.seal_version == 2
    assert [row.key_version for row in ring.seal_all([(RECORD, CARD), (RECORD, None)])] == [2, 2]
    assert KeyRing(Keys((1, 2)), table_of(PRIMARY, READABLE), ring).seal_version == 2


def test_a_row_is_read_by_a_retired_key_and_by_none_that_is_destroyed_or_unknown() -> None:
    ring = KeyRing(Keys((1, 2, 3)), table_of(RETIRED, DESTROYED, PRIMARY))
    assert ring.unseal(sealed_under(1)) == (RECORD, CARD)
    for version in (2, 4):
        with pytest.raises(IntegrityError) as refused:
            ring.unseal(sealed_under(version))
        assert refused.value.code == "SEAL_KEY_MISSING"
    rows = [sealed_under(version) for version in (2, 1, 4, 3)]
    assert ring.unseal_many(rows)[1].tolist() == [False, True, False, True]


@pytest.mark.parametrize("purpose", keyring.PURPOSES)
def test_a_probe_lets_the_key_of_each_purpose_work(purpose: KeyPurpose) -> None:
    class Broken:
        """A cipher of a module that went away."""

        def encrypt_blocks(self, blocks: bytes) -> bytes:
            if self.works:
                return LocalBlockCipher(bytes(32)).encrypt_blocks(blocks)
            raise KeyStoreError("gone")

        works = True

    class Modular(Keys):
        def cipher(self, key: KeyName) -> BlockCipher:
            return broken if key.purpose is purpose else super().cipher(key)

    broken = Broken()
    ring = KeyRing(Modular())
    ring.probe()
    broken.works = False
    with pytest.raises(KeyStoreError, match="gone"):
        ring.probe()


def test_a_first_ring_says_under_which_version_events_are_written_and_a_later_one_leaves_it() -> None:
    """The key store has a newer one already."""
    leaf = bytes(range(AUTHENTICATED_BYTES))
    tags = [
        Cmac(LocalBlockCipher(key_of(KeyName(KeyPurpose.AUDIT, version)))).tag(leaf) for version in (1, 2)
    ]
    ring = KeyRing(Keys((1, 2)), table_of(PRIMARY))
    assert (ring.audit_version, ring.audit.tag(leaf)) == (1, tags[0])
    later = KeyRing(Keys((1, 2)), None, ring)
    assert later.audit is ring.audit
    assert (later.audit_version, later.audit.tag(leaf)) == (2, tags[0])
    assert KeyRing(Keys((1, 2))).audit.tag(leaf) == tags[1]
    assert all(ring.audit.is_genuine(leaf, tag) for tag in tags)
    assert not ring.audit.is_genuine(leaf, bytes(16))


# Rows that are brought under newer keys.

OTHER_CARD = Card(Pan.parse("5555555555554444"), None)


def seal_cipher(version: int) -> BlockCipher:
    return LocalBlockCipher(key_of(KeyName(KeyPurpose.SEAL, version)))


def kept(
    place: int, card: Card | None, *, seal: int, found: int, last4: bool = False, pairs: int = 0
) -> SealedRecord:
    """A row as a vault wrote it under versions of SEAL and FINGERPRINT; `pairs`: of SEAL, for metadata; 0: none."""
    old = KeyRing(Keys(tuple(range(1, found + 1))))
    reference = bytes([place]) * 16
    record = RECORD._replace(
        token=f"99991200000000{place:02}",
        reference=reference,
        pan_fingerprint=old.pan_fingerprint(card.pan) if card else b"t" * 16,
        last4_key=old.last4_keys(card.pan.last4)[0] if card and last4 else b"",
        metadata=sealing.seal_metadata({"a": "b"}, reference, seal_cipher(pairs), pairs) if pairs else b"",
    )
    if card is None:
        record = record._replace(status=TokenStatus.DELETED)
    return sealing.seal(record, card, seal_cipher(seal), seal)


def test_rows_under_an_older_seal_key_are_sealed_anew_with_their_metadata_and_others_are_left() -> None:
    ring = KeyRing(Keys((1, 2)))
    rows = [
        kept(0, CARD, seal=1, found=1), kept(1, CARD, seal=2, found=1), kept(2, OTHER_CARD, seal=2, found=1, pairs=1),
        kept(3, None, seal=1, found=1), kept(4, CARD, seal=1, found=1, pairs=2),
    ]  # fmt: skip
    forged = rows[0]._replace(seal=bytes(len(rows[0].seal)))
    renewed, unreadable = ring.renew_many([*rows, forged], refingerprint=False)
    assert unreadable == 1
    assert [row.token for row in renewed] == [rows[place].token for place in (0, 2, 3, 4)]
    for row, place in zip(renewed, (0, 2, 3, 4), strict=True):
        before, card = ring.unseal(rows[place])
        after, same = ring.unseal(row)
        assert (row.key_version, row.revision, same) == (2, 2, card)
        assert sealing.key_versions(row) in ((2,), (2, 2))
        assert ring.metadata(after) == ring.metadata(before) == ({"a": "b"} if place in (2, 4) else {})
        assert after._replace(revision=1, metadata=b"", updated_ms=0) == before._replace(
            metadata=b"", updated_ms=0
        )
    kept_as_it_is = (TokenRecord.parse(row).metadata for row in (renewed[-1], rows[4]))
    assert len({*kept_as_it_is}) == 1  # it is under the newest key already
    assert ring.renew_many(renewed, refingerprint=False) == ([], 0)
    assert ring.renew_many([], refingerprint=True) == ([], 0)


def test_rows_found_by_an_older_fingerprint_key_are_found_by_the_newest_and_tombstones_stay() -> None:
    ring = KeyRing(Keys((1, 2)))
    rows = [
        kept(0, CARD, seal=2, found=1), kept(1, CARD, seal=2, found=2),
        kept(2, OTHER_CARD, seal=2, found=1, last4=True), kept(3, None, seal=2, found=1),
        kept(4, CARD, seal=2, found=2, last4=True),
    ]  # fmt: skip
    half = kept(5, CARD, seal=2, found=2)._replace(last4_key=ring.last4_keys("1111")[1])
    half = sealing.seal(TokenRecord.parse(half), CARD, seal_cipher(2), 2)
    forged = rows[0]._replace(seal=bytes(len(rows[0].seal)))
    every = [*rows, half, forged]
    assert ring.found_by(every, 1) == (3, 1)
    assert ring.found_by(every, 2) == (3, 1)
    renewed, unreadable = ring.renew_many(every, refingerprint=True)
    assert unreadable == 1
    assert [row.token for row in renewed] == [row.token for row in (rows[0], rows[2], half)]
    for row, pan in zip(renewed, (PAN, OTHER_CARD.pan, PAN), strict=True):
        assert row.pan_fingerprint == ring.pan_fingerprint(pan)
        assert ring.unseal(row)[1] in (CARD, OTHER_CARD)
    assert [row.last4_key for row in renewed] == [b"", ring.last4_keys("4444")[0], ring.last4_keys("1111")[0]]
    assert ring.found_by(renewed, 1) == (0, 0)
    assert ring.found_by(renewed, 2) == (3, 0)


def test_metadata_under_a_key_that_is_gone_leaves_its_row_and_is_counted() -> None:
    row = kept(0, CARD, seal=2, found=1, pairs=1)
    gone = KeyRing(Keys((2, 3)))
    assert gone.renew_many([row, kept(1, CARD, seal=2, found=1)], refingerprint=False)[1] == 1
    assert len(gone.renew_many([row, kept(1, CARD, seal=2, found=1)], refingerprint=False)[0]) == 1


@given(st.lists(pan_digits(min_size=13).map(Pan.parse), min_size=1, max_size=4), st.integers(0, 3))
def test_columns_find_and_choose_as_single_calls_do(pans: list[Pan], candidate: int) -> None:
    ring = KeyRing(Keys((1, 2)))
    columns = CardColumns.of([Card(pan, None) for pan in pans]).pans
    every = [[row.tobytes() for row in found] for found in ring.pan_fingerprints_many(columns)]
    assert list(zip(*every, strict=True)) == [ring.pan_fingerprints(pan) for pan in pans]
    newest = ring.pan_fingerprint_many(columns)
    assert [row.tobytes() for row in newest] == every[0]
    deleted = ring.tombstone_fingerprints_many(columns)
    assert list(zip(*deleted, strict=True)) == [ring.tombstone_fingerprints(pan) for pan in pans]
    customers = ["", "c", "d", ""][: len(pans)]
    assert ring.convergent_choices(newest, "1", "p", customers, candidate) == [
        ring.convergent_choice(fingerprint, "1", "p", customer, candidate)
        for fingerprint, customer in zip(every[0], customers, strict=True)
    ]


def test_a_seal_binds_the_whole_digest_of_its_record() -> None:
    """Its associated data has the first 14 bytes, its plaintext the last 6: one with others there is refused."""
    cipher, nonce = seal_cipher(1), bytes(13)
    row = RECORD.row(1, nonce)
    digest = sealing.record_digest(row)
    for end, genuine in (
        (digest[14:], True),
        (bytes(6), False),
        (digest[14:19] + bytes([digest[19] ^ 1]), False),
    ):
        plaintext = struct.pack(">QH6s", 4111111111111111, (5 << 12) | 361, end)
        sealed = row._replace(seal=nonce + ccm.encrypt(cipher, nonce, plaintext, digest[:14]))
        if genuine:
            assert sealing.unseal(sealed, cipher) == CARD
        else:
            with pytest.raises(IntegrityError):
                sealing.unseal(sealed, cipher)


ROW = kept(0, CARD, seal=1, found=1, last4=True)


@pytest.mark.parametrize(
    "row",
    [
        *(ROW._replace(reference=bytes(length)) for length in (0, 15, 17)),
        *(ROW._replace(pan_fingerprint=bytes(length)) for length in (0, 15, 17)),
        *(ROW._replace(last4_key=bytes(length)) for length in (1, 15, 17)),
        *(ROW._replace(revision=number) for number in (-1, 2**64)),
        *(ROW._replace(key_version=number) for number in (-1, 2**32)),
    ],
)
def test_a_row_with_a_length_or_a_number_that_no_record_has_has_no_digest(row: SealedRecord) -> None:
    assert len(sealing.record_digest(ROW)) == 20
    with pytest.raises(IntegrityError):
        sealing.record_digest(row)


def test_a_seal_over_more_or_less_than_a_card_is_refused_though_it_is_sealed_rightly() -> None:
    row = kept(0, CARD, seal=1, found=1)
    nonce, digest = row.seal[:13], sealing.record_digest(row)
    plaintext = ccm.decrypt(seal_cipher(1), nonce, row.seal[13:], digest[:14])
    assert len(plaintext) == 16
    assert sealing.unseal(row, seal_cipher(1)) == CARD
    for other in (b"", plaintext[:-1], plaintext + b"\0"):
        sealed = ccm.encrypt(seal_cipher(1), nonce, other, digest[:14])
        with pytest.raises(IntegrityError):
            sealing.unseal(row._replace(seal=nonce + sealed), seal_cipher(1))


def test_metadata_is_sealed_in_one_spelling_under_the_version_that_it_names() -> None:
    reference = bytes(16)
    sealed = sealing.seal_metadata({"b": "\u00e9", "a": "1"}, reference, seal_cipher(7), 7)
    assert sealed[:4] == bytes((0, 0, 0, 7))
    plaintext = ccm.decrypt(seal_cipher(7), sealed[4:17], sealed[17:], reference)
    assert plaintext == '{"a":"1","b":"\u00e9"}'.encode()
    assert sealing.seal_metadata({}, reference, seal_cipher(7), 7) == b""


def test_metadata_is_what_the_body_states_and_names_its_version_if_its_header_is_there() -> None:
    row = kept(0, CARD, seal=1, found=1)
    plain = len(row.body)
    header = bytes((0, 0, 0, 5)) + bytes(13)
    for metadata, versions in (
        (b"", (1,)),
        (b"x", (1,)),
        (header[:-1], (1,)),
        (header, (1, 5)),
        (header + b"x", (1, 5)),
    ):
        body = TokenRecord.parse(row)._replace(metadata=metadata).body()
        assert sealing.metadata_of(body) == metadata
        assert sealing.key_versions(row._replace(body=body)) == versions
        # One byte more than there is behind the fixed part is nobody's metadata.
        assert sealing.metadata_of(body[:55] + (len(body) - plain + 1).to_bytes(2) + body[57:]) == b""
    assert sealing.metadata_key_version(header) == 5
    with pytest.raises(IntegrityError):
        sealing.metadata_key_version(header[:-1])


def test_the_seal_of_a_tombstone_holds_no_number_and_nothing_of_its_shape() -> None:
    row = kept(0, None, seal=1, found=1)
    digest = sealing.record_digest(row)
    plaintext = ccm.decrypt(seal_cipher(1), row.seal[:13], row.seal[13:], digest[:14])
    assert plaintext == bytes(10) + digest[14:]
    assert sealing.unseal(row, seal_cipher(1)) is None


def test_a_column_refuses_each_row_with_another_end_of_its_digest_or_another_listing() -> None:
    """Sealed rightly but for one byte at the end, or listed with another status or time than its body's."""
    cipher, digest = seal_cipher(1), sealing.record_digest(ROW)
    nonce, plaintext = ROW.seal[:13], ccm.decrypt(cipher, ROW.seal[:13], ROW.seal[13:], digest[:14])
    ends = [
        bytes(6),
        *(digest[14 : 14 + i] + bytes([digest[14 + i] ^ 1]) + digest[15 + i :] for i in range(6)),
    ]
    other_ends = [
        ROW._replace(seal=nonce + ccm.encrypt(cipher, nonce, plaintext[:10] + end, digest[:14]))
        for end in ends
    ]
    rows = [ROW, *other_ends, ROW._replace(status=1), ROW._replace(created_ms=ROW.created_ms + 1), ROW]
    for form in (rows, RecordColumns.of(rows)):
        cards, genuine = sealing_columns.unseal_many(cipher, form)
        assert genuine.tolist() == [True, *[False] * (len(rows) - 2), True]
        assert cards.pans.lengths.tolist() == [16, *[0] * (len(rows) - 2), 16]
        assert cards.pans.values.tolist() == [int(PAN.reveal()), *[0] * (len(rows) - 2), int(PAN.reveal())]


def test_the_shortest_numbers_and_tombstones_come_back_from_columns_too() -> None:
    card = Card(Pan.parse("411111111113", PanRule(lengths=(12, 19), luhn=False)), None)
    for row, read in ((kept(0, card, seal=1, found=1), card), (kept(1, None, seal=1, found=1), None)):
        assert sealing.unseal(row, seal_cipher(1)) == read
        cards, genuine = sealing_columns.unseal_many(seal_cipher(1), RecordColumns.of([row]))
        assert genuine.tolist() == [True]
        assert cards.pans.lengths.tolist() == [12 if read else 0]


def test_a_number_that_begins_with_zeros_comes_back_with_them() -> None:
    card = Card(Pan.parse("0000000000000000018"), None)
    row = kept(0, card, seal=1, found=1)
    read = sealing.unseal(row, seal_cipher(1))
    assert read is not None
    assert read.pan.reveal() == "0000000000000000018"
