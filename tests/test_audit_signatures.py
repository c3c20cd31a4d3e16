"""What a public key alone shows: who takes signatures away does not get an intact trail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import tokenvault as tv
from tests.test_audit import LIMITED, Shell, open_vault, public, work
from tests.vaults import issue, use
from tokenvault import FindingKind
from tokenvault.audit.event import ACTION, Action, Event, leaf_of
from tokenvault.audit.macs import AuditKeys
from tokenvault.audit.verify.stream import acknowledged_by
from tokenvault.keys import KeyStore
from tokenvault.stores.port import SealedEvent
from tokenvault.stores.sqlite.store import SqliteTokenStore


def der(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class Silent:
    """A key store whose signer is away."""

    def __init__(self, keys: KeyStore) -> None:
        self.keys, self.away = keys, True

    def __getattr__(self, name: str) -> object:
        return getattr(self.keys, name)

    def signer(self) -> Silent | None:
        self.found = self.keys.signer()
        return self

    @property
    def public_key(self) -> bytes:
        assert self.found is not None
        return self.found.public_key

    def sign(self, message: bytes) -> bytes:
        if self.away or self.found is None:
            raise tv.KeyStoreError("the module is away")
        return self.found.sign(message)


class Other(Silent):
    """A key store whose signer has another kind of key."""

    def __init__(self, keys: KeyStore, key: bytes) -> None:
        super().__init__(keys)
        self.key = key

    @property
    def public_key(self) -> bytes:
        return self.key


@pytest.fixture(scope="module")
def three(keys: KeyStore, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with three streams, as bytes of its file."""
    path = tmp_path_factory.mktemp("signed") / "vault.db"
    with closing(SqliteTokenStore(path)) as store:
        tv.provision(keys, store)
        for _ in range(3):
            with open_vault(keys, store) as vault:
                work(vault)
    return path.read_bytes()


@pytest.fixture
def shell(three: bytes, keys: KeyStore, tmp_path: Path) -> Iterator[Shell]:
    (tmp_path / "vault.db").write_bytes(three)
    opened = Shell(tmp_path / "vault.db", keys)
    yield opened
    opened.sql.close()


def strip(shell: Shell, stream: bytes, above: int = 0) -> None:
    """Take the signatures of a stream's checkpoints away."""
    for row in shell.sql.execute(
        "SELECT stream, number, reference, body, mac FROM events WHERE stream = ? AND reference = stream",
        (stream,),
    ).fetchall():
        event = Event.parse(SealedEvent(*row))
        assert event.checkpoint is not None
        if row[1] > above:
            bare = attrs.evolve(event.checkpoint, key_id=b"", signature=b"")
            shell.change(row[0], row[1], "body", event._replace(checkpoint=bare).body())


def checkpoints(shell: Shell, stream: bytes) -> list[int]:
    return [
        number
        for (number,) in shell.sql.execute(
            "SELECT number FROM events WHERE stream = ? AND reference = stream ORDER BY number", (stream,)
        )
    ]


def test_a_trail_whose_signatures_are_taken_away_is_not_intact(shell: Shell) -> None:
    """Though then nothing is left to contradict an edit, nor to name another stream."""
    all_of_them = sum(len(checkpoints(shell, stream)) for stream in shell.streams)
    for stream in shell.streams:
        strip(shell, stream)
    report = shell.verify(**public(shell))
    assert [(each.kind, each.stream) for each in report.findings] == [
        (FindingKind.UNSIGNED, stream.hex()) for stream in shell.streams
    ]
    assert (report.signed, report.covered) == (0, 0)
    assert report.checkpoints == all_of_them


def test_a_stream_whose_last_signatures_are_taken_away_is_named(shell: Shell) -> None:
    """In the youngest stream, which no other names; in an older one the others say that it was another checkpoint."""
    last = shell.streams[-1]
    *_, before, _ = checkpoints(shell, last)
    strip(shell, last, before)
    report = shell.verify(**public(shell))
    assert [(each.kind, each.stream) for each in report.findings] == [(FindingKind.UNSIGNED, last.hex())]
    assert report.signed == report.checkpoints - 1
    older = shell.streams[0]
    strip(shell, older)
    found = shell.findings(**public(shell))
    end = checkpoints(shell, older)[-1]
    assert {(FindingKind.UNSIGNED, older.hex(), end), (FindingKind.EDITED, older.hex(), end)} <= set(found)


def test_a_wrong_signature_under_a_right_mac_is_named_at_its_number(shell: Shell) -> None:
    """As by somebody who has the AUDIT key and not the signing key; with keys, and with the public key alone."""
    stream = shell.streams[0]
    number = checkpoints(shell, stream)[1]
    row = SealedEvent(
        *shell.sql.execute(
            "SELECT stream, number, reference, body, mac FROM events WHERE stream = ? AND number = ?",
            (stream, number),
        ).fetchone()
    )
    edited = row._replace(body=row.body[:-1] + bytes((row.body[-1] ^ 1,)))
    shell.change(stream, number, "body", edited.body)
    shell.change(stream, number, "mac", AuditKeys(shell.keys).tag(leaf_of(edited)))
    for arguments in ({}, public(shell)):
        assert (FindingKind.EDITED, stream.hex(), number) in shell.findings(**arguments)


