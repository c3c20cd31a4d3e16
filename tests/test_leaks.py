"""No PAN in a message, a repr, a chained exception, a traceback with locals, a log, an audit row or a file."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import faces, vaults
from tests.strategies import NOW_MS
from tests.vaults import ACQUIRER, SHOP, STRANGER, VISA, issue, use
from tokenvault.audit.event import Event
from tokenvault.keys import BlockCipher, KeyName, KeyStore
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock

GROUPED = "4111 1111 1111 1111"
NEEDLES = (VISA, GROUPED, VISA[:12], VISA[-12:])
PACKAGE = str(Path(tv.__file__).parent)


def told(error: BaseException) -> Iterator[str]:
    """All that anything could print of an error: messages, reprs and the locals of the library's own frames."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        waiting += [current.__cause__, current.__context__]
        yield f"{current!s} {current!r} {current.args!r} {vars(current)!r}"
        for frame, _ in traceback.walk_tb(current.__traceback__):
            if frame.f_code.co_filename.startswith(PACKAGE):
                yield repr(frame.f_locals)


def assert_silent(error: BaseException) -> None:
    for text in told(error):
        assert not any(needle in text for needle in NEEDLES), text


class FailingStore:
    """A store of which one method raises, with a row of data in the error's own context."""

    def __init__(self, store: TokenStore, broken: str) -> None:
        self._store = store
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        if name == self._broken:
            return self._fail
        return getattr(self._store, name)

    def _fail(self, *_args: object, **_kwargs: object) -> None:
        raise tv.TokenStoreError("the database is away")


