"""Addresses of key stores: RFC 7512 URIs of PKCS#11 tokens, and `file:` URIs.

    pkcs11:token=tokenvault?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:.softhsm/pin

Path attributes say which token: `token` (its label), `serial`, `manufacturer`, `model`, `slot-id`; at least
one of `token`, `serial` and `slot-id`. Query attributes say how to reach it: `module-path` (an absolute
path), and either `pin-source` (`file:` and a path; one that does not start with `/` is relative to the
working directory at the time of parsing; or `env:` and the name of an environment variable) or `pin-value`, or
neither for a token that wants no PIN. Further, for PKCS#11 key stores, `x-init-args` (what C_Initialize is given as
pReserved, for modules that want it), `x-blocks-per-call-max` and `x-call-seconds-max`.

Warning: with `pin-value` the PIN stands in the address, and addresses end up in configuration files, process lists
and logs. Use it for throw-away tokens of tests only.

Parsing is strict: attributes that are not named here are refused, because a misspelled one would silently
select another token; but for vendor attributes whose names begin with `x-`, which are kept.
"""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import unquote_to_bytes

import attrs

from tokenvault.errors import InvalidInputError

URI_CHARS_MAX: Final = 4_096
SLOT_ID_MAX: Final = 2**64 - 1

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SLOT_ID: Final = re.compile(r"0|[1-9][0-9]{0,19}", re.ASCII)
# RFC 7512, 2.3: pk11-path-res-avail and pk11-query-res-avail, with what RFC 3986 leaves unreserved.
_SAFE_IN_BOTH: Final = ":[]@!$'()*+,="
_SAFE_IN_PATH: Final = _SAFE_IN_BOTH + "&"
_SAFE_IN_QUERY: Final = _SAFE_IN_BOTH + "/?|"
_ENCODED: Final = r"%[0-9A-Fa-f]{2}"
_PATH_VALUE: Final = re.compile(rf"(?:[A-Za-z0-9._~{re.escape(_SAFE_IN_PATH)}-]|{_ENCODED})*", re.ASCII)
_QUERY_VALUE: Final = re.compile(rf"(?:[A-Za-z0-9._~{re.escape(_SAFE_IN_QUERY)}-]|{_ENCODED})*", re.ASCII)

_PATH_NAMES: Final = frozenset({"token", "serial", "manufacturer", "model", "slot-id"})
_QUERY_NAMES: Final = frozenset({"module-path", "pin-source", "pin-value"})
_FILE_SCHEME: Final = "file:"
_ENVIRONMENT_SCHEME: Final = "env:"

Pairs = tuple[tuple[str, str], ...]


def is_text(value: object) -> bool:
    """Whether a value is text, whatever its annotation promised."""
    return isinstance(value, str)


def _is_vendor(name: str) -> bool:
    return name.startswith("x-") and len(name) > len("x-") and _NAME.fullmatch(name) is not None


