"""The configuration of the command: one TOML file and the environment.

    key_store = "pkcs11:token=vault?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin"
    token_store = "postgresql://vault@db.internal/vault"
    custody = "process"                     # or "module": of the keys that are made

    [programs.card-on-file]                 # as TokenProgram and TokenFormat
    bin = "999912"
    making = "convergent"
    domain = { channels = ["ecommerce"] }   # as Domain.to_json, or that JSON as a text

    [requestors.40012345678]                # as TokenRequestor
    programs = ["card-on-file"]
    permissions = ["issue", "detokenize", "manage"]

In place of both, `directory = "stored"`: they are in the database, where `programs put`, `requestors put` write them.

TOKENVAULT_KEY_STORE and TOKENVAULT_STORE go before the file's addresses, and TOKENVAULT_CONFIG names the file.
Names that are not known are refused: a misspelled control would silently not restrict.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from tokenvault.cli.inputs import reason_of
from tokenvault.errors import ConfigurationError, InvalidInputError, TokenVaultError
from tokenvault.keys.port import Custody
from tokenvault.model.checks import milliseconds
from tokenvault.model.domain import Domain
from tokenvault.model.dual_control import RevealPolicy
from tokenvault.model.iso import add_codes
from tokenvault.model.pan import USUAL_PANS, PanRule
from tokenvault.model.programs import Making, Permission, TokenProgram, TokenRequestor
from tokenvault.model.token_format import TokenFormat

FILE_BYTES_MAX: Final = 16 * 2**20
DEFAULT_PATH: Final = Path("tokenvault.toml")
PATH_VARIABLE: Final = "TOKENVAULT_CONFIG"
KEY_STORE_VARIABLE: Final = "TOKENVAULT_KEY_STORE"
TOKEN_STORE_VARIABLE: Final = "TOKENVAULT_STORE"  # noqa: S105 # the name of an environment variable, no password

_NAMES: Final = frozenset(
    {"key_store", "token_store", "custody", "codes", "programs", "requestors", "directory", "reveal"}
)
STORED: Final = "stored"
"""What `directory` says where programs and requestors are in the database."""

_PASSWORD: Final = re.compile(r"(://[^:/?#@]*:)[^/?#]*(?=@)|(\b(?:password|pin-value)=)[^&]*", re.IGNORECASE)

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Configuration:
    """What the command works with.

    Attributes:
        path: of the file; None where there is none.
        key_store, token_store: addresses, as `open_key_store` and `open_token_store` take them.
        custody: of keys that are made.
        programs, requestors: those of the vault.
        stored: whether they are in the database instead, where commands change them.
        reveal: its dual control; None where no card number leaves it but for payments.
    """

    path: Path | None = None
    key_store: str | None = attrs.field(default=None, repr=False)
    token_store: str | None = attrs.field(default=None, repr=False)
    custody: Custody = Custody.IN_PROCESS
    programs: tuple[TokenProgram, ...] = ()
    requestors: tuple[TokenRequestor, ...] = ()
    stored: bool = False
    reveal: RevealPolicy | None = None


def load(path: Path | None) -> Configuration:
    """The configuration of a file, with what the environment says.

    Args:
        path: unset, TOKENVAULT_CONFIG names it, or else it is tokenvault.toml in this folder, if that is there.

    Raises:
        ConfigurationError: the file can not be read, or says something that is not known; others can read a secret.
    """
    named = path or _path_of_environment()
    found = named or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    table = {} if found is None else _read(found)
    unknown = table.keys() - _NAMES
    if unknown:
        raise ConfigurationError(
            f"the configuration has {', '.join(sorted(unknown))}; known: {', '.join(sorted(_NAMES))}"
        )
    _within("codes", lambda: add_codes(**_arguments(table.get("codes", {}), _CODE_FIELDS)))
    return Configuration(
        path=found,
        key_store=_address(table, "key_store", KEY_STORE_VARIABLE),
        token_store=_address(table, "token_store", TOKEN_STORE_VARIABLE),
        custody=_within("custody", lambda: Custody(table.get("custody", Custody.IN_PROCESS.value))),
        programs=tuple(
            _within(f"programs.{name}", partial(_program, name, value))
            for name, value in _table("programs", table.get("programs", {})).items()
        ),
        requestors=tuple(
            _within(f"requestors.{name}", partial(_requestor, name, value))
            for name, value in _table("requestors", table.get("requestors", {})).items()
        ),
        stored=_within("directory", lambda: _stored(table)),
        reveal=_within("reveal", lambda: _reveal(table.get("reveal"))),
    )


def shown_address(address: str) -> str:
    """An address without the password or PIN in it."""
    return _PASSWORD.sub(lambda found: f"{found[1] or found[2]}***", address)


def read_domain(text: str) -> Domain:
    """A domain in JSON, as `Domain.to_json` writes it, or in TOML. Raises InvalidInputError."""
    if text.lstrip().startswith("{"):
        return Domain.from_json(text)
    try:
        return _domain(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return Domain.from_json(text)  # its error says what is expected


def read_program(name: str, text: str) -> TokenProgram:
    """A program of a text in TOML, as its table in the file. Raises InvalidInputError."""
    return _read_party(f"program {name}", text, partial(_program, name))


def read_requestor(identity: str, text: str) -> TokenRequestor:
    """A requestor of a text in TOML, as its table in the file. Raises InvalidInputError."""
    return _read_party(f"requestor {identity}", text, partial(_requestor, identity))


def _read_party(place: str, text: str, make: Callable[[object], T]) -> T:
    try:
        return make(tomllib.loads(text))
    except (TokenVaultError, ValueError, TypeError) as error:
        said = str(error)
    raise InvalidInputError(f"{place}: {said}")


def _path_of_environment() -> Path | None:
    named = os.environ.get(PATH_VARIABLE)
    return Path(named) if named else None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX)
            others_read = os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        table = tomllib.loads(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        said = str(error) if isinstance(error, tomllib.TOMLDecodeError) else reason_of(error)
        table, problem = {}, f"the configuration file {path} can not be read: {said}"
    else:
        secret = any(_PASSWORD.search(str(table.get(name))) for name in ("key_store", "token_store"))
        problem = (
            f"the configuration file {path} holds a password or PIN, and others can read it: chmod 600 {path}"
            if secret and others_read
            else ""
        )
    if problem:  # raised outside: the original holds the text
        raise ConfigurationError(problem)
    return table


def _within(place: str, make: Callable[[], T]) -> T:
    """What a part of the file describes. Raises ConfigurationError, which names the part."""
    try:
        return make()
    except (TokenVaultError, ValueError, TypeError) as error:
        said = str(error)
    raise ConfigurationError(f"in the configuration, {place}: {said}")


def _table(place: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"in the configuration, {place} is a table")
    return value


def _address(table: Mapping[str, Any], name: str, variable: str) -> str | None:
    """The address that the environment or else the file gives."""
    value = table.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"in the configuration, {name} is a text")
    return os.environ.get(variable) or value


def _domain(value: object) -> Domain:
    if isinstance(value, str):
        return Domain.from_json(value)
    return Domain.from_json(json.dumps(value, default=_instant))


def _instant(value: object) -> int:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return milliseconds(value)
    raise TypeError("a domain has texts, numbers, lists and tables, and instants with a time zone")


def _program(name: str, value: object) -> TokenProgram:
    known = _arguments(value, _PROGRAM_FIELDS | _FORMAT_FIELDS)
    form = TokenFormat(**{name: known.pop(name) for name in sorted(known.keys() & _FORMAT_FIELDS)})
    return TokenProgram(name, format=form, **known)


def _requestor(identity: str, value: object) -> TokenRequestor:
    return TokenRequestor(identity, **_arguments(value, _REQUESTOR_FIELDS))


def _stored(table: Mapping[str, Any]) -> bool:
    value = table.get("directory")
    if value not in (None, STORED):
        raise ConfigurationError(f'it is "{STORED}", or absent')
    if value is not None and table.keys() & {"programs", "requestors"}:
        raise ConfigurationError(
            "programs and requestors are in the database: write them there with `programs put` and `requestors put`,"
            " and remove their tables"
        )
    return value is not None


def _reveal(value: object) -> RevealPolicy | None:
    return None if value is None else RevealPolicy(**_arguments(value, _REVEAL_FIELDS))


def _arguments(value: object, fields: frozenset[str]) -> dict[str, Any]:
    """The arguments that a table describes, each as its reader reads it."""
    table = _table("a part", value)
    unknown = table.keys() - fields
    if unknown:
        raise ConfigurationError(f"there is {', '.join(sorted(unknown))}; known: {', '.join(sorted(fields))}")
    return {name: _READERS.get(name, _as_it_is)(each) for name, each in table.items()}


def _as_it_is(value: object) -> object:
    return value


def _permissions(value: object) -> object:
    return {Permission(each) for each in value} if isinstance(value, list) else value


def _pans(value: object) -> PanRule:
    table = _table("pans", value)
    return PanRule(**{**table, "lengths": tuple(table.get("lengths", USUAL_PANS.lengths))})


def _names_of(kind: type[attrs.AttrsInstance], *own: str) -> frozenset[str]:
    return frozenset(field.name for field in attrs.fields(kind) if field.init) - frozenset(own)


_CODE_FIELDS: Final = frozenset({"currencies", "countries"})
_FORMAT_FIELDS: Final = _names_of(TokenFormat)
_PROGRAM_FIELDS: Final = _names_of(TokenProgram, "name", "format")
_REQUESTOR_FIELDS: Final = _names_of(TokenRequestor, "id")
_REVEAL_FIELDS: Final = _names_of(RevealPolicy)
_READERS: Final[dict[str, Callable[[object], object]]] = {
    "domain": _domain,
    "making": Making,
    "pans": _pans,
    "permissions": _permissions,
}
"""How what a table says is read, by its name; all else is taken as it is, and the library checks it."""