@pytest.mark.parametrize(
    "body", [b"", b"\1", b"\2", b"\xff" * 60, b"\1" + bytes(40)], ids=["nothing", "1", "2", "255", "zeros"]
)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_event_that_can_not_be_read_is_named_without_keys_too(
    shell: Shell, body: bytes, checkpoint: bool
) -> None:
    """By the checkpoint that commits to it, and by the index, to which it states nothing."""
    stream = shell.streams[0]
    _, before, after, *_ = checkpoints(shell, stream)
    number = before if checkpoint else before + 1
    shell.change(stream, number, "body", body)
    first = 1 if checkpoint else before
    found = [
        (each.kind, each.stream, each.number, each.last)
        for each in shell.verify(**public(shell)).findings
        if each.stream is not None
    ]
    assert found == [
        (FindingKind.EDITED, stream.hex(), first, after - 1),
        (FindingKind.EDITED, stream.hex(), number, None),
    ]


def test_an_event_about_its_own_stream_that_is_no_checkpoint_counts_for_none(shell: Shell) -> None:
    """Without keys, somebody may have put any event in a checkpoint's place."""
    stream = shell.streams[0]
    _, before, *_ = checkpoints(shell, stream)
    count = shell.verify(**public(shell)).checkpoints
    (body,) = shell.sql.execute(
        "SELECT body FROM events WHERE stream = ? AND number = ?", (stream, before + 1)
    ).fetchone()
    shell.change(stream, before, "body", body)
    report = shell.verify(**public(shell))
    assert report.checkpoints == count - 1
    assert (FindingKind.EDITED, stream.hex(), 1) in [(f.kind, f.stream, f.number) for f in report.findings]


@pytest.mark.parametrize(
    "key",
    [
        b"", b"no key",
        der(ec.generate_private_key(ec.SECP384R1()).public_key()),
        der(ec.generate_private_key(ec.SECP256K1()).public_key()),
        der(ed25519.Ed25519PrivateKey.generate().public_key()),
    ],
    ids=["nothing", "no DER", "P-384", "secp256k1", "Ed25519"],
)  # fmt: skip
def test_a_signer_whose_key_is_none_of_p_256_is_not_trusted(shell: Shell, key: bytes) -> None:
    other: Any = Other(shell.keys, key)
    with pytest.raises(
        tv.InvalidInputError, match=r"^a public key of a signer is one of P-256 in DER$"
    ) as refused:
        shell.verify(keys=other)
    assert refused.value.code == "INVALID_INPUT"


def test_a_stream_planted_as_a_whole_is_named(shell: Shell) -> None:
    shell.copy(shell.streams[0], 3, b"\xff" * 16, 1)
    assert (FindingKind.UNSIGNED, "ff" * 16, None) in shell.findings(**public(shell))


def test_each_streams_events_that_no_signature_covers_are_counted(shell: Shell) -> None:
    report = shell.verify(**public(shell))
    assert report.uncovered == {stream.hex(): 1 for stream in shell.streams}, "the last checkpoint itself"
    last = shell.streams[-1]
    *_, before, end = checkpoints(shell, last)
    shell.remove(last, end - 1)
    report = shell.verify(**public(shell))
    assert report.intact, "as of a process that was killed"
    assert report.uncovered[last.hex()] >= end - before > 1
    assert sum(report.uncovered.values()) == report.events - report.covered


def test_what_was_left_unsigned_is_covered_by_the_next_signature_in_its_own_or_another_stream(
    keys: KeyStore, tmp_path: Path
) -> None:
    """Also where the stream ended meanwhile, and another one named it while it could not sign either."""
    silent = Silent(keys)
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as store:
        tv.provision(keys, store)
        key = tv.audit_public_key(keys)

        def unsigned() -> list[str | None]:
            found = tv.verify_audit(store, public_key=key).findings
            assert {each.kind for each in found} <= {FindingKind.UNSIGNED}
            return [each.stream for each in found]

        assert unsigned() == []
        with open_vault(silent, store) as vault:  # type: ignore[arg-type] # the rest is the key store's
            token = issue(vault, domain=LIMITED).token
        (ended,) = store.streams()
        assert unsigned() == [ended.hex()]
        later = open_vault(silent, store, tv.CheckpointPolicy(events=1))  # type: ignore[arg-type] # likewise
        later.detokenize(token, use(1))
        assert len(unsigned()) == 2
        silent.away = False
        later.detokenize(token, use(2))
        assert unsigned() == []
        report = tv.verify_audit(store, public_key=key)
        assert report.checkpoints > report.signed > 0
        assert report.uncovered[ended.hex()] == 1
        assert tv.verify_audit(store, keys=keys, public_key=key).intact
        later.close()


def test_the_body_of_a_batch_that_looks_like_an_acknowledgement_acknowledges_nothing() -> None:
    """In it another byte stands where other events have their action."""
    body = bytearray(80)
    body[ACTION] = Action.ACKNOWLEDGE
    assert acknowledged_by(SealedEvent(bytes(16), 1, b"", bytes(body), bytes(32))) == ()
