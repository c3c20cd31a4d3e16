"""A key ceremony: a key in three shares of paper, any two of which bring it into a PKCS#11 token.

A key that a module made never leaves it. One that is to move to another module later is made here instead, split, and
brought into each module from two of its shares; the people who hold them are the only backup. While it is made and
while it is brought in, the key is in this process's memory: hold the ceremony on a machine without a network, that is
switched off afterwards (PCI DSS 4.0.1, 3.6.1.2 and 3.7.6: split knowledge, dual control).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from typing import Final

from tokenvault.crypto import shamir
from tokenvault.errors import InvalidInputError, boundary
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.keys.port import KEY_BYTES, Custody, KeyName
from tokenvault.keys.secrets import Secret
from tokenvault.model import checks

__all__ = ["import_key", "new_shares"]

_TITLE: Final = "tokenvault-share"
_ENCODING_VERSION: Final = 1
_SET_BYTES: Final = 4
_CHECK_BYTES: Final = 4
_BYTES: Final = 2 + _SET_BYTES + KEY_BYTES + _CHECK_BYTES
_GROUP: Final = 4
_CHARACTERS_MAX: Final = 200

_FORM: Final = "a share is one line as new_shares wrote it: look for a letter that was misread"


@boundary
def new_shares() -> tuple[Secret, Secret, Secret]:
    """A new AES-256 key, random, in three shares; give each to another person, and to nobody two.

    Each is one line to print or to write down: letters and digits in groups, with a check that finds an error of
    writing. Two shares tell the key, one alone tells nothing of it.
    """
    made_at_once = secrets.token_bytes(_SET_BYTES)  # two ceremonies are not mixed up
    first, second, third = (
        _written(place, made_at_once, share)
        for place, share in shamir.split(
            secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
        ).items()
    )
    return first, second, third


@boundary
def import_key(keys: Pkcs11KeyStore, key: KeyName, custody: Custody, shares: Sequence[Secret]) -> None:
    """Bring a key into a token from any two of its three shares, under the name that it is to have there.

    The object is what `create` makes: sensitive, not extractable, able to encrypt and nothing else. Before a
    database is provisioned, version 1 of a purpose; afterwards the next version, which `maintenance.add_key_version`
    takes with `version=`. Moving to another module, the versions that the key table has, older ones first; opening a
    vault tells by their check values whether they are the right ones.

    Args:
        keys: the token.
        key: purpose and version.
        custody: where the key is to work. Of a key that a database uses already, the custody that it has: in another
            one it works by other blocks. A change of custody is a rotation.
        shares: two, or all three: then the third is checked too.

    Raises:
        InvalidInputError: a share was misread, or they are not of one key, or fewer than two.
        KeyStoreError: the token has this version, or had it, or does not take a key from outside, or can not be
            reached.
    """
    checks.instance("key", key, KeyName)
    checks.instance("custody", custody, Custody)
    checks.instance("keys", keys, Pkcs11KeyStore)
    keys.bring_in(key, custody, Secret(_combined(shares).hex()))


def _combined(shares: Sequence[Secret]) -> bytes:
    read: dict[int, bytes] = {}
    ceremonies = set()
    for share in checks.listed("shares", shares, shamir.SHARES):
        place, ceremony, values = _read(checks.instance("each of shares", share, Secret))
        read[place] = values
        ceremonies.add(ceremony)
    if len(read) < shamir.THRESHOLD or len(ceremonies) != 1:
        raise InvalidInputError("shares are two or three different ones of one key", code="KEY_SHARES_UNFIT")
    places = sorted(read)
    found = {shamir.combine({a: read[a], b: read[b]}) for a in places for b in places if a < b}
    if len(found) != 1:
        raise InvalidInputError("these shares are not of one key", code="KEY_SHARES_UNFIT")
    return found.pop()


def _written(place: int, ceremony: bytes, share: bytes) -> Secret:
    content = bytes((_ENCODING_VERSION, place)) + ceremony + share
    text = _text(content + _check(content))
    groups = "-".join(text[at : at + _GROUP] for at in range(0, len(text), _GROUP))
    return Secret(f"{_TITLE} {place} of {shamir.SHARES} {groups}")


def _read(share: Secret) -> tuple[int, bytes, bytes]:
    """Place, ceremony and values of a share. Raises InvalidInputError, which shows nothing of it."""
    words = share.reveal()[:_CHARACTERS_MAX].split()
    text = words[-1].replace("-", "").upper() if words else ""
    try:
        content = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        content = b""
    body, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
    right = len(content) == _BYTES and body[0] == _ENCODING_VERSION and _check(body) == check
    # The last letter has bits to spare: they are zeros, or it was misread.
    if not right or _text(content) != text or not 1 <= body[1] <= shamir.SHARES:
        raise InvalidInputError(_FORM, code="KEY_SHARES_UNFIT")
    return body[1], body[2 : 2 + _SET_BYTES], body[2 + _SET_BYTES :]


def _text(content: bytes) -> str:
    return base64.b32encode(content).decode("ascii").rstrip("=")


def _check(content: bytes) -> bytes:
    """Finds errors of writing: the start of SHA-256."""
    return hashlib.sha256(_TITLE.encode("ascii") + content).digest()[:_CHECK_BYTES]