@attrs.frozen(kw_only=True)
class Pkcs11Uri:
    """A parsed `pkcs11:` URI. Its repr and str show no PIN.

    Attributes:
        token: label of the token.
        serial: serial number of the token.
        manufacturer: manufacturer of the token.
        model: model of the token.
        slot_id: number of the slot. Some modules number their slots anew at each start: prefer a label.
        module_path: absolute path of the module's shared library.
        pin_path: absolute path of the file that holds the PIN.
        pin_env: name of the environment variable that holds the PIN.
        pin_value: the PIN itself. At most one of the three is set; none, where the token wants no PIN.
        vendor_path: vendor attributes (`x-...`) of the path, in the order given.
        vendor_query: vendor attributes of the query, in the order given.
    """

    module_path: str
    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot_id: int | None = None
    pin_path: str | None = None
    pin_env: str | None = None
    pin_value: str | None = attrs.field(default=None, repr=False)
    vendor_path: Pairs = attrs.field(default=(), repr=False)
    vendor_query: Pairs = attrs.field(default=(), repr=False)

    def __attrs_post_init__(self) -> None:
        self._check_texts()
        self._check_selection()
        self._check_login()
        for pairs in (self.vendor_path, self.vendor_query):
            names = [name for name, _ in pairs]
            if len(set(names)) != len(names) or not all(map(_is_vendor, names)):
                raise InvalidInputError("vendor attributes have names that begin with x-, each once")

    def _check_texts(self) -> None:
        texts = [self.module_path, self.token, self.serial, self.manufacturer, self.model]
        texts += [self.pin_path, self.pin_env, self.pin_value]
        texts += [text for pair in self.vendor_path + self.vendor_query for text in pair]
        for text in texts:
            if text is not None and (not is_text(text) or not text or "\0" in text):
                raise InvalidInputError("every attribute of a pkcs11 URI is text, not empty and without NUL")

    def _check_selection(self) -> None:
        slot_id = self.slot_id
        if slot_id is not None and (type(slot_id) is not int or not 0 <= slot_id <= SLOT_ID_MAX):
            raise InvalidInputError("slot-id is a whole number from 0 to 2^64-1")
        if self.token is None and self.serial is None and self.slot_id is None:
            raise InvalidInputError("a pkcs11 URI says which token: set token, serial or slot-id")
        if not os.path.isabs(self.module_path):
            raise InvalidInputError("module-path is the absolute path of the module's shared library")

    def _check_login(self) -> None:
        if [self.pin_path, self.pin_env, self.pin_value].count(None) < 2:
            raise InvalidInputError(
                "a pkcs11 URI has one of pin-source=file:..., pin-source=env:... and pin-value"
            )
        if self.pin_env is not None and not _NAME.fullmatch(self.pin_env):
            raise InvalidInputError("pin-source=env: names an environment variable")
        if self.pin_path is not None and not os.path.isabs(self.pin_path):
            raise InvalidInputError("pin_path is an absolute path")

    def vendor(self, name: str) -> str | None:
        """The vendor attribute of the query with this name, or None."""
        return dict(self.vendor_query).get(name)


def parse_pkcs11_uri(uri: str) -> Pkcs11Uri:
    """Parse a `pkcs11:` URI.

    Raises:
        InvalidInputError: it is not one, or selects no token, or does not say how to log in. The message names
            the attribute, never its value.
    """
    rest = _without_scheme(uri, "pkcs11:")
    path_text, _, query_text = rest.partition("?")
    path = _attributes(path_text, ";", _PATH_VALUE, _PATH_NAMES)
    query = _attributes(query_text, "&", _QUERY_VALUE, _QUERY_NAMES)
    slot_id = path.get("slot-id")
    if slot_id is not None and not _SLOT_ID.fullmatch(slot_id):
        raise InvalidInputError("slot-id is a whole number from 0 to 2^64-1")
    if "module-path" not in query:
        raise InvalidInputError("a pkcs11 URI needs module-path=, the path of the module's shared library")
    pin_source = query.get("pin-source", "")
    pin_env = (
        pin_source.removeprefix(_ENVIRONMENT_SCHEME) if pin_source.startswith(_ENVIRONMENT_SCHEME) else None
    )
    by_file = bool(pin_source) and pin_env is None
    if pin_source and "pin-value" in query:
        raise InvalidInputError("a pkcs11 URI has either pin-source or pin-value")
    return Pkcs11Uri(
        module_path=query["module-path"],
        token=path.get("token"),
        serial=path.get("serial"),
        manufacturer=path.get("manufacturer"),
        model=path.get("model"),
        slot_id=None if slot_id is None else int(slot_id),
        pin_path=parse_file_source(pin_source, "pin-source") if by_file else None,
        pin_env=pin_env,
        pin_value=query.get("pin-value"),
        vendor_path=tuple((name, value) for name, value in path.items() if name not in _PATH_NAMES),
        vendor_query=tuple((name, value) for name, value in query.items() if name not in _QUERY_NAMES),
    )


