"""Every error has a stable code: the tables of docs/reference/codes.md and the source say the same."""

from __future__ import annotations

import ast
import copy
import functools
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import SHOP, STRANGER, VISA, issue, use
from tokenvault import errors
from tokenvault.keys.pkcs11 import errors as pkcs11_errors

ROOT = Path(tv.__file__).parent
TABLES = Path(__file__).parent.parent / "docs" / "reference" / "codes.md"
CODE = re.compile("[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
ROW = re.compile(r"^\| `([A-Z0-9_]+)` \| ((?:`\w+Error`(?:, )?)+) \| (.+) \|$", re.MULTILINE)
CLASSES = {
    name: kind
    for module in (errors, pkcs11_errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, tv.TokenVaultError)
}
"""The library's errors, also those that are raised as a kind of a public one."""

# Rooms where each constant that is spelled like a code is one, and what the others of a room begin with.
MODEL, VAULT, STORES, KEYS = "model", "vault", "stores", "keys"
BEGINNINGS = {MODEL: "", VAULT: "", STORES: "STORE_", KEYS: "KEY_STORE_"}


def documented() -> dict[str, set[str]]:
    """The classes of each code in the tables."""
    rows = ROW.findall(TABLES.read_text(encoding="utf-8"))
    assert len(rows) == len({code for code, _, _ in rows})
    return {code: set(re.findall(r"`(\w+)`", kinds)) for code, kinds, _ in rows}


@functools.cache
def trees() -> dict[Path, ast.Module]:
    return {
        path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")
    }


def raised() -> set[tuple[str, str]]:
    """Code and class of every call of a library error that gives a code in so many words, or none."""
    found = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in CLASSES:
                continue
            kind = CLASSES[node.func.id]  # type: ignore[attr-defined] # it has one, or it would be no class's name
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if not given:
                found.add((kind.code, public(kind)))
            elif isinstance(given[0], ast.Constant) and given[0].value is not None:
                found.add((str(given[0].value), public(kind)))
    return found


def public(kind: type[tv.TokenVaultError]) -> str:
    """The name of an error, or of the public one that it is a kind of."""
    return next(base.__name__ for base in kind.__mro__ if base.__name__ in tv.__all__)


def spelled() -> set[str]:
    """Every constant of the source that is a code, wherever it stands: raised, or in a table of what is raised."""
    found = {kind.code for kind in CLASSES.values()}
    for path, tree in trees().items():
        beginning = BEGINNINGS.get(path.parts[0])
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if beginning is not None and CODE.fullmatch(node.value) and node.value.startswith(beginning):
                    found.add(node.value)
            elif (
                isinstance(node, ast.keyword)
                and node.arg == "code"
                and isinstance(node.value, ast.Constant)
                and node.value.value is not None
            ):
                found.add(str(node.value.value))
    return found


def test_every_code_is_in_the_tables_and_every_code_of_the_tables_is_raised() -> None:
    assert len(documented()) > 100
    assert spelled() == documented().keys()


def test_the_tables_name_the_class_that_each_code_comes_with() -> None:
    assert len(raised()) > 50
    for code, kind in raised():
        if kind != "DomainRestrictionError":  # which has the code of a violation
            assert kind in documented()[code], code
    assert all(set(kinds) <= set(tv.__all__) for kinds in documented().values())


def test_every_class_has_a_code_of_its_own_kind() -> None:
    defaults = {kind.__name__: kind.code for kind in CLASSES.values() if public(kind) == kind.__name__}
    del defaults["DomainRestrictionError"]  # that of its first violation
    assert len(defaults) > 10
    assert len(set(defaults.values())) == len(defaults)


def pickled(error: tv.TokenVaultError) -> tv.TokenVaultError:
    """An error that has been to another process."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 # what this test wrote
    assert isinstance(again, tv.TokenVaultError)
    return again


@pytest.mark.parametrize("code", [None, "PAN_LENGTH"])
@pytest.mark.parametrize("kind", [kind for kind in CLASSES.values() if kind is not tv.DomainRestrictionError])
def test_codes_survive_pickling_and_copying(kind: type[tv.TokenVaultError], code: str | None) -> None:
    error = kind("what to do", code=code)
    for again in (pickled(error), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert (again.code, again.response_code, str(again)) == (error.code, error.response_code, str(error))
        assert again.code == (code or kind.code)


def test_a_refused_use_has_the_code_of_its_first_violation(vault: tv.Vault) -> None:
    token = issue(vault, domain=tv.Domain(merchants={"M"}, countries={"FR"})).token
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(token, use())
    assert refused.value.code == refused.value.violations[0].code == "MERCHANT_NOT_ALLOWED"
    assert pickled(refused.value).code == refused.value.code
    assert copy.copy(refused.value).code == refused.value.code


def test_business_cases_have_codes_of_their_own(vault: tv.Vault) -> None:
    token = issue(vault, program="card-on-file").token
    cases: dict[str, Callable[[], object]] = {
        "PAN_CHARACTERS": lambda: issue(vault, VISA + "x"),
        "PAN_LENGTH": lambda: issue(vault, "4111"),
        "PAN_CHECK_DIGIT": lambda: issue(vault, VISA[:-1] + "2"),
        "PAN_IS_TOKEN": lambda: issue(vault, token),
        "EXPIRY_FORM": lambda: issue(vault, expiry="12/29"),
        "CARD_EXPIRED": lambda: issue(vault, expiry="2020-01"),
        "TOKEN_EXPIRED": lambda: issue(vault, token_expiry="2020-01"),
        "CARD_NUMBER_IN_TEXT": lambda: issue(vault, domain=tv.Domain(merchants={VISA})),
        "PROGRAM_UNKNOWN": lambda: issue(vault, program="none"),
        "TOKEN_EXISTS_WITH_OTHER_PROPERTIES": lambda: issue(
            vault, program="card-on-file", domain=tv.Domain(merchants={"M"})
        ),
        "REQUESTOR_UNKNOWN": lambda: issue(vault, requestor=STRANGER),
        "PERMISSION_DENIED": lambda: issue(vault, requestor=vaults.ACQUIRER),
        "TOKEN_NOT_FOUND": lambda: vault.get("9" * 16),
        "CARD_HAS_NO_TOKEN": lambda: vault.update_card("5555555555554444", expiry="2039-12"),
        "CARD_NUMBER_IN_TRANSACTION": lambda: vault.detokenize(token, use(merchant=VISA)),
        "STATUS_NOT_FITTING": lambda: vault.activate(token),
        "ACTOR_NOT_ALLOWED": lambda: vault.suspend(token, by=tv.Actor.ISSUER, requestor=SHOP),
        "INVALID_INPUT": lambda: vault.history(token, limit=0),
    }
    for code, call in cases.items():
        with pytest.raises(tv.TokenVaultError) as raised:
            call()
        assert raised.value.code == code


def test_what_fails_below_the_vault_has_the_code_of_its_cause(
    tmp_path: Path, quick_scrypt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.db").write_text("neither a database nor keys: " + 4_096 * "x")
    monkeypatch.setenv("TOKENVAULT_PASSPHRASE", "one")
    keys = tv.open_key_store(f"file:{tmp_path}/keys.json")
    keys.create(tv.KeyPurpose.SEAL, tv.Custody.IN_PROCESS)
    keys.close()
    closed = tv.open_token_store("memory:")
    closed.close()
    monkeypatch.setenv("TOKENVAULT_PASSPHRASE", "another")
    cases: dict[str, Callable[[], object]] = {
        "STORE_NOT_PROVISIONED": lambda: tv.open_token_store(f"sqlite:///{tmp_path}/none.db").check_schema(),
        "STORE_FOREIGN": lambda: tv.open_token_store(f"sqlite:///{tmp_path}/text.db").check_schema(),
        "STORE_FILE_NOT_OPENED": lambda: tv.open_token_store(f"sqlite:///{tmp_path}/a/b.db").provision(),
        "STORE_CLOSED": closed.check_schema,
        "STORE_UNREACHABLE": lambda: tv.open_token_store("postgresql://u@127.0.0.1:9/d").check_schema(),
        "KEY_STORE_CLOSED": lambda: keys.versions(tv.KeyPurpose.SEAL),
        "KEY_STORE_PASSPHRASE_WRONG": lambda: tv.open_key_store(f"file:{tmp_path}/keys.json"),
        "KEY_STORE_FILE_DAMAGED": lambda: tv.open_key_store(f"file:{tmp_path}/text.db"),
        "KEY_STORE_MODULE_MISSING": lambda: tv.open_key_store("pkcs11:token=t?module-path=/none.so"),
        "KEY_STORE_SECRET_UNREADABLE": lambda: tv.open_key_store(
            f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/none"
        ),
    }
    for code, call in cases.items():
        with pytest.raises(tv.TokenVaultError) as raised:
            call()
        assert raised.value.code == code