class FailingKeys:
    """A key store whose ciphers stop working."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keys, name)

    def cipher(self, key: KeyName) -> BlockCipher:
        return FailingCipher(self, self._keys.cipher(key))


class FailingCipher:
    def __init__(self, keys: FailingKeys, cipher: BlockCipher) -> None:
        self._keys = keys
        self._cipher = cipher

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        if self._keys.broken:
            raise tv.KeyStoreError("the module is away")
        return self._cipher.encrypt_blocks(blocks)


def failing(item: Any) -> Iterator[Any]:
    """Gives one item, and fails with it."""
    yield item
    raise ValueError(item)


def misuses(vault: tv.Vault, token: str) -> dict[str, Callable[[], object]]:
    """Every way to fail that takes a PAN, or reads one."""
    bad_luhn, bad_text = VISA[:-1] + "2", VISA + "x"
    limited = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=1),))).token
    vault.detokenize(limited, use(1))
    deleted = vault.delete(issue(vault).token).token
    issue(vault, program="card-on-file")
    return {
        "wrong Luhn": lambda: issue(vault, bad_luhn),
        "not digits": lambda: issue(vault, bad_text),
        "too long": lambda: issue(vault, VISA * 2),
        "bytes": lambda: issue(vault, VISA.encode()),  # type: ignore[arg-type] # the wrong type is the point
        "number": lambda: issue(vault, int(VISA)),  # type: ignore[arg-type] # the wrong type is the point
        "bad expiry": lambda: issue(vault, GROUPED, expiry="2029-13"),
        "pan as expiry": lambda: issue(vault, VISA, expiry=VISA),
        "pan as program": lambda: issue(vault, VISA, program=VISA),
        "pan as requestor": lambda: issue(vault, VISA, requestor=VISA),
        "pan as par": lambda: issue(vault, VISA, par="A" * 13 + VISA),
        "pan as assurance": lambda: issue(vault, VISA, assurance=VISA),
        "pan in the domain": lambda: issue(vault, VISA, domain=tv.Domain(merchants={VISA})),
        "expired": lambda: issue(vault, VISA, expiry="2020-01"),
        "unknown requestor": lambda: issue(vault, VISA, requestor=STRANGER),
        "no permission": lambda: issue(vault, VISA, requestor=ACQUIRER),
        "other domain": lambda: issue(vault, VISA, program="card-on-file", domain=tv.Domain(merchants={"M"})),
        "batch that is a pan": lambda: vault.issue_many(VISA, requestor=SHOP, program="one-time"),
        "batch for a stranger": lambda: vault.issue_many([VISA], requestor=STRANGER, program="one-time"),
        "batch of which an iterator fails": lambda: vault.issue_many(
            failing(VISA), requestor=SHOP, program="one-time"
        ),
        "uses of which an iterator fails": lambda: vault.detokenize_many(failing((VISA, use(VISA)))),
        "pan as token": lambda: vault.detokenize(VISA, use()),
        "pan as token to check": lambda: vault.check(VISA, use()),
        "grouped pan as token": lambda: vault.detokenize(GROUPED, use()),
        "pan to get": lambda: vault.get(VISA),
        "pan to delete": lambda: vault.delete(VISA),
        "pan to suspend": lambda: vault.suspend(VISA, by=tv.Actor.ISSUER),
        "pan as transaction id": lambda: vault.detokenize(token, tv.Transaction(id=VISA, requestor=SHOP)),
        "pan as merchant": lambda: vault.check(token, use(77, merchant=GROUPED)),
        "pan as id of an unknown token": lambda: vault.detokenize(
            "9" * 16, tv.Transaction(id=VISA, requestor=SHOP)
        ),
        "pan within an id of an unknown token": lambda: vault.detokenize("9" * 16, use(f"order-{VISA}")),
        "pan within an id without permission": lambda: vault.detokenize(
            token, tv.Transaction(id=f"order-{VISA}", requestor=STRANGER)
        ),
        "pan as id of a deleted token": lambda: vault.detokenize(deleted, use(VISA)),
        "pan as id outside the domain": lambda: vault.detokenize(
            token, tv.Transaction(id=GROUPED, requestor=ACQUIRER)
        ),
        "grouped pan in the domain": lambda: issue(vault, VISA, domain=tv.Domain(merchants={GROUPED})),
        "pan as id without permission": lambda: vault.detokenize(
            token, tv.Transaction(id=GROUPED, requestor=STRANGER)
        ),
        "limit exceeded": lambda: vault.detokenize(limited, use(2)),
        "deleted": lambda: vault.detokenize(deleted, use()),
        "resume": lambda: vault.resume(token, by=tv.Actor.ISSUER),
        "update to a token": lambda: vault.update_card(VISA, new_pan=token),
        "update to a wrong pan": lambda: vault.update_card(VISA, new_pan=bad_luhn),
        "update without a card": lambda: vault.update_card(bad_luhn, expiry="2030-01"),
        "update to an expired card": lambda: vault.update_card(VISA, new_pan=VISA, expiry="2020-01"),
        "domain with the pan": lambda: vault.update_domain(token, tv.Domain(devices={VISA})),
        "tokens of a wrong pan": lambda: vault.tokens_of(bad_luhn),
        "pan in a transaction": lambda: tv.Transaction(id="x", requestor=VISA),
        "pan in a transaction's text": lambda: use(merchant=VISA + "\n"),
        "pan in a domain": lambda: tv.Domain(requestors={VISA}),
        "pan in a document": lambda: tv.Domain.from_json(f'{{"{VISA}": 1}}'),
        "pan as bin": lambda: tv.TokenFormat(bin=VISA),
        "pan as name": lambda: tv.TokenProgram(VISA + "\n", format=tv.TokenFormat(bin="999912")),
        "pan as currency": lambda: tv.Money(1, VISA),
        "pan as expiry date": lambda: tv.CardExpiry.parse(VISA),
        "pan as key store": lambda: tv.open_key_store(VISA),
        "pan as token store": lambda: tv.open_token_store(VISA),
        "pan as passphrase": lambda: tv.open_key_store(f"file:/nowhere/{VISA}?x={VISA}"),
        "pan as pin": lambda: tv.open_key_store(f"pkcs11:token=t?pin-value={VISA}"),
        "tokens without permission": lambda: vault.tokens_of(VISA, requestor=ACQUIRER),
    }


def uses_of(vault: tv.Vault, token: str) -> dict[str, Callable[[], object]]:
    """Calls that succeed while nothing is broken."""
    return {
        "issue": lambda: issue(vault, GROUPED),
        "converge": lambda: issue(vault, VISA, program="card-on-file"),
        "detokenize": lambda: vault.detokenize(token, use(7)),
        "check": lambda: vault.check(token, use(7)),
        "get": lambda: vault.get(token),
        "tokens_of": lambda: vault.tokens_of(VISA),
        "update_card": lambda: vault.update_card(VISA, new_pan=GROUPED, expiry="2030-01"),
        "suspend": lambda: vault.suspend(token, by=tv.Actor.VAULT),
    }


def test_no_error_a_caller_can_cause_shows_a_pan(
    vault: tv.Vault, store: TokenStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    calls = misuses(vault, issue(vault).token)
    assert len(calls) > 30
    for name, call in calls.items():
        with pytest.raises(tv.TokenVaultError) as raised:
            call()
        assert_silent(raised.value)
        assert not any(needle in caplog.text for needle in NEEDLES), name
    for stream in store.streams():
        for row in store.events(stream=stream):
            assert not any(needle.encode() in row.body for needle in NEEDLES)
            assert not any(needle in repr(Event.parse(row)) for needle in NEEDLES)


@pytest.mark.parametrize(
    "broken", ["get", "find", "by_reference", "insert", "replace", "append", "put_domain", "get_domain"]
)
def test_no_error_of_a_broken_database_shows_a_pan(keys: KeyStore, store: TokenStore, broken: str) -> None:
    with vaults.open_vault(keys, store) as vault:
        token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=10**6),))).token
        issue(vault, program="card-on-file")
    failing: Any = FailingStore(store, broken)
    vault = vaults.open_vault(keys, failing)
    failed = 0
    for call in (*uses_of(vault, token).values(), vault.close):
        try:
            call()
        except tv.TokenVaultError as error:
            assert_silent(error)
            failed += isinstance(error, tv.TokenStoreError)
    assert failed or broken in {"by_reference", "put_domain"}


def test_no_error_of_a_broken_key_store_shows_a_pan(keys: KeyStore, store: TokenStore) -> None:
    failing: Any = FailingKeys(keys)
    vault = vaults.open_vault(failing, store)
    token = issue(vault).token
    failing.broken = True
    for call in (*uses_of(vault, token).values(), vault.close):
        with pytest.raises(tv.KeyStoreError) as raised:
            call()
        assert_silent(raised.value)


def test_a_defect_comes_out_as_an_error_that_carries_nothing(
    keys: KeyStore, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_args: object, **_kwargs: object) -> None:
        raise KeyError(VISA)

    with vaults.open_vault(keys, store) as vault:
        monkeypatch.setattr(faces.asked_by_the_vault(store), "insert", defect)
        with pytest.raises(
            tv.TokenVaultError, match=r"KeyError in tests.test_leaks:\d+: please report"
        ) as raised:
            issue(vault)
    assert_silent(raised.value)
    assert raised.value.__context__ is None


def test_a_misspelt_argument_stays_a_type_error(vault: tv.Vault) -> None:
    with pytest.raises(TypeError, match="expirey"):
        vault.issue(VISA, expirey="2029-12", requestor=SHOP, program="one-time")  # type: ignore[call-arg] # on purpose
    with pytest.raises(TypeError, match="idd"):
        tv.Transaction(idd="x")  # type: ignore[call-arg] # on purpose


def test_an_exit_in_the_middle_of_a_call_carries_no_pan(
    keys: KeyStore, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is told to stop raises SystemExit wherever it stands."""

    def stop(*_args: object, **_kwargs: object) -> None:
        raise SystemExit(1)

    with tv.Vault(keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS) as vault:
        monkeypatch.setattr(store, "insert", stop)
        with pytest.raises(SystemExit) as raised:
            issue(vault)
    assert_silent(raised.value)


