"""Cards and their tokens move to a vault under other keys: encrypted to it, under dual control, with exact limits."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import tokenvault as tv
from tests import vault_workers, vaults
from tests.faces import open_face
from tests.interrupts import TimeLimitError
from tests.strategies import NOW_MS
from tests.test_reveal import refusal
from tests.vaults import ACQUIRER, ISSUER_ONLY, MASTERCARD, SHOP, VISA, issue, use
from tokenvault.audit.event import Action, Outcome
from tokenvault.keys import KeyStore
from tokenvault.stores import MemoryTokenStore
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.vault import export as exporting
from tokenvault.vault import recipient
from tokenvault.vault.recipient import Recipient

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
SUBJECT_INFO = serialization.PublicFormat.SubjectPublicKeyInfo


class Pair:
    """A key pair in PEM."""

    def __init__(self, key: Any, password: bytes | None = None) -> None:
        locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        self.key = key
        self.private = key.private_bytes(PEM, PKCS8, locked)
        self.public = key.public_key().public_bytes(PEM, SUBJECT_INFO)


PAIRS = {
    "RSA-OAEP-256": Pair(rsa.generate_private_key(65537, 3072)),
    "ECDH-ES": Pair(ec.generate_private_key(ec.SECP256R1())),
}
EC = PAIRS["ECDH-ES"]


@pytest.fixture
def vault(keys: KeyStore, store: TokenStore) -> tv.Vault:
    return vaults.open_vault(keys, store)


def exported(vault: tv.Vault, pair: Pair = EC, **chosen: Any) -> list[str]:
    request = vault.request_export(public_key=pair.public, operator="alice", purpose="chargeback", **chosen)
    vault.approve(request, operator="bob")
    file = io.StringIO()
    report = vault.export_cards(request, public_key=pair.public, operator="alice", to=file)
    lines = file.getvalue().splitlines()
    assert report.lines == len(lines)
    return lines


def opened(lines: list[str], pair: Pair = EC) -> list[Any]:
    return list(tv.open_export(lines, private_key=pair.private))


# The form of a line, read by the standards themselves.


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def concat_kdf(shared: bytes, algorithm: str, bits: int, apu: bytes = b"", apv: bytes = b"") -> bytes:
    """The key that RFC 7518, section 4.6.2, derives, of at most 256 bits."""
    infos = b"".join(len(info).to_bytes(4) + info for info in (algorithm.encode(), apu, apv))
    return hashlib.sha256((1).to_bytes(4) + shared + infos + bits.to_bytes(4)).digest()[: bits // 8]


def point(jwk: dict[str, str]) -> ec.EllipticCurvePublicNumbers:
    x, y = (int.from_bytes(unpadded(jwk[name])) for name in "xy")
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1())


def test_keys_are_derived_as_rfc_7518_appendix_c_shows() -> None:
    """Its Alice and Bob; `concat_kdf` reads our lines below."""
    alice = {
        "x": "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0",
        "y": "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps",
        "d": "0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo",
    }
    bob = {
        "x": "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
        "y": "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
    }
    private = ec.EllipticCurvePrivateNumbers(int.from_bytes(unpadded(alice["d"])), point(alice)).private_key()
    shared = private.exchange(ec.ECDH(), point(bob).public_key())
    assert concat_kdf(shared, "A128GCM", 128, b"Alice", b"Bob") == unpadded("VqqN6vgjbSBcIijNcacQGg")


def read_by_hand(line: str, pair: Pair) -> tuple[dict[str, Any], Any]:
    """The header and content of a JWE, by RFC 7516 and RFC 7518 alone."""
    protected, wrapped, nonce, ciphertext, tag = line.split(".")
    header = json.loads(unpadded(protected))
    if header["alg"] == "ECDH-ES":
        assert not wrapped
        key = concat_kdf(pair.key.exchange(ec.ECDH(), point(header["epk"]).public_key()), header["enc"], 256)
    else:
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        key = pair.key.decrypt(unpadded(wrapped), oaep)
    text = AESGCM(key).decrypt(unpadded(nonce), unpadded(ciphertext) + unpadded(tag), protected.encode())
    return header, json.loads(text)


@pytest.mark.parametrize("algorithm", PAIRS)
def test_a_line_is_a_jwe_that_the_standards_alone_can_read(vault: tv.Vault, algorithm: str) -> None:
    info = issue(vault, customer="c-1", metadata={"a": "b"})
    first, last = exported(vault, PAIRS[algorithm])
    header, content = read_by_hand(first, PAIRS[algorithm])
    assert (header["alg"], header["enc"]) == (algorithm, "A256GCM")
    (row,) = content["rows"]
    assert (row["token"], row["pan"], row["reference"], row["metadata"]) == (
        info.token, VISA, info.reference, {"a": "b"}
    )  # fmt: skip
    assert read_by_hand(last, PAIRS[algorithm])[1]["rows"] is None
    assert VISA not in first
    assert unpadded(header["kid"]) == Recipient(PAIRS[algorithm].public).thumbprint


# Dual control.


def test_an_export_needs_two_persons_once_and_the_key_that_was_approved(vault: tv.Vault) -> None:
    issue(vault)
    file = io.StringIO()

    def ask() -> tv.RevealRequest:
        return vault.request_export(public_key=EC.public, operator="alice", purpose="chargeback")

    def write(request: str, operator: str = "alice", pair: Pair = EC) -> Callable[[], object]:
        return lambda: vault.export_cards(request, public_key=pair.public, operator=operator, to=file)

    request = ask()
    thumbprint, *rest = request.terms
    assert (len(thumbprint), rest) == (64, [])
    assert refusal(write(request.id)) == "REQUEST_NOT_APPROVED"
    assert refusal(lambda: vault.approve(request, operator="ALICE")) == "SAME_PERSON"
    assert vault.approve(request, operator="bob").terms == request.terms
    assert refusal(write(request.id, "bob")) == "NOT_WHO_ASKED"
    assert refusal(write(request.id, pair=PAIRS["RSA-OAEP-256"])) == "RECIPIENT_DIFFERS"
    assert refusal(lambda: vault.reveal(request, operator="alice")) == "TOKEN_NOT_FOUND"
    assert not file.getvalue()
    write(request.id)()
    assert refusal(write(request.id)) == "REQUEST_USED"
    assert refusal(write(64 * "b")) == "REQUEST_UNKNOWN"
    told = [
        f"{event.action.name} {event.outcome.name} {event.operator}"
        for event in vault.history(request.reference)
    ]
    assert told == [
        "REQUEST_EXPORT DONE alice", "EXPORT DENIED alice", "APPROVE_EXPORT DENIED ALICE", "APPROVE_EXPORT DONE bob",
        "EXPORT DENIED bob", "EXPORT DENIED alice", "EXPORT DONE alice", "EXPORT DENIED alice",
    ]  # fmt: skip


def test_an_approval_gives_one_export_to_eight_at_once(vault: tv.Vault) -> None:
    issue(vault)
    request = vault.request_export(public_key=EC.public, operator="alice", purpose="chargeback")
    vault.approve(request, operator="bob")

    def one(_number: int) -> str:
        file = io.StringIO()
        try:
            vault.export_cards(request, public_key=EC.public, operator="alice", to=file)
        except tv.PermissionDeniedError as refused:
            assert not file.getvalue()
            return refused.code
        return "exported"

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(one, range(8)))
    assert answers == [*["REQUEST_USED"] * 7, "exported"]


def test_an_approved_reveal_exports_nothing(vault: tv.Vault) -> None:
    token = issue(vault).token
    request = vault.request_reveal(token, operator="alice", purpose="chargeback")
    vault.approve(request, operator="bob")
    file = io.StringIO()
    call = lambda: vault.export_cards(request, public_key=EC.public, operator="alice", to=file)  # noqa: E731
    assert refusal(call) == "REQUEST_UNKNOWN"
    assert not file.getvalue()


def test_each_token_that_is_exported_has_an_event_before_its_line(vault: tv.Vault) -> None:
    token = issue(vault).token
    seen: list[int] = []

    class Watching(io.StringIO):
        def write(self, text: str, /) -> int:
            seen.append(sum(event.action is Action.EXPORT for event in vault.history(token)))
            return super().write(text)

    if not isinstance(vault, tv.Vault):
        pytest.skip("a call within a call of an awaited vault")
    request = vault.request_export(public_key=EC.public, operator="alice", purpose="chargeback")
    vault.approve(request, operator="bob")
    vault.export_cards(request, public_key=EC.public, operator="alice", to=Watching())
    assert seen == [1, 1]
    event = vault.history(token)[-1]
    assert (event.action, event.operator, event.codes) == (Action.EXPORT, "alice", ("chargeback",))


def test_what_was_approved_is_exported_and_no_deleted_token(vault: tv.Vault) -> None:
    first, second = issue(vault), issue(vault, MASTERCARD, program="card-on-file")
    third = issue(vault, requestor=ISSUER_ONLY)
    vault.delete(issue(vault).token)
    everything = opened(exported(vault))
    assert {row["token"] for row in everything} == {first.token, second.token, third.token}
    (row,) = opened(exported(vault, program="card-on-file"))
    assert row["token"] == second.token
    assert [row["token"] for row in opened(exported(vault, requestor=ISSUER_ONLY))] == [third.token]
    assert opened(exported(vault, requestor=ISSUER_ONLY, program="card-on-file")) == []


def test_what_is_deleted_or_renewed_before_the_event_of_its_export_is_exported_as_it_is_by_then(
    local_keys: KeyStore,
) -> None:
    class Changing(Forwarding):
        """Another vault changes two of three tokens just after the page that they stand on was read."""

        changes: tuple[Callable[[], object], ...] = ()

        def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
            found = getattr(store, name)(*args, **kwargs)
            if name == "scan":
                pending, self.changes = self.changes, ()
                for change in pending:
                    change()
            return found

    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    other, changing = vaults.open_vault(local_keys, store), Changing()
    deleted, renewed, kept = (issue(other).token for _ in range(3))
    vault = vaults.open_vault(local_keys, changing)
    request = vault.request_export(public_key=EC.public, operator="alice", purpose="chargeback")
    vault.approve(request, operator="bob")
    changing.changes = (
        lambda: other.delete(deleted),
        lambda: other.update_card(renewed, new_pan=MASTERCARD, expiry="2031-12"),
    )
    file = io.StringIO()
    report = vault.export_cards(request, public_key=EC.public, operator="alice", to=file)
    rows = {row["token"]: row["pan"] for row in opened(file.getvalue().splitlines())}
    assert rows == {renewed: MASTERCARD, kept: VISA}
    assert report.tokens == 2
    assert [event.action for event in other.history(deleted)].count(Action.EXPORT) == 0
    assert [event.action for event in other.history(kept)].count(Action.EXPORT) == 1


def test_a_file_that_fails_ends_the_export(vault: tv.Vault) -> None:
    class Full(io.StringIO):
        def write(self, text: str, /) -> int:
            raise OSError(text + VISA)

    issue(vault)
    request = vault.request_export(public_key=EC.public, operator="alice", purpose="chargeback")
    vault.approve(request, operator="bob")
    with pytest.raises(tv.InvalidInputError, match="used up") as failed:
        vault.export_cards(request, public_key=EC.public, operator="alice", to=Full())
    assert failed.value.code == "EXPORT_NOT_WRITTEN"
    assert failed.value.__context__ is None


@pytest.mark.usefixtures("limit")
def test_a_time_limit_comes_out_of_a_file_that_is_written_to_as_it_is(local_keys: KeyStore) -> None:
    class Slow(io.StringIO):
        def write(self, _text: str, /) -> int:
            signal.raise_signal(signal.SIGUSR1)
            return 0

    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        issue(vault)
        request = vault.request_export(public_key=EC.public, operator="alice", purpose="chargeback")
        vault.approve(request, operator="bob")
        with pytest.raises(TimeLimitError):
            vault.export_cards(request, public_key=EC.public, operator="alice", to=Slow())


class Tampering(Forwarding):
    """A store in which somebody changed what one method answers."""

    method = ""

    def __init__(self, store: MemoryTokenStore) -> None:
        self.store = store
        self.write_limits = store.write_limits

    def _forward(self, name: str, *args: Any, **named: Any) -> Any:
        found = getattr(self.store, name)(*args, **named)
        if name != self.method:
            return found
        if name == "uses":
            return [row._replace(mac=bytes(16)) for row in found]
        return [row._replace(seal=bytes(len(row.seal))) for row in found]


@pytest.fixture
def tampering(local_keys: KeyStore) -> Tampering:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    return Tampering(store)


@pytest.mark.parametrize("step", ["approve", "export"])
def test_a_request_that_is_not_what_a_vault_wrote_gives_nothing_and_is_told(
    local_keys: KeyStore, tampering: Tampering, step: str
) -> None:
    file = io.StringIO()
    with vaults.open_vault(local_keys, tampering) as vault:
        issue(vault)
        request = vault.request_export(public_key=EC.public, operator="alice", purpose="chargeback")
        if step == "export":
            vault.approve(request, operator="bob")
        tampering.method = "uses"
        call: Callable[[], object] = {
            "approve": lambda: vault.approve(request, operator="bob"),
            "export": lambda: vault.export_cards(request, public_key=EC.public, operator="alice", to=file),
        }[step]
        with pytest.raises(tv.IntegrityError) as refused:
            call()
        assert refused.value.code == "EVENT_NOT_GENUINE"
        tampering.method = ""
        assert not file.getvalue()
        last = vault.history(request.reference)[-1]
        expected = {"approve": (Action.APPROVE_EXPORT, "bob"), "export": (Action.EXPORT, "alice")}[step]
        assert (last.action, last.operator, last.outcome, last.codes) == (*expected, Outcome.TAMPERED, ())


def test_an_export_ends_at_a_record_that_is_not_what_the_vault_sealed_and_names_it(
    local_keys: KeyStore, tampering: Tampering
) -> None:
    file = io.StringIO()
    with vaults.open_vault(local_keys, tampering) as vault:
        token = issue(vault)
        request = vault.request_export(public_key=EC.public, operator="alice", purpose="chargeback")
        vault.approve(request, operator="bob")
        tampering.method = "scan"
        with pytest.raises(tv.IntegrityError, match="nothing more was exported") as refused:
            vault.export_cards(request, public_key=EC.public, operator="alice", to=file)
        assert refused.value.code == "INTEGRITY"
        assert not file.getvalue()
        last = vault.history(token.reference)[-1]
        assert (last.action, last.operator, last.outcome) == (Action.EXPORT, "alice", Outcome.TAMPERED)


# Opening.


@pytest.mark.parametrize(
    "damage", ["last", "first", "twice", "swapped", "other", "behind", "cut", "bit", "none"]
)
def test_an_export_that_is_not_whole_is_refused(
    vault: tv.Vault, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "LINE_ROWS", 1)
    issue(vault)
    issue(vault)
    lines = exported(vault)
    assert len(opened(lines)) == 2
    a, b, end = lines
    flipped = a[:-1] + ("A" if a[-1] != "A" else "Q")
    spoilt = {
        "last": [a, b], "first": [b, end], "twice": [a, a, b, end], "swapped": [b, a, end], "none": [],
        "other": [a, exported(vault)[1], end], "behind": [a, b, end, end], "cut": [a[:-9], b, end],
        "bit": [flipped, b, end],
    }[damage]  # fmt: skip
    code = "EXPORT_UNREADABLE" if damage in ("cut", "bit") else "EXPORT_INCOMPLETE"
    assert refusal(lambda: opened(spoilt)) == code
    rows = tv.open_export(spoilt, private_key=EC.private)
    assert refusal(lambda: vault.import_tokens(rows, operator="carol")) == code


@pytest.mark.parametrize("lines", ["a line", b"a line", 7, None])
def test_what_is_no_iterable_of_lines_is_refused(lines: Any) -> None:
    with pytest.raises(tv.InvalidInputError, match="lines is an iterable of texts") as refused:
        opened(lines)
    assert refused.value.code == "INVALID_INPUT"


def test_a_line_that_is_no_text_is_refused() -> None:
    with pytest.raises(tv.InvalidInputError, match="a line of an export is text") as refused:
        opened([b"a line"])  # type: ignore[list-item] # wrong on purpose
    assert refused.value.code == "INVALID_INPUT"


LINE: dict[str, Any] = {"export": "e", "number": 0, "domains": ["{}"], "rows": [{"domain": 0}]}


@pytest.mark.parametrize(
    "content",
    [
        *({name: value for name, value in LINE.items() if name != left_out} for left_out in LINE),
        {**LINE, "domains": {}}, {**LINE, "rows": {}}, {**LINE, "rows": [[]]}, {**LINE, "rows": [{"domain": 1}]},
        {**LINE, "rows": [{"domain": -1}]}, {**LINE, "rows": [{}]}, {**LINE, "domains": []}, list(LINE), 7, None,
        "[" * 100_000, "{", "",
    ],
    ids=lambda content: str(content)[:40],
)  # fmt: skip
def test_a_line_that_is_encrypted_to_the_key_and_none_of_an_export_is_refused(content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    lines = [Recipient(EC.public).encrypt(text.encode())]
    assert refusal(lambda: opened(lines)) == "EXPORT_UNREADABLE"


def test_only_the_key_that_was_named_opens_an_export(vault: tv.Vault) -> None:
    issue(vault)
    lines = exported(vault)
    for other in (Pair(ec.generate_private_key(ec.SECP256R1())), PAIRS["RSA-OAEP-256"]):
        assert refusal(lambda other=other: opened(lines, other)) == "EXPORT_UNREADABLE"  # type: ignore[misc]
    locked = Pair(EC.key, b"a password")
    assert len(list(tv.open_export(lines, private_key=locked.private, password=b"a password"))) == 1
    assert refusal(lambda: list(tv.open_export(lines, private_key=locked.private))) == "INVALID_INPUT"


@pytest.mark.parametrize(
    "key",
    [
        "", "x", None, 7, VISA, EC.private,
        Pair(rsa.generate_private_key(65537, 2048)).public, Pair(ec.generate_private_key(ec.SECP256K1())).public,
        PAIRS["ECDH-ES"].public[:-40],
    ],
)  # fmt: skip
def test_what_is_no_public_key_that_will_do_is_refused(vault: tv.Vault, key: Any) -> None:
    call = lambda: vault.request_export(public_key=key, operator="alice", purpose="chargeback")  # noqa: E731
    assert refusal(call) == "INVALID_INPUT"


def test_large_domains_are_written_once_a_line_and_not_all_in_one(
    vault: tv.Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "LINE_DOCUMENT_BYTES", 40_000)
    domains = [tv.Domain(merchants={f"M-{n}-{m}" for m in range(2_000)}) for n in range(3)]
    tokens = {issue(vault, domain=domain).token: domain for domain in domains for _ in range(4)}
    lines = exported(vault)
    assert 3 < len(lines) <= 13
    assert {row["token"]: row["domain"] for row in opened(lines)} == tokens


def test_without_joserfc_an_export_says_what_to_install(
    vault: tv.Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipient, "INSTALLED", False)
    call = lambda: vault.request_export(public_key=EC.public, operator="alice", purpose="chargeback")  # noqa: E731
    assert refusal(call) == "EXPORT_NEEDS_JOSERFC"
    assert refusal(lambda: opened([])) == "EXPORT_NEEDS_JOSERFC"


def test_a_host_without_joserfc_imports_the_module_that_would_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipient.INSTALLED
    monkeypatch.setitem(sys.modules, "joserfc", None)  # as where it is not installed
    spec = util.spec_from_file_location("recipient_without_joserfc", recipient.__file__)
    assert spec is not None
    assert spec.loader is not None
    without = util.module_from_spec(spec)
    spec.loader.exec_module(without)
    assert without.INSTALLED is False
    for kind, key in ((without.Recipient, EC.public), (without.Opener, EC.private)):
        with pytest.raises(tv.ConfigurationError, match="pip install") as missing:
            kind(key)
        assert missing.value.code == "EXPORT_NEEDS_JOSERFC"


# From one vault into another.

LIMITED = tv.TokenProgram(
    "limited",
    format=tv.TokenFormat(bin="999917"),
    domain=tv.Domain(limits=[tv.Limit(amount=tv.Money(1_000, "EUR"), per=tv.Period.MONTH)]),
    expected_tokens=1_000_000,
)
PROGRAMS = [*vaults.PROGRAMS, LIMITED]
REQUESTORS = [tv.TokenRequestor(SHOP, programs={program.name for program in PROGRAMS})]
DOMAIN = tv.Domain(limits=[tv.Limit(uses=3), tv.Limit(uses=2, per=timedelta(days=30))])


@pytest.fixture
def other_store(postgres_url: str) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(postgres_url)) as store:
        yield store


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    ("custody", "tokens"),
    [
        (tv.Custody.IN_PROCESS, 2_000),
        (tv.Custody.IN_MODULE, 200),
        pytest.param(tv.Custody.IN_PROCESS, 100_000, marks=pytest.mark.nightly),
        pytest.param(tv.Custody.IN_MODULE, 100_000, marks=pytest.mark.nightly),
    ],
    indirect=["custody"],
)
def test_every_token_works_in_a_vault_under_other_keys_with_exact_limits(
    tokens: int, keys: KeyStore, other_keys: KeyStore, other_store: TokenStore, tmp_path: Path
) -> None:
    """From SQLite under one set of keys into PostgreSQL under another: same values, what was used stays used."""
    source = tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")
    tv.provision(keys, source)
    tv.provision(other_keys, other_store)
    clock = ManualClock(NOW_MS)
    parts: dict[str, Any] = {
        "programs": PROGRAMS,
        "requestors": REQUESTORS,
        "reveal": vaults.REVEAL,
        "clock": clock,
        "guard": tv.Guard(refusals=None),  # a third of all uses is refused, on purpose
    }
    with closing(source), open_face(keys, source, **parts) as old:
        cards = [(vault_workers.card_number(number), "2029-12") for number in range(tokens)]
        issued = [
            info.token
            for info in old.issue_many(cards, requestor=SHOP, program="limited", domain=DOMAIN)
            if isinstance(info, tv.TokenInfo)
        ]
        assert len(issued) == tokens
        for time in range(2):
            some = [token for number, token in enumerate(issued) if number % 3 > time]
            assert all(paid(old, some, f"old {time}"))
        infos = {info.token: info for info in map(old.get, issued[:: tokens // 100])}
        with (tmp_path / "export").open("w") as file:
            request = old.request_export(public_key=EC.public, operator="alice", purpose="chargeback")
            old.approve(request, operator="bob")
            assert old.export_cards(request, public_key=EC.public, operator="alice", to=file).tokens == tokens
    assert VISA[:6] not in (tmp_path / "export").read_text()
    with open_face(other_keys, other_store, **parts) as new:
        with (tmp_path / "export").open() as file:
            result = new.import_tokens(tv.open_export(file, private_key=EC.private), operator="carol")
        assert not result.failed
        assert sorted(info.token for info in result if isinstance(info, tv.TokenInfo)) == sorted(issued)
        for token, info in infos.items():
            assert alike(new.get(token)) == alike(info) == alike(new.get(info.reference))
        # Of two uses in 30 days, number % 3 were made in the old vault; then of three in a life one is left.
        for time in range(3):
            assert paid(new, issued, f"new {time}") == [number % 3 + time < 2 for number in range(tokens)]
        clock.advance(31 * 86_400_000)
        assert all(paid(new, issued, "last"))
        assert not any(paid(new, issued, "one more"))
        new.close()
    assert tv.verify_audit(other_store, keys=other_keys).intact


def paid(vault: tv.Vault, tokens: list[str], name: str) -> list[bool]:
    """Whether a use of each token is allowed."""
    results = vault.detokenize_many((token, use(name, amount=tv.Money(300, "EUR"))) for token in tokens)
    assert {error.code for error in results.errors.values()} <= {"USES_EXCEEDED"}
    return [isinstance(each, tv.Card) for each in results]


def alike(info: tv.TokenInfo) -> dict[str, Any]:
    """What a token is in either vault: all but how often it was changed there."""
    return {name: value for name, value in vars(info).items() if name != "revision"}


def test_a_token_that_was_issued_from_another_moves_to_whom_it_was_given(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    """Who may only detokenize has neither Permission.ISSUE nor a program."""
    child = vault.issue_from(issue(vault).token, requestor=ACQUIRER, program="one-time")
    lines = exported(vault)
    other = tv.open_token_store("memory:")
    tv.provision(keys, other)
    with vaults.open_vault(keys, other) as moved:
        result = moved.import_tokens(tv.open_export(lines, private_key=EC.private), operator="carol")
        assert [code_of(each) for each in result] == ["", ""]
        assert moved.detokenize(child.token, use(1, requestor=ACQUIRER)).pan.reveal() == VISA


def code_of(result: object) -> str:
    return result.code if isinstance(result, tv.TokenVaultError) else ""


def test_a_disabled_requestor_s_tokens_are_imported(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    issue(vault)
    lines = exported(vault)
    other = tv.open_token_store("memory:")
    tv.provision(keys, other)
    disabled = tv.TokenRequestor(SHOP, programs={"one-time"}, disabled=True)
    with vaults.open_vault(keys, other, requestors=[disabled]) as moved:
        (result,) = moved.import_tokens(tv.open_export(lines, private_key=EC.private), operator="carol")
        assert code_of(result) == ""
    with vaults.open_vault(keys, other, requestors=[]) as moved:
        (result,) = moved.import_tokens(tv.open_export(lines, private_key=EC.private), operator="carol")
        assert code_of(result) == "REQUESTOR_UNKNOWN"