@attrs.frozen(kw_only=True)
class FileUri:
    """A parsed `file:` URI of a key file.

    Attributes:
        path: absolute path of the key file.
        passphrase_path: absolute path of the file that holds the passphrase; None when it is in the
            environment.
        passphrase_env: name of the environment variable that holds the passphrase; None when a file does.
    """

    path: str
    passphrase_path: str | None
    passphrase_env: str | None


DEFAULT_PASSPHRASE_ENV: Final = "TOKENVAULT_PASSPHRASE"  # noqa: S105 # a name, no passphrase


def parse_file_uri(uri: str) -> FileUri:
    """Parse `file:keys.json`, `file:keys.json?passphrase-source=file:...` or `...?passphrase-env=NAME`.

    Raises:
        InvalidInputError: it is not one.
    """
    rest = _without_scheme(uri, _FILE_SCHEME)
    path_text, _, query_text = rest.partition("?")
    query = _attributes(query_text, "&", _QUERY_VALUE, frozenset({"passphrase-source", "passphrase-env"}))
    if any(_is_vendor(name) for name in query):
        raise InvalidInputError("a file URI takes passphrase-source and passphrase-env, nothing else")
    source, env = query.get("passphrase-source"), query.get("passphrase-env")
    if source is not None and env is not None:
        raise InvalidInputError("a file URI has either passphrase-source or passphrase-env")
    if env is not None and not _NAME.fullmatch(env):
        raise InvalidInputError("passphrase-env names an environment variable")
    return FileUri(
        path=parse_file_source(
            _FILE_SCHEME + _decode(path_text, _QUERY_VALUE, "the path"), "the key file", raw=True
        ),
        passphrase_path=None if source is None else parse_file_source(source, "passphrase-source"),
        passphrase_env=(env or DEFAULT_PASSPHRASE_ENV) if source is None else None,
    )


def parse_file_source(source: str, what: str, *, raw: bool = False) -> str:
    """The absolute path in `file:path`, `file:/path` or `file:///path`, itself percent-encoded unless raw."""
    if not source.startswith(_FILE_SCHEME):
        raise InvalidInputError(f"{what} is file: and a path")
    path = source.removeprefix(_FILE_SCHEME)
    if path.startswith("//"):
        if not path.startswith("///"):
            raise InvalidInputError(f"{what} names no host: write file:/path, file:///path or file:path")
        path = path[2:]
    if not raw:
        path = _decode_bytes(path, what)
    if not path or "\0" in path:
        raise InvalidInputError(f"{what} is file: and a path")
    return os.path.abspath(path)


def _without_scheme(uri: str, scheme: str) -> str:
    if not is_text(uri) or not uri.startswith(scheme):
        raise InvalidInputError(f"the address of this key store is text that begins with {scheme}")
    if len(uri) > URI_CHARS_MAX:
        raise InvalidInputError(f"a URI has at most {URI_CHARS_MAX} characters")
    return uri.removeprefix(scheme)


def _attributes(text: str, separator: str, values: re.Pattern[str], names: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name not in names and not _is_vendor(name):
            known = ", ".join(sorted(names))
            raise InvalidInputError(
                f"unknown attribute in the URI; known here: {known}, and vendor names with x-"
            )
        if not equals or not value:
            raise InvalidInputError(f"the URI's {name if name in names else 'vendor attribute'} has no value")
        if name in found:
            raise InvalidInputError("the URI has an attribute twice")
        found[name] = _decode(value, values, name if name in names else "a vendor attribute")
    return found


def _decode(value: str, allowed: re.Pattern[str], what: str) -> str:
    if not allowed.fullmatch(value):
        raise InvalidInputError(f"{what} has characters that a URI must percent-encode")
    return _decode_bytes(value, what)


def _decode_bytes(value: str, what: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", value):
        raise InvalidInputError(f"{what} has a % that is not followed by two hex digits")
    try:
        return unquote_to_bytes(value).decode("utf-8")
    except UnicodeError:
        pass
    raise InvalidInputError(
        f"{what} is not UTF-8 when decoded"
    )  # after the except: the original quotes the value
