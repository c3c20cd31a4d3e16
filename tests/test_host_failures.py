"""Whatever a caller's own iterable, file, mapping or function raises: an error that says whose it is, no defect."""

from __future__ import annotations

import io
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.interrupts import TimeLimitError
from tests.vaults import SHOP, VISA
from tokenvault import maintenance
from tokenvault.keys import KeyStore
from tokenvault.model.words import Words

COMMON: Any = {"requestor": SHOP, "program": "one-time"}


class Broken(Exception):
    """An error of the caller's, which holds a card number."""


def broken(*_: object, **__: object) -> Any:
    raise Broken(VISA)


def failing(*items: Any) -> Iterator[Any]:
    yield from items
    broken()


class BrokenFile(io.StringIO):
    """Fails with an error that it was given, behind its first line."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"pan,expiry\n{VISA},12/29\n")
        self._error = error

    def read(self, size: int | None = -1, /) -> str:
        text = super().read(size)
        if not text:
            raise self._error
        return text


class BrokenMapping(dict[str, Any]):
    """Of the right keys, and none of their values can be had."""

    keys = items = values = get = __iter__ = __getitem__ = broken


class BrokenView(Mapping[str, Any]):
    """As BrokenMapping, but no dict."""

    __iter__ = __getitem__ = __len__ = broken


class Wordless:
    """A value without text, as some libraries' mark of what is missing."""

    __str__ = __bool__ = broken


@pytest.fixture(scope="module")
def opened(local_keys: KeyStore) -> Iterator[tv.Vault]:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        yield vault


def rows(vault: tv.Vault, source: Any) -> list[tv.ImportedRow]:
    return list(tv.import_cards(vault, source, **COMMON))


