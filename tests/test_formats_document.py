"""docs/formats.md says what the code does: its examples, its offsets and its SQL are recomputed and compared."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import re
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import tokenvault as tv
from tokenvault.audit import batch_event as batch_events
from tokenvault.audit import checkpoint, guard_note, purge_note, use_note
from tokenvault.audit import event as events
from tokenvault.audit.merkle import Tree
from tokenvault.crypto import ccm, ff1
from tokenvault.crypto.cmac import Cmac
from tokenvault.crypto.kdf import derive
from tokenvault.keys import BlockCipher, Custody, KeyName, KeyPurpose, LocalBlockCipher
from tokenvault.keys import file as key_file
from tokenvault.keys.pkcs11.objects import destroyed_label, label_of
from tokenvault.keys.pkcs11.store import DERIVATION_LABEL
from tokenvault.keys.secrets import Secret
from tokenvault.model.accounting import record as left_behind
from tokenvault.model.counters import Counter, Usage
from tokenvault.model.decision import Restrictions
from tokenvault.model.domain import NO_RESTRICTION
from tokenvault.model.ledger import NO_USES
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.records import layout, sealing
from tokenvault.records import record as records
from tokenvault.records.key_table import key_check_value
from tokenvault.records.keyring import KeyRing
from tokenvault.stores.port import SEAL_BYTES, SealedEvent

DOCUMENT = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLES_COUNT = 36
LAYOUTS = {
    "Record body, fixed part": layout.BODY.size,
    "Counter": layout.COUNTER.size,
    "Record digest, fixed part of the input": layout.DIGEST_HEADER.size,
    "Plaintext of the seal": layout.PLAINTEXT.size,
    "Seal": SEAL_BYTES,
    "Event body, fixed part": events._FIXED.size,
    "Checkpoint payload, fixed part": checkpoint._FIXED.size,
    "Cross-reference": checkpoint._CROSS_REFERENCE.size,
    "Batch event body, fixed part": batch_events._FIXED.size,
    "Note of a use, fixed part": use_note.NOTE.size,
    "Failure": guard_note._FAILURE.size,
    "Run of a purge, fixed part": purge_note._RUN.size,
    "Changes of a purge": purge_note.CHANGE_BYTES,
    "Vaultless tweak": 11,
}

KEY = bytes(range(32))
NONCE = bytes(range(0xA0, 0xAD))
REFERENCE = bytes(range(0x10, 0x20))
STREAM = bytes(range(0x20, 0x30))
PAN, REQUESTOR, PROGRAM = "4111111111111111", "40012345678", "card-on-file"
TIME_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
DOMAIN = tv.Domain(merchants={"M-1001"}, limits=(tv.Limit(amount=tv.Money(1000_00, "EUR")),))
USE = tv.Transaction(
    id="tx-1", requestor=REQUESTOR, merchant="M-1001", channel=tv.Channel.ECOMMERCE, amount=tv.Money(42_00, "EUR")
)  # fmt: skip


class OneKey:
    """A key store whose every key is the key of the examples."""

    def cipher(self, key: KeyName) -> BlockCipher:
        return LocalBlockCipher(KEY)

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        return (1,)

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


def fixed(monkeypatch: pytest.MonkeyPatch, *values: bytes) -> None:
    """Let the operating system's generator give these values, in turn."""
    waiting = iter(values)

    def urandom(count: int) -> bytes:
        value = next(waiting)
        assert len(value) == count
        return value

    monkeypatch.setattr("os.urandom", urandom)