def test_the_vaultless_tokenizer_shows_no_pan(keys: KeyStore) -> None:
    failing: Any = FailingKeys(keys)
    tokenizer = tv.VaultlessTokenizer(failing, program="pipeline", requestor=SHOP)
    for wrong in (VISA[:-1] + "2", VISA + "x", VISA.encode(), int(VISA)):
        with pytest.raises(tv.InvalidInputError) as refused:
            tokenizer.tokenize(wrong)  # type: ignore[arg-type] # the wrong types are the point
        assert_silent(refused.value)
    for wrong in (VISA + "x", VISA.encode(), int(VISA)):
        with pytest.raises(tv.InvalidInputError) as refused:
            tokenizer.detokenize(wrong)  # type: ignore[arg-type] # the wrong types are the point
        assert_silent(refused.value)
    failing.broken = True
    with pytest.raises(tv.KeyStoreError) as raised:
        tokenizer.tokenize(VISA)
    assert_silent(raised.value)


def test_the_database_file_holds_no_pan(keys: KeyStore, tmp_path: Path) -> None:
    """Neither as text nor as the number that is sealed; the same search finds the token."""
    store = tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")
    tv.provision(keys, store)
    with vaults.open_vault(keys, store, ManualClock(NOW_MS)) as vault:
        token = issue(vault, GROUPED, par="Q" * 29).token
        issue(vault, program="card-on-file")
        vault.detokenize(token, use())
        for call in misuses(vault, token).values():
            with pytest.raises(tv.TokenVaultError):
                call()
        vault.update_card(VISA, expiry="2031-01")
    files = list(tmp_path.iterdir())
    held = b"".join(path.read_bytes() for path in files)
    store.close()
    assert token.encode() in held
    for needle in (*(needle.encode() for needle in NEEDLES), int(VISA).to_bytes(8), VISA.encode("utf-16-le")):
        assert needle not in held