BATCHES: dict[str, Callable[[tv.Vault, Any], object]] = {
    "import_cards": rows,
    "issue_many": lambda vault, items: vault.issue_many(items, **COMMON),
    "import_tokens": lambda vault, items: vault.import_tokens(items, operator="ana"),
    "detokenize_many": lambda vault, items: vault.detokenize_many(items),
    "check_many": lambda vault, items: vault.check_many(items),
    "get_many": lambda vault, items: vault.get_many(items),
    "delete_many": lambda vault, items: vault.delete_many(items),
    "update_card_many": lambda vault, items: vault.update_card_many(items),
    "update_token_many": lambda vault, items: vault.update_token_many(items),
    "update_domain_many": lambda vault, items: vault.update_domain_many(items),
    "metadata": lambda vault, items: vault.issue(VISA, metadata=items, **COMMON),
    "columns": lambda vault, items: list(tv.import_cards(vault, [], columns=items, **COMMON)),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", ["iterator", "mapping", "view"])
def test_an_iterable_that_fails_is_said_to(opened: tv.Vault, name: str, kind: str) -> None:
    kinds: dict[str, Callable[[], Any]] = {
        "iterator": failing,
        "mapping": BrokenMapping,
        "view": BrokenView,
    }
    items = kinds[kind]()
    if kind == "mapping" and name == "columns":
        return  # one without keys of its own names no columns
    with pytest.raises(tv.InvalidInputError) as raised:
        BATCHES[name](opened, items)
    assert VISA not in str(raised.value)


@pytest.mark.parametrize("name", BATCHES)
def test_an_error_of_the_library_in_an_iterable_comes_out_as_it_is(opened: tv.Vault, name: str) -> None:
    def forwarding() -> Iterator[Any]:
        yield from ()
        opened.get("9999" * 4)

    if name in ("metadata", "columns"):
        return
    with pytest.raises(tv.TokenNotFoundError):
        BATCHES[name](opened, forwarding())


@pytest.mark.parametrize("item", [BrokenView(), {"pan": Wordless(), "expiry": "12/29"}])
def test_an_item_that_fails_is_refused_alone(opened: tv.Vault, item: Any) -> None:
    good: Any = {"pan": VISA, "expiry": "2039-12"}
    issued = opened.issue_many([item, good], **COMMON)
    assert [isinstance(each, tv.TokenInfo) for each in issued] == [False, True]
    (refused,) = opened.import_tokens([item], operator="ana")
    assert isinstance(refused, tv.InvalidInputError)
    changed = opened.update_card_many([(VISA, item), (VISA, {"expiry": "2039-12"})])
    assert [isinstance(each, list) for each in changed] == [False, True]


def test_a_cell_without_text_costs_its_row_only(opened: tv.Vault) -> None:
    told = rows(opened, [{"pan": VISA, "customer": Wordless()}, {"pan": VISA, "customer": "c"}])
    assert [row.code for row in told] == ["INVALID_INPUT", None]


@pytest.mark.parametrize(
    "error", [ConnectionError(VISA), RuntimeError(VISA), ValueError(VISA), KeyError(VISA)], ids=repr
)
def test_a_file_that_fails_is_said_to_and_is_not_taken_for_one_of_another_form(
    opened: tv.Vault, error: Exception
) -> None:
    with pytest.raises(tv.InvalidInputError, match="the file of cards failed") as raised:
        rows(opened, BrokenFile(error))
    assert VISA not in str(raised.value)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("where", ["opened", "read"])
def test_a_time_limit_comes_out_of_a_file_as_it_is(
    opened: tv.Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It is an OSError, as those of files are."""

    def struck(*_: object, **__: object) -> Any:
        signal.raise_signal(signal.SIGUSR1)

    class Slow(io.StringIO):
        read = struck

    if where == "opened":
        monkeypatch.setattr(Path, "open", struck)
    with pytest.raises(TimeLimitError):
        rows(opened, tmp_path / "cards.csv" if where == "opened" else Slow())


def test_a_file_that_is_not_there_is_said_to_and_its_name_is_not(opened: tv.Vault, tmp_path: Path) -> None:
    for path in (tmp_path / f"{VISA}.csv", tmp_path):
        with pytest.raises(tv.InvalidInputError, match="can not be opened") as raised:
            rows(opened, path)
        assert raised.value.code == "INVALID_INPUT"
        assert VISA not in str(raised.value)
        assert raised.value.__suppress_context__


def test_an_error_of_the_library_in_a_file_comes_out_as_it_is_and_one_of_its_encoding_tells_the_line(
    opened: tv.Vault, tmp_path: Path
) -> None:
    told = tv.TokenNotFoundError("no such token")
    with pytest.raises(tv.TokenNotFoundError) as raised:
        rows(opened, BrokenFile(told))
    assert raised.value is told
    (tmp_path / "cards.csv").write_bytes(b"pan,expiry\n" + b"\xe9" * 100)
    with (
        (tmp_path / "cards.csv").open(encoding="utf-8") as file,
        pytest.raises(tv.InvalidInputError, match="no CSV in UTF-8, behind line 0"),
    ):
        rows(opened, file)


def test_a_file_that_gives_no_text_is_refused(opened: tv.Vault) -> None:
    class Bytes(io.StringIO):
        def read(self, _size: int | None = -1, /) -> Any:
            return b"pan\n"

    with pytest.raises(tv.InvalidInputError, match="what a file of cards gives is a str"):
        rows(opened, Bytes())


@pytest.mark.parametrize("kind", Words.__subclasses__(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("values", [(), ("a", "b"), ("a", "b", "c")])
def test_an_enumeration_takes_one_value(kind: Any, values: tuple[str, ...]) -> None:
    with pytest.raises(tv.InvalidInputError, match="takes one value"):
        kind(*values)
    first = next(iter(kind))
    assert kind(first.value) is first
    with pytest.raises(tv.InvalidInputError, match="takes one value"):
        kind(first.value, names=first.value)


@pytest.mark.parametrize("kind", Words.__subclasses__(), ids=lambda kind: kind.__name__)
def test_an_enumeration_refuses_another_word_with_those_that_it_has(kind: Any) -> None:
    with pytest.raises(tv.InvalidInputError) as refused:
        kind(VISA)
    words = ", ".join(repr(each.value) for each in kind)
    assert str(refused.value) == f"a {kind.__name__} is one of: {words}"
    assert "_missing_" not in [frame.name for frame in traceback.extract_tb(refused.value.__traceback__)]


def test_a_function_for_progress_that_fails_is_said_to(local_keys: KeyStore, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'vault.db'}"
    with closing(tv.open_token_store(address)) as store:
        tv.provision(local_keys, store)
        with vaults.open_vault(local_keys, store) as vault:
            vault.issue(VISA, **COMMON)
        for renew in (maintenance.reseal, maintenance.refingerprint):
            with pytest.raises(tv.InvalidInputError, match="progress failed"):
                renew(local_keys, store, progress=broken)