def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Every example of the document, from the code alone."""
    ring, cipher = KeyRing(OneKey()), LocalBlockCipher(KEY)
    yield "key", KEY.hex()
    yield "key check value", key_check_value(cipher).hex()
    yield "key label", label_of(KeyName(KeyPurpose.SEAL, 1), Custody.IN_PROCESS)
    yield "data key", derive(cipher, label=DERIVATION_LABEL, context=b"seal/1", length=32).hex()

    pan = Pan.parse(PAN)
    pan_fingerprint = ring.pan_fingerprint(pan)
    choice = ring.convergent_choice(pan_fingerprint, REQUESTOR, PROGRAM, "", 0)
    token_format = tv.TokenFormat(bin="999912", keep_last4=True)
    choices = token_format.choices(len(PAN))
    token = token_format.make(choice % choices, len(PAN), pan.last4)
    yield "PAN fingerprint", pan_fingerprint.hex()
    yield "convergent number, candidate 0", f"{choice:032x}"
    yield "choices", str(choices)
    yield "token", token

    yield "domain document", DOMAIN.to_json()
    yield "domain digest", DOMAIN.digest.hex()
    counter = hashlib.sha256(b'{"counts":"EUR"}').digest()[:16]
    yield "velocity counter", counter.hex()
    spelt = "40012345678|purchase|||M-1001||ecommerce|||4200 EUR|||||"
    assert USE.content == hashlib.sha256(spelt.replace("|", "\x1f").encode()).digest()[:16]
    yield "transaction content", spelt
    yield "transaction content digest", USE.content.hex()

    record = records.TokenRecord(
        token=token, reference=REFERENCE, pan_fingerprint=pan_fingerprint, requestor=REQUESTOR,
        program=PROGRAM, revision=2,
        domain=DOMAIN.digest, status=tv.TokenStatus.ACTIVE, created_ms=TIME_MS, updated_ms=TIME_MS + 1_000,
        usage=left_behind(
            Usage(), Restrictions(NO_RESTRICTION, NO_RESTRICTION, DOMAIN), USE, TIME_MS, NO_USES
        ).usage,
    )  # fmt: skip
    assert record.usage == Usage((Counter(counter, 0, 4_200),), last_used_ms=TIME_MS)
    with monkeypatch.context() as patched:
        fixed(patched, NONCE)
        row = sealing.seal(record, Card(pan, CardExpiry(2029, 12)), cipher, 1)
    digest = documented_digest(row.body, token, pan_fingerprint)
    plaintext = ccm.decrypt(cipher, NONCE, row.seal[13:], digest[:14])
    assert plaintext[10:] == digest[14:]
    assert sealing.unseal(row, cipher) == Card(pan, CardExpiry(2029, 12))
    assert records.TokenRecord.parse(row) == record
    yield "record body", row.body.hex()
    yield "nonce", NONCE.hex()
    yield "record digest", digest.hex()
    yield "plaintext", plaintext.hex()
    yield "seal", row.seal.hex()

    label = b"tokenvault: key of the index of uses, last four digits and requests"
    index_key = b"".join(Cmac(cipher).tag(label + bytes((half,))) for half in range(2))
    use_id = hmac.digest(index_key, f"use\x1f{REQUESTOR}\x1ftx-1".encode(), "sha256")[:16]
    content = hmac.digest(index_key, USE.content, "sha256")[:16]
    assert ring.use_ids(REQUESTOR, "tx-1") == (use_id,)
    assert ring.contents(USE.content) == (content,)
    yield "index key", index_key.hex()
    yield "use id", use_id.hex()
    yield "content digest of the use", content.hex()
    note = use_note.UseNote(
        tv.Kind.PURCHASE, content, use_id, amount=42_00, currency="EUR", counted=(counter,)
    )
    packed = struct.pack(
        ">BBQ3s16s16s16sHB16s", 1, 1, 42_00, b"EUR", content, use_id, bytes(16), 0, 1, counter
    )
    assert note.pack() == packed
    event = events.Event(
        time_ms=TIME_MS + 1_000, action=events.Action.DETOKENIZE, outcome=events.Outcome.DONE,
        requestor=REQUESTOR, reference=REFERENCE, transaction_id="tx-1", revision=2, use=note,
    )  # fmt: skip
    leaf = hashlib.sha256(b"\0" + STREAM + struct.pack(">QB", 7, 16) + REFERENCE + event.body()).digest()
    unsigned = SealedEvent(STREAM, 7, REFERENCE, event.body(), b"")
    assert events.leaf_of(unsigned) == leaf
    assert events.Event.parse(unsigned) == event
    yield "event body", event.body().hex()
    yield "leaf hash", leaf.hex()
    yield "event MAC", ring.audit.tag(leaf).hex()

    root = hashlib.sha256(b"\1" + leaf + leaf).digest()
    tree = Tree()
    tree = tree.with_leaf(leaf)
    tree = tree.with_leaf(leaf)
    assert tree.root() == root
    reference = checkpoint.CrossReference(bytes(range(0x30, 0x40)), 5, b"\xaa" * 32)
    stated = checkpoint.Checkpoint(
        size=2, root=root, closes=True, cross_references=(reference,), unauthenticated_rows=3
    )
    marking = events.Event(
        time_ms=TIME_MS + 2_000, action=events.Action.CHECKPOINT, outcome=events.Outcome.DONE,
        reference=STREAM, checkpoint=stated,
    )  # fmt: skip
    assert marking.body().endswith(
        b"\1"
        + struct.pack(">Q", 2)
        + root
        + b"\3\1"
        + reference.stream
        + struct.pack(">Q", 5)
        + reference.leaf
        + bytes(8)
    )
    marked = SealedEvent(STREAM, 8, STREAM, marking.body(), b"")
    assert events.Event.parse(marked) == marking
    yield "Merkle root", root.hex()
    yield "checkpoint body", marking.body().hex()
    yield "checkpoint leaf hash", events.leaf_of(marked).hex()
    yield "checkpoint MAC", ring.audit.tag(events.leaf_of(marked)).hex()
    key_id = checkpoint.key_id_of(b"example")
    assert key_id == hashlib.sha256(b"example").digest()[:8]
    message = b"tokenvault checkpoint 1\0" + STREAM + struct.pack(">Q", 8) + marking.body()[:-8] + key_id
    assert checkpoint.signed_message(STREAM, 8, marking.body()[:-8] + key_id) == message
    yield "signed message, SHA-256", hashlib.sha256(message).hexdigest()

    tokenizer = tv.VaultlessTokenizer(OneKey(), program="pipeline", requestor=REQUESTOR, keep_first=6)
    scope = hashlib.sha256(f"pipeline\x1f{REQUESTOR}\x1f6\x1f4".encode()).digest()[:6]
    tweak = scope + int(PAN[:6] + PAN[-4:]).to_bytes(5)
    digits = ff1.encrypt_digits(cipher, PAN[6:12], tweak=tweak)
    assert tokenizer.tokenize(PAN) == PAN[:6] + digits + PAN[-4:]
    yield "vaultless scope", scope.hex()
    yield "vaultless tweak", tweak.hex()
    yield "vaultless token", tokenizer.tokenize(PAN)

    salt, passphrase = bytes(range(16)), Secret("example passphrase")
    wrapping = key_file.wrapping_key(passphrase, salt)
    stored = {KeyName(KeyPurpose.SEAL, 1): key_file.StoredKey(Custody.IN_PROCESS, KEY)}
    held = key_file.Content(stored, {KeyPurpose.SEAL: 1}, salt)
    with monkeypatch.context() as patched:
        fixed(patched, b"\x01" * 12)
        text = key_file.serialize(held, AESGCM(wrapping))
    assert key_file.parse(text, lambda _: AESGCM(wrapping)) == held
    written = json.loads(text)
    yield "wrapping key", wrapping.hex()
    header = f'{{"format":"tokenvault-keys-1","scrypt":{{"n":131072,"p":1,"r":8,"salt":"{salt.hex()}"}}}}'
    sealed = bytes.fromhex(written["keys"])
    plain = AESGCM(wrapping).decrypt(b"\x01" * 12, sealed, header.encode())
    yield "key file, associated data", header
    yield "key file, encrypted", plain.decode()
    yield "key file, tag", sealed[-16:].hex()


def documented_digest(body: bytes, token: str, pan_fingerprint: bytes) -> bytes:
    """The record digest, made from the document's table and not by the code."""
    texts = token, REQUESTOR, PROGRAM, ""
    header = NONCE + struct.pack(">QI", 2, 1) + REFERENCE + pan_fingerprint
    fixed_part = header + bytes(16) + bytes(map(len, texts))
    return hashlib.sha256(fixed_part + "".join(texts).encode() + body).digest()[:20]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def test_the_worked_example_is_what_the_code_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, str] = {}
    for line in "".join(blocks("example")).splitlines():
        name, _, value = line.partition(": ")
        assert name not in found, name
        found[name] = value
    assert found == dict(computed(monkeypatch))
    assert len(found) == EXAMPLES_COUNT


