"""Conformance of token stores: records that are looked up and scanned."""

from __future__ import annotations

from tokenvault.stores.port import PAGE_MAX, SealedRecord, TokenStore
from tokenvault.testing.token_store_fixtures import TokenStoreFixtures
from tokenvault.testing.token_store_harness import a_record, an_event, by_token, replaced


class ReadingContract(TokenStoreFixtures):
    """Every look-up gives what it states, whole and in order."""

    def test_get_leaves_out_what_is_unknown(self, store: TokenStore) -> None:
        """Unknown tokens are left out; a token asked for twice comes once; nothing asked, nothing read."""
        store.insert([a_record(1), a_record(2)], [])
        tokens = [a_record(n).token for n in (1, 7, 2, 1)]
        assert by_token(store.get(tokens)) == [a_record(1), a_record(2)]
        assert store.get([a_record(7).token]) == []
        assert store.get([]) == []

    def test_get_of_a_full_batch(self, store: TokenStore) -> None:
        """PAGE_MAX records are written by one call, read by one call and replaced by one call."""
        records = [a_record(n) for n in range(PAGE_MAX)]
        assert store.insert(records, [an_event(n + 1) for n in range(PAGE_MAX)]) == []
        assert by_token(store.get([record.token for record in records])) == records
        assert store.replace([replaced(record) for record in records], []) == []
        assert store.scan() == [replaced(record) for record in records]

    def test_tokens_are_whole_strings(self, store: TokenStore) -> None:
        """Tokens that differ in length only, or in leading zeros, are different tokens."""
        tokens = ["0" * 13, "0" * 14, "0" * 19, "1" + "0" * 12]
        records = [a_record(n, token=token) for n, token in enumerate(tokens)]
        store.insert(records, [])
        for record in records:
            assert store.get([record.token]) == [record]
        assert store.scan() == records

    def test_find(self, store: TokenStore) -> None:
        """All records of a PAN fingerprint and no others, by token as a string, also in pages."""
        pan_fingerprint = b"a" * 16
        tokens = ["9" * 13, "1" * 19, "10" * 8, "5" * 16, "50" * 7]
        records = [
            a_record(n, token=token, pan_fingerprint=pan_fingerprint) for n, token in enumerate(tokens)
        ]
        store.insert([*records, a_record(77)], [])
        assert store.find(pan_fingerprint) == by_token(records)
        paged: list[SealedRecord] = []
        while page := store.find(pan_fingerprint, after=paged[-1].token if paged else "", limit=2):
            assert len(page) <= 2
            paged += page
        assert paged == by_token(records)
        assert store.find(b"b" * 16) == []

    def test_find_of_many_pan_fingerprints(self, store: TokenStore) -> None:
        """The records of all of them, each once, by token, also in pages; of none, none."""
        pan_fingerprints = [bytes([n]) * 16 for n in range(40)]
        records = [
            a_record(
                n,
                pan_fingerprint=pan_fingerprints[n % 30],
                requestor=str(n // 60 + 1) * 11,
                program=f"p{n % 2}",
            )
            for n in range(120)
        ]
        store.insert([*records, a_record(777)], [])
        assert store.find([]) == []
        assert store.find(pan_fingerprints) == store.find(pan_fingerprints * 3) == by_token(records)
        assert (
            store.find(pan_fingerprints[5:22], limit=7)
            == by_token([record for record in records if record.pan_fingerprint in pan_fingerprints[5:22]])[
                :7
            ]
        )
        paged: list[SealedRecord] = []
        while page := store.find(pan_fingerprints[:25], after=paged[-1].token if paged else "", limit=9):
            paged += page
        assert paged == by_token(
            [record for record in records if record.pan_fingerprint in pan_fingerprints[:25]]
        )
        filtered = store.find(pan_fingerprints, requestor="2" * 11, program="p1")
        assert filtered == by_token(
            [record for record in records if record.requestor == "2" * 11 and record.program == "p1"]
        )

    def test_find_filters(self, store: TokenStore) -> None:
        """By requestor, by program, by both; the limit counts what passes the filters."""
        pan_fingerprint = b"a" * 16
        requestors, programs = ("1" * 11, "2" * 11), ("one", "two")
        records = [
            a_record(
                n, pan_fingerprint=pan_fingerprint, requestor=requestors[n % 2], program=programs[n // 2 % 2]
            )
            for n in range(12)
        ]
        store.insert(records, [])
        for requestor in (*requestors, "3" * 11, None):
            for program in (*programs, "three", None):
                expected = [
                    r for r in records if requestor in (None, r.requestor) and program in (None, r.program)
                ]
                assert store.find(pan_fingerprint, requestor=requestor, program=program) == expected
                page = store.find(
                    pan_fingerprint, requestor=requestor, program=program, after=records[4].token, limit=1
                )
                assert page == [r for r in expected if r.token > records[4].token][:1]

    def test_by_reference(self, store: TokenStore) -> None:
        """The record of a reference; None where there is none."""
        store.insert([a_record(1), a_record(2)], [])
        assert store.by_reference(a_record(2).reference) == a_record(2)
        assert store.by_reference(bytes(16)) is None

    def test_scan(self, store: TokenStore) -> None:
        """Every record by token, in pages; with a key version, only its records and full pages of them."""
        records = [a_record(n, key_version=1 + n % 3) for n in range(20)]
        store.insert(list(reversed(records)), [])
        assert store.scan() == records
        assert store.scan(after=records[-1].token) == []
        assert store.scan(after="9") == records
        for key_version in (None, 1, 2, 3, 4):
            expected = [r for r in records if key_version in (None, r.key_version)]
            paged: list[SealedRecord] = []
            while page := store.scan(
                after=paged[-1].token if paged else "", limit=3, key_version=key_version
            ):
                paged += page
                assert len(page) == 3 or paged == expected
            assert paged == expected
