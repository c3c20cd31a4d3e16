"""Keys as objects of a PKCS#11 token: their labels, their attributes, how they are found and generated.

A key's label says all there is to say about it: `tokenvault/<purpose>/<version>/<custody>`, as in
`tokenvault/seal/1/module` or `tokenvault/fingerprint/12/process`. Where a version was destroyed stands a key without
use, `tokenvault/seal/1/destroyed`. Objects with other labels are not ours: nothing is asked about them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

import attrs

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11.constants import Attribute, KeyType, ObjectClass
from tokenvault.keys.pkcs11.cryptoki import Session, Template, Value
from tokenvault.keys.pkcs11.errors import DoubtfulError, UnfitModuleError
from tokenvault.keys.port import KEY_BYTES, VERSION_MAX, Custody, KeyName, KeyPurpose
from tokenvault.keys.secrets import Secret

IDENTITY_BYTES: Final = 16
"""Of the CKA_ID of each object, random."""

GAP_MAX: Final = 1
"""Versions in a row that may be absent without a mark, as after a deletion with other tools, before a newer one."""

CAPABILITIES: Final = (Attribute.ENCRYPT,)
_USES: Final = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)

_REQUIRED: Final[dict[Attribute, Value]] = {
    Attribute.CLASS: ObjectClass.SECRET_KEY,
    Attribute.KEY_TYPE: KeyType.AES,
    Attribute.VALUE_LEN: KEY_BYTES,
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.ENCRYPT: True,
    Attribute.DECRYPT: False,
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
    Attribute.WRAP: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
"""What must hold for every key, generated or found."""

_SECRECY: Final = (
    {Attribute.SENSITIVE: True, Attribute.ALWAYS_SENSITIVE: True},
    {Attribute.EXTRACTABLE: False, Attribute.NEVER_EXTRACTABLE: True},
)
"""Of each line, the module must tell one, and truly: that it never shows the key, and never hands it out wrapped.

Modules do not tell every attribute. One that they do not tell is not held against a key, but for these. CKA_LOCAL is
not asked for: NSS says false of keys that it made itself.
"""


@attrs.frozen
class TokenKey:
    """A key object and what its label holds."""

    name: KeyName
    custody: Custody
    handle: int = attrs.field(repr=False, eq=False)


SIGNER_LABEL: Final = "tokenvault/audit/1/signing"
"""Of both keys of the pair that signs checkpoints."""

P256: Final = bytes.fromhex("06082a8648ce3d030107")
"""CKA_EC_PARAMS: the curve's object identifier in DER (RFC 5480)."""

_REQUIRED_OF_SIGNER: Final[dict[Attribute, Value]] = {
    Attribute.CLASS: ObjectClass.PRIVATE_KEY,
    Attribute.KEY_TYPE: KeyType.EC,
    Attribute.EC_PARAMS: P256,
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}


def find_signers(session: Session, kind: ObjectClass = ObjectClass.PRIVATE_KEY) -> list[int]:
    """At most two keys with the label of the pair that signs checkpoints."""
    return _search(session, {Attribute.CLASS: kind, Attribute.LABEL: SIGNER_LABEL})


def find_signer(session: Session, kind: ObjectClass) -> int | None:
    """The private or the public key of the pair that signs checkpoints."""
    found = find_signers(session, kind)
    if len(found) > 1:
        raise DoubtfulError(
            f"the token holds more than one key {SIGNER_LABEL}: remove the one that is not used",
            code="KEY_STORE_KEY_DUPLICATE",
        )
    return found[0] if found else None


def generate_signer(session: Session, identity: bytes) -> None:
    """Make the pair that signs checkpoints."""
    both: Template = {Attribute.TOKEN: True, Attribute.LABEL: SIGNER_LABEL, Attribute.ID: identity}
    session.generate_pair(
        {
            Attribute.CLASS: ObjectClass.PUBLIC_KEY,
            **both,
            Attribute.VERIFY: True,
            Attribute.EC_PARAMS: P256,
        },
        {
            Attribute.CLASS: ObjectClass.PRIVATE_KEY,
            **both,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.SIGN: True,
            **dict.fromkeys((Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE), False),
        },
    )


def verify_signer(session: Session, key: int) -> None:
    """Refuse a private key, found or just made, whose attributes let more be done with it than signing."""
    wrong = _differences(session, key, _REQUIRED_OF_SIGNER)
    if wrong:
        raise DoubtfulError(
            f"the key {SIGNER_LABEL} has unsafe or unfit attributes ({', '.join(wrong)}) and is not used",
            code="KEY_STORE_KEY_UNFIT",
        )


def destroyed_label(name: KeyName) -> str:
    """The label of the object that a destroyed version leaves."""
    return f"tokenvault/{name.purpose.value}/{name.version}/destroyed"


def label_of(name: KeyName, custody: Custody) -> str:
    """The label of a key's object."""
    return f"tokenvault/{name.purpose.value}/{name.version}/{custody.value}"


