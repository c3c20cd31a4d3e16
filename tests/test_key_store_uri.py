"""Addresses of key stores: what parses, what is refused, and that no message repeats a PIN."""

from __future__ import annotations

import os
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvault.errors import InvalidInputError
from tokenvault.keys import open_key_store
from tokenvault.keys.uri import FileUri, Pkcs11Uri, parse_file_uri, parse_pkcs11_uri

BASE = "pkcs11:token=tokenvault?module-path=/usr/lib/softhsm/libsofthsm2.so"
PIN = "7391-secret"
IN_PATH, IN_QUERY = ":[]@!$'()*+,=&", ":[]@!$'()*+,=/?|"

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=10).map("x-{}".format)
vendor = st.dictionaries(names, texts, max_size=3).map(lambda found: tuple(found.items()))
paths = texts.map(lambda text: "/" + text)


@st.composite
def uris(draw: st.DrawFn) -> Pkcs11Uri:
    by_file = draw(st.booleans())
    return Pkcs11Uri(
        module_path=draw(paths),
        token=draw(texts),
        serial=draw(st.none() | texts),
        manufacturer=draw(st.none() | texts),
        model=draw(st.none() | texts),
        slot_id=draw(st.none() | st.integers(0, 2**64 - 1)),
        pin_path=os.path.abspath(draw(paths)) if by_file else None,
        pin_value=None if by_file else draw(texts),
        vendor_path=draw(vendor),
        vendor_query=draw(vendor),
    )


def written(uri: Pkcs11Uri) -> str:
    """The URI as RFC 7512 spells it (2.3: pk11-path-res-avail and pk11-query-res-avail stay as they are)."""
    path = [(name, getattr(uri, name)) for name in ("token", "serial", "manufacturer", "model")]
    path += [("slot-id", None if uri.slot_id is None else str(uri.slot_id)), *uri.vendor_path]
    pin_source = None if uri.pin_path is None else "file:" + quote(uri.pin_path, safe="/")
    query = [("module-path", uri.module_path), ("pin-source", pin_source), ("pin-value", uri.pin_value)]
    query += uri.vendor_query
    path_text = ";".join(f"{name}={quote(value, safe=IN_PATH)}" for name, value in path if value is not None)
    query_text = "&".join(
        f"{name}={quote(value, safe=IN_QUERY)}" for name, value in query if value is not None
    )
    return f"pkcs11:{path_text}?{query_text}"


@given(uris())
def test_what_is_written_parses_to_the_same(uri: Pkcs11Uri) -> None:
    if uri.pin_path is None or not uri.pin_path.startswith(
        "//"
    ):  # POSIX gives // at the start a meaning of its own
        assert parse_pkcs11_uri(written(uri)) == uri


def test_every_attribute_of_a_pkcs11_uri_is_read() -> None:
    uri = parse_pkcs11_uri(
        "pkcs11:token=my%20token;serial=01;manufacturer=A%26B;model=m;slot-id=7;x-a=1"
        "?module-path=/lib/m.so&pin-source=file:/run/pin&x-b=2"
    )
    assert uri == Pkcs11Uri(
        module_path="/lib/m.so",
        token="my token",
        serial="01",
        manufacturer="A&B",
        model="m",
        slot_id=7,
        pin_path="/run/pin",
        vendor_path=(("x-a", "1"),),
        vendor_query=(("x-b", "2"),),
    )
    assert uri.vendor("x-b") == "2"
    assert uri.vendor("x-c") is None


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("file:/run/pin", "/run/pin"),
        ("file:///run/pin", "/run/pin"),
        ("file:.softhsm/pin", os.path.abspath(".softhsm/pin")),
        ("file:/a%2520b", "/a b"),  # the query's value is decoded, and the file URI in it
    ],
)
def test_a_pin_source_is_a_file_uri_whose_path_is_decoded(source: str, path: str) -> None:
    assert parse_pkcs11_uri(f"{BASE}&pin-source={source}").pin_path == path


def test_pin_from_the_environment() -> None:
    uri = parse_pkcs11_uri(f"{BASE}&pin-source=env:VAULT_PIN")
    assert (uri.pin_env, uri.pin_path, uri.pin_value) == ("VAULT_PIN", None, None)