def test_no_error_of_an_item_of_a_batch_shows_a_pan(vault: tv.Vault, store: TokenStore) -> None:
    """Nor does the audit trail, or the repr of what is returned."""
    bad_luhn = VISA[:-1] + "2"
    mention = tv.Domain(merchants={GROUPED})
    limited = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=1),))).token
    token, deleted = issue(vault).token, vault.delete(issue(vault).token).token
    cards: list[Any] = [
        bad_luhn, VISA + "x", VISA * 2, VISA.encode(), int(VISA), (VISA, "2029-13"), (VISA, VISA), (VISA, "2020-01"),
        (VISA, VISA, VISA), token, {VISA: VISA}, [VISA, [VISA]],
    ]  # fmt: skip
    ids = (VISA, GROUPED, f"order-{VISA}")
    transactions = [
        tv.Transaction(id=name, requestor=by) for name in ids for by in (SHOP, ACQUIRER, STRANGER)
    ]
    transactions += [use(5, merchant=GROUPED), use(6, device=VISA)]
    uses: list[Any] = [
        (which, used) for which in (token, limited, deleted, VISA, GROUPED, "9" * 16) for used in transactions
    ]
    uses += [VISA, (VISA, VISA), (VISA,), (token, VISA)]
    errors = [
        *vault.issue_many(cards, requestor=SHOP, program="one-time").errors.values(),
        *vault.issue_many(
            [VISA, GROUPED], requestor=SHOP, program="one-time", domain=mention
        ).errors.values(),
        *vault.detokenize_many(uses).errors.values(),
        *vault.check_many(uses).errors.values(),
    ]
    assert len(errors) > len(cards) + 2 + 2 * len(ids)
    for error in errors:
        assert_silent(error)
    for stream in store.streams():
        for row in store.events(stream=stream):
            assert not any(needle.encode() in row.body for needle in NEEDLES)
    shown = repr(vault.issue_many([VISA], requestor=SHOP, program="one-time"))
    assert not any(needle in shown for needle in NEEDLES)