def find_versions(session: Session, purpose: KeyPurpose) -> tuple[list[int], int]:
    """The versions of a purpose that the session sees, and the newest that was ever made here.

    None when logged out, so the caller must know that it is not. Versions are looked for by their labels, one after
    the other, so that nothing is asked about any other object of the token.
    """
    found: list[int] = []
    newest = absent = 0
    for version in range(1, VERSION_MAX + 1):
        name = KeyName(purpose, version)
        keys = find_named(session, name)
        found += [version] * len(keys)
        if keys or _search(session, _template(destroyed_label(name))):
            newest, absent = version, 0
        else:
            absent += 1
            if absent > GAP_MAX:
                break
    return found, newest


def find_named(session: Session, name: KeyName) -> list[TokenKey]:
    """The keys of a name: at most two of each custody."""
    return [
        TokenKey(name, custody, each)
        for custody in Custody
        for each in _search(session, _template(label_of(name, custody)))
    ]


def find(session: Session, name: KeyName) -> TokenKey | None:
    """The one key of a name, or None. Two are an error: nothing tells which of them sealed the records."""
    keys = find_named(session, name)
    if len(keys) > 1:
        raise duplicate(name)
    return keys[0] if keys else None


def _template(label: str) -> dict[Attribute, Value]:
    return {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: label}


def _search(session: Session, template: Template) -> list[int]:
    """At most two objects that fit a template."""
    return session.find(template, 2)


def own_objects(session: Session) -> list[int]:
    """Every object of a vault that the token holds: keys, marks of destroyed ones, the pair that signs."""
    found = [*find_signers(session), *find_signers(session, ObjectClass.PUBLIC_KEY)]
    for purpose in KeyPurpose:
        for version in range(1, find_versions(session, purpose)[1] + 1):
            name = KeyName(purpose, version)
            found += [key.handle for key in find_named(session, name)]
            found += _search(session, _template(destroyed_label(name)))
    return found


def duplicate(name: KeyName) -> KeyStoreError:
    """The error for two keys of one name."""
    return KeyStoreError(
        f"the token holds more than one key {name}: find out with the module's own tools which one is in use "
        "and remove the other",
        code="KEY_STORE_KEY_DUPLICATE",
    )


def generate(session: Session, name: KeyName, custody: Custody, identity: bytes) -> None:
    """Make a key in the token; `identity` is its CKA_ID, to find it by."""
    _generate(session, label_of(name, custody), identity)


def mark_destroyed(session: Session, name: KeyName) -> None:
    """Leave a mark in the token that a version existed, unless there is one: another key, of another label.

    So the token keeps a memory of it: no new key takes its number, and newer ones are found behind it.
    """
    if not _search(session, _template(destroyed_label(name))):
        _generate(session, destroyed_label(name), secrets.token_bytes(IDENTITY_BYTES))


def bring_in(session: Session, name: KeyName, custody: Custody, identity: bytes, key: Secret) -> None:
    """Make an object of a key from outside, with the attributes of one that is made in the token.

    Older versions that are not here count as destroyed from then on: they stay behind in the module before.
    """
    for version in range(1, name.version):
        older = KeyName(name.purpose, version)
        if not find_named(session, older):
            mark_destroyed(session, older)
    session.create_object(
        {
            Attribute.KEY_TYPE: KeyType.AES,
            **_attributes(label_of(name, custody), identity),
            Attribute.VALUE: bytes.fromhex(key.reveal()),
        }
    )


def _generate(session: Session, label: str, identity: bytes) -> None:
    session.generate_key({**_attributes(label, identity), Attribute.VALUE_LEN: KEY_BYTES})


def _attributes(label: str, identity: bytes) -> Template:
    return {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.TOKEN: True,
        Attribute.LABEL: label,
        Attribute.ID: identity,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        **{use: use in CAPABILITIES for use in _USES},
    }


def find_made(session: Session, identity: bytes) -> list[int]:
    """The objects with a CKA_ID: the one that was made with it, or none."""
    return _search(session, {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.ID: identity})


def verify_made(session: Session, key: TokenKey) -> None:
    """Refuse a key just made whose attributes are others than asked for."""
    wrong = _differences(session, key.handle, _REQUIRED)
    if wrong:
        raise UnfitModuleError(
            f"the module generated a key with other attributes than asked for ({', '.join(wrong)}); it was "
            "destroyed again: this module or its policy does not fit"
        )


def verify(session: Session, key: TokenKey) -> None:
    """Refuse a key whose attributes let more be done with it than encrypting."""
    wrong = _differences(session, key.handle, _REQUIRED)
    if wrong:
        raise unfit(key.name, wrong)


def unfit(name: KeyName, wrong: list[str]) -> DoubtfulError:
    """The error for a key with wrong attributes."""
    return DoubtfulError(
        f"the key {name} has unsafe or unfit attributes ({', '.join(wrong)}) and is not used: it may "
        "have been imported, changed or planted; make a new version",
        code="KEY_STORE_KEY_UNFIT",
    )


def _differences(session: Session, handle: int, required: Mapping[Attribute, Value]) -> list[str]:
    """The names of required attributes that the module tells otherwise, or has to tell and does not."""
    wanted = sorted({*required, *(attribute for line in _SECRECY for attribute in line)})
    told = session.attributes(handle, wanted)
    wrong = [each.name for each, value in required.items() if each in told and told[each] != value]
    for line in _SECRECY:
        if not any(told.get(each) == value for each, value in line.items()):
            wrong += [each.name for each in line if each.name not in wrong][:1]
    return wrong
