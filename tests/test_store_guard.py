"""Whatever an adapter raises or returns, a caller of a token store sees what the port states."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest

import tokenvault as tv
from tokenvault.errors import (
    ConfigurationError,
    IntegrityError,
    KeyStoreError,
    TokenStoreError,
    TokenVaultError,
)
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import SealedRecord, TokenStore
from tokenvault.testing import a_record

SECRET = "row data"


class FailingStore(MemoryTokenStore):
    """Raises as told, chained to an exception that holds row data."""

    failure: BaseException | None = None

    def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        self._fail()
        return super()._get(tokens)

    def _check_schema(self) -> None:
        self._fail()

    def _fail(self) -> None:
        if self.failure is not None:
            try:
                os.environ[SECRET]
            except KeyError as error:
                raise self.failure from error


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(SECRET), TokenStoreError),
        (RecursionError(SECRET), TokenStoreError),
        (MemoryError(), TokenStoreError),
        (StopIteration(SECRET), TokenStoreError),
        (KeyStoreError("the module is gone"), TokenStoreError),
        (ConfigurationError("the schema is newer"), TokenStoreError),
        (TokenStoreError("busy"), TokenStoreError),
        (IntegrityError("edited"), IntegrityError),
    ],
)
def test_whatever_an_adapter_raises_comes_out_as_an_error_of_the_port(
    failure: Exception, expected: type[TokenVaultError]
) -> None:
    """Nothing is chained, and no message of a strange exception is passed on."""
    with closing(FailingStore()) as store:
        store.failure = failure
        with pytest.raises(expected) as caught:
            store.get([a_record(1).token])
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert SECRET not in str(caught.value)


def test_an_adapters_own_exception_is_seen_only_where_its_class_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not where an instance says so, or anything that is merely true; and each time with a warning."""

    class Developed(FailingStore):
        pass

    store = Developed()
    store.failure = OSError(SECRET)
    for value in (False, 1, "false"):
        monkeypatch.setattr(Developed, "unsafe_debug", value)
        store.__dict__["unsafe_debug"] = True
        with pytest.raises(TokenStoreError) as caught:
            store.check_schema()
        assert caught.value.__cause__ is caught.value.__context__ is None
    monkeypatch.setattr(Developed, "unsafe_debug", True)
    with pytest.warns(RuntimeWarning, match="row data"), pytest.raises(TokenStoreError) as caught:
        store.check_schema()
    assert caught.value.__cause__ is store.failure
    assert not MemoryTokenStore.unsafe_debug


@pytest.mark.filterwarnings("ignore:unsafe_debug is on:RuntimeWarning")
def test_a_vault_shows_no_exception_of_an_adapter_even_so(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What leaves a vault is chained to nothing, also over an adapter that is being developed."""
    monkeypatch.setattr(FailingStore, "unsafe_debug", True)
    store = FailingStore()
    tv.provision(local_keys, store)
    with tv.Vault(local_keys, store) as vault:
        store.failure = OSError(SECRET)
        with pytest.raises(TokenStoreError) as caught:
            vault.get("9999120000000000")
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_configuration_error_passes_where_the_schema_is_checked() -> None:
    with closing(FailingStore()) as store:
        store.failure = ConfigurationError("the schema is newer")
        with pytest.raises(ConfigurationError, match="newer"):
            store.check_schema()


def test_interruptions_pass_as_they_are() -> None:
    with closing(FailingStore()) as store:
        store.failure = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            store.get([a_record(1).token])


def test_an_explanation_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def explain(_: object, __: Exception) -> str:
        raise ValueError(SECRET)

    monkeypatch.setattr(FailingStore, "_explain", explain)
    with closing(FailingStore()) as store:
        store.failure = OSError()
        with pytest.raises(TokenStoreError) as caught:
            store.get([a_record(1).token])
    assert caught.value.__context__ is None
    assert SECRET not in str(caught.value)


class TimeLimitError(Exception):
    """A time limit of the application."""


def test_a_time_limit_that_strikes_an_explanation_comes_out_as_it_was_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def give_up(_number: int, _frame: object) -> None:
        raise TimeLimitError

    def explain(_: object, __: Exception) -> str:
        signal.raise_signal(signal.SIGUSR1)
        return "never told"

    monkeypatch.setattr(FailingStore, "_explain", explain)
    former = signal.signal(signal.SIGUSR1, give_up)
    try:
        with closing(FailingStore()) as store:
            store.failure = OSError(SECRET)
            with pytest.raises(TimeLimitError) as caught:
                store.get([a_record(1).token])
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert caught.value.__cause__ is caught.value.__context__ is None


class Strange:
    """Fails at whatever is done to it."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(SECRET)


@pytest.mark.parametrize(
    "make",  # pytest looks at its parameters, and Strange fails at that
    [
        object, dict, Strange, lambda: None, lambda: 5, lambda: "te\nxt", lambda: b"bytes", lambda: {1},
        lambda: [None], lambda: [[]], lambda: [Strange()],
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "call",
    [
        TokenStore.get,
        TokenStore.find,
        TokenStore.by_reference,
        lambda store, it: store.insert(it, it),
        lambda store, it: store.replace([], it),
        TokenStore.append,
        lambda store, it: store.events(stream=it, after=it),
        lambda store, it: store.scan(after=it, limit=it),
        lambda store, it: store.put_domain(it, it),
        TokenStore.get_domain,
        TokenStore.get_meta,
        lambda store, it: store.put_meta(it, it),
    ],
)
def test_arguments_of_any_type_are_refused_and_write_nothing(
    call: Callable[[TokenStore, object], object], make: Callable[[], object]
) -> None:
    """They are refused by one of the library's errors, and nothing is written."""
    strange = make()
    with closing(MemoryTokenStore()) as store:
        bound = getattr(store, call.__name__, None)
        with pytest.raises(TokenVaultError) as caught:
            _ = bound(strange) if bound else call(store, strange)
        assert caught.value.__context__ is None
        assert store.scan() == []
        assert store.streams() == []