def test_a_token_without_pin_needs_no_source_of_one() -> None:
    """Whether it wants one is the token's to say, at opening."""
    uri = parse_pkcs11_uri(BASE)
    assert (uri.pin_env, uri.pin_path, uri.pin_value) == (None, None, None)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "pkcs11:",
        "pkcs12:token=a",
        "PKCS11:token=a?module-path=/m&pin-value=1",
        "pkcs11:?module-path=/m&pin-value=1",
        "pkcs11:manufacturer=a?module-path=/m&pin-value=1",
        "pkcs11:token=a?pin-value=1",
        "pkcs11:token=a?module-path=m.so&pin-value=1",
        "pkcs11:token=a?module-path=/m&pin-source=env:",
        "pkcs11:token=a?module-path=/m&pin-source=env:A%20B",
        "pkcs11:token=a?module-path=/m&pin-source=env:A&pin-value=1",
        "pkcs11:token=a?module-path=/m&pin-value=1&pin-source=file:/p",
        "pkcs11:token=a;token=b?module-path=/m&pin-value=1",
        "pkcs11:token=a?module-path=/m&module-path=/m&pin-value=1",
        "pkcs11:token=a;x-v=1;x-v=1?module-path=/m&pin-value=1",
        "pkcs11:tokn=a;token=a?module-path=/m&pin-value=1",
        "pkcs11:token=a;object=k?module-path=/m&pin-value=1",
        "pkcs11:token=a;module-path=/m?pin-value=1",
        "pkcs11:token=a?module-name=m&pin-value=1",
        "pkcs11:token=a;?module-path=/m&pin-value=1",
        "pkcs11:token=a?module-path=/m&pin-value=1&",
        "pkcs11:token?module-path=/m&pin-value=1",
        "pkcs11:token=?module-path=/m&pin-value=1",
        "pkcs11:x-=a;token=a?module-path=/m&pin-value=1",
        "pkcs11:token=a b?module-path=/m&pin-value=1",
        "pkcs11:token=a/b?module-path=/m&pin-value=1",
        "pkcs11:token=ä?module-path=/m&pin-value=1",
        "pkcs11:token=a%?module-path=/m&pin-value=1",
        "pkcs11:token=a%2?module-path=/m&pin-value=1",
        "pkcs11:token=%ff?module-path=/m&pin-value=1",
        "pkcs11:token=%00?module-path=/m&pin-value=1",
        "pkcs11:token=a\n?module-path=/m&pin-value=1",
        "pkcs11:slot-id=-1?module-path=/m&pin-value=1",
        "pkcs11:slot-id=01?module-path=/m&pin-value=1",
        "pkcs11:slot-id=%D9%A1?module-path=/m&pin-value=1",
        "pkcs11:slot-id=18446744073709551616?module-path=/m&pin-value=1",
        "pkcs11:token=a?module-path=/m&pin-source=/p",
        "pkcs11:token=a?module-path=/m&pin-source=file:",
        "pkcs11:token=a?module-path=/m&pin-source=file://host/p",
        "pkcs11:token=a?module-path=/m&pin-source=|getpin",
        "pkcs11:token=a?module-path=/m&pin-value=1#x",
        "pkcs11:token=a?module-path=/m&pin-value=" + "1" * 5_000,
    ],
)
def test_a_pkcs11_uri_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_pkcs11_uri(uri)
    with pytest.raises(InvalidInputError):
        open_key_store(uri)


@pytest.mark.parametrize(
    "uri",
    [
        f"{BASE}&pin-value={PIN}&unknown=1",
        f"{BASE}&pin-value={PIN} x",
        f"{BASE}&pin-value={PIN}%f",
        f"{BASE}&pin-value={PIN}%ff",
        f"{BASE}&pin-value={PIN}&pin-value={PIN}",
        f"{BASE}&pin-value={PIN}&pin-source=file:x",
        f"{BASE}&pinvalue={PIN}",
        f"{BASE}&{PIN}",
        f"{BASE}&pin-source={PIN}",
        f"pkcs11:pin-value={PIN}",
        f"pkcs12:{PIN}",
    ],
)
def test_no_message_repeats_the_pin(uri: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_key_store(uri)
    error: BaseException | None = caught.value
    while error is not None:
        assert PIN not in str(error)
        assert PIN not in repr(error)
        error = error.__context__


def test_pin_is_in_no_repr() -> None:
    uri = parse_pkcs11_uri(f"{BASE}&pin-value={PIN}")
    assert PIN not in repr(uri)
    assert PIN not in str(uri)
    assert uri.pin_value == PIN


@pytest.mark.parametrize("wrong", [None, 1, b"file:x", ["file:x"], "FILE:x", "keys.json", "redis:x"])
def test_only_text_with_a_known_scheme_is_an_address(wrong: object) -> None:
    with pytest.raises(InvalidInputError):
        open_key_store(wrong)  # type: ignore[arg-type] # the point of the test


def test_a_file_uri_names_a_file_and_where_its_passphrase_is() -> None:
    here = os.path.abspath("keys.json")
    assert parse_file_uri("file:keys.json") == FileUri(
        path=here, passphrase_path=None, passphrase_env="TOKENVAULT_PASSPHRASE"
    )
    assert parse_file_uri("file:/a%20b?passphrase-env=X").path == "/a b"
    assert parse_file_uri("file:///k?passphrase-source=file:/p") == FileUri(
        path="/k", passphrase_path="/p", passphrase_env=None
    )


@pytest.mark.parametrize(
    "uri",
    [
        "file:",
        "file://host/keys",
        "file:k?passphrase-source=p",
        "file:k?passphrase-source=file:p&passphrase-env=E",
        "file:k?passphrase-env=",
        "file:k?passphrase-env=A%3DB",
        "file:k?passphrase=secret",
        "file:k?x-a=1",
        "file:a b",
        "file:%00",
    ],
)
def test_a_file_uri_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_file_uri(uri)