def test_the_tables_of_offsets_add_up_to_what_the_code_packs() -> None:
    """Each field begins where the one before ends, and the last one ends where the code's layout ends."""
    found = {}
    tables = re.findall(r"^\*\*([^*\n]+)\*\*[^\n]*\n\n((?:\|[^\n]*\n)+)", DOCUMENT, re.MULTILINE)
    for name, table in tables:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        if rows[0][:2] != ["Offset", "Length"]:
            continue
        spans = [(int(row[0]), int(row[1])) for row in rows[2:]]
        assert spans[0][0] == 0, name
        for (start, length), (following, _) in itertools.pairwise(spans):
            assert start + length == following, name
        found[name] = sum(spans[-1])
    assert found == LAYOUTS


def test_the_sql_is_the_schema_of_a_provisioned_file(tmp_path: Path) -> None:
    with closing(tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")) as store:
        store.provision()
    with closing(sqlite3.connect(tmp_path / "vault.db")) as connection:
        statements = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        pragmas = [
            f"PRAGMA {name} = {connection.execute(f'PRAGMA {name}').fetchone()[0]}"
            for name in ("application_id", "user_version")
        ]
    documented = [one_line(statement) for statement in "".join(blocks("sql")).split(";") if statement.strip()]
    assert sorted(documented) == sorted([one_line(sql) for (sql,) in statements] + pragmas)
    assert len(documented) == 14


def test_the_numbers_of_actions_outcomes_and_labels_are_the_code_s() -> None:
    for kind in (events.Action, events.Outcome):
        documented = ", ".join(f"{member.value} {member.name}" for member in kind)
        assert documented in " ".join(DOCUMENT.split()), kind
    for purpose in KeyPurpose:
        assert f"`{purpose.value}`" in DOCUMENT
    label = label_of(KeyName(KeyPurpose.FINGERPRINT, 12), Custody.IN_MODULE)
    assert label == "tokenvault/fingerprint/12/module"
    assert f"`{destroyed_label(KeyName(KeyPurpose.SEAL, 1))}`" in DOCUMENT


def one_line(sql: str) -> str:
    return re.sub(r"\s*([(),])\s*", r"\1", " ".join(sql.split()))
