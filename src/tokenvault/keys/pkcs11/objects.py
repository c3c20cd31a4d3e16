"""Keys as objects of a PKCS#11 token: their labels, their attributes, how they are found and generated.

A key's label says all there is to say about it: `tokenvault/<purpose>/<version>/<custody>`, as in
`tokenvault/seal/1/module` or `tokenvault/fingerprint/12/process`. Objects with other labels belong to
others and are left alone.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

import attrs
from pkcs11 import Attribute, KeyType, MechanismFlag, Object, ObjectClass, Session

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11.errors import CollisionError, DoubtfulError, TokenMissingError
from tokenvault.keys.port import KEY_BYTES, VERSION_MAX, Custody, KeyName, KeyPurpose

OBJECTS_MAX: Final = 10_000
"""Secret keys of a token that a search reads; a token with more needs a token of its own for the vault."""

_LABEL: Final = re.compile(r"tokenvault/([a-z]+)/([1-9][0-9]{0,3})/([a-z]+)", re.ASCII)

CAPABILITIES: Final = MechanismFlag.ENCRYPT

_REQUIRED: Final[dict[Attribute, object]] = {
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

_REQUIRED_OF_GENERATED: Final[dict[Attribute, object]] = {
    **_REQUIRED,
    Attribute.LOCAL: True,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.NEVER_EXTRACTABLE: True,
}
"""What must hold besides for a key that the module has just made; a key ceremony may import others."""


@attrs.frozen
class TokenKey:
    """A key object and what its label holds."""

    name: KeyName
    custody: Custody
    object: Object = attrs.field(repr=False, eq=False)


SIGNER_LABEL: Final = "tokenvault/audit/1/signing"
"""Of both keys of the pair that signs checkpoints."""

P256: Final = bytes.fromhex("06082a8648ce3d030107")
"""CKA_EC_PARAMS: the curve's object identifier in DER (RFC 5480)."""

_REQUIRED_OF_SIGNER: Final[dict[Attribute, object]] = {
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

_REQUIRED_OF_MADE_SIGNER: Final[dict[Attribute, object]] = {
    **_REQUIRED_OF_SIGNER,
    Attribute.LOCAL: True,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.NEVER_EXTRACTABLE: True,
}


def find_signers(session: Session, kind: ObjectClass = ObjectClass.PRIVATE_KEY) -> list[Object]:
    """At most two keys with the label of the pair that signs checkpoints."""
    return list(islice(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: SIGNER_LABEL}), 2))


def find_signer(session: Session, kind: ObjectClass) -> Object | None:
    """The private or the public key of the pair that signs checkpoints."""
    found = find_signers(session, kind)
    if len(found) > 1:
        raise DoubtfulError(
            f"the token holds more than one key {SIGNER_LABEL}: remove the one that is not used"
        )
    return found[0] if found else None


def generate_signer(session: Session, identity: bytes) -> None:
    """Make the pair that signs checkpoints."""
    curve = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: P256}, local=True)
    curve.generate_keypair(
        label=SIGNER_LABEL,
        id=identity,
        store=True,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        private_template={
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            **dict.fromkeys((Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE), False),
        },
    )


def verify_signer(key: Object, *, made: bool = False) -> None:
    """Refuse a private key, found or just made, whose attributes let more be done with it than signing."""
    wrong = _differences(key, _REQUIRED_OF_MADE_SIGNER if made else _REQUIRED_OF_SIGNER)
    if wrong:
        raise DoubtfulError(
            f"the key {SIGNER_LABEL} has unsafe or unfit attributes ({', '.join(wrong)}) and is not used"
        )


def label_of(name: KeyName, custody: Custody) -> str:
    """The label of a key's object."""
    return f"tokenvault/{name.purpose.value}/{name.version}/{custody.value}"


def parse_label(label: str) -> tuple[KeyName, Custody] | None:
    """Name and custody that a label holds, or None for the label of another object."""
    match = _LABEL.fullmatch(label)
    if match is None:
        return None
    purpose, version, custody = match.groups()
    if purpose not in {each.value for each in KeyPurpose} or custody not in {each.value for each in Custody}:
        return None
    if int(version) > VERSION_MAX:
        return None
    return KeyName(KeyPurpose(purpose), int(version)), Custody(custody)


def find_all(session: Session) -> list[TokenKey]:
    """All keys of the vault that the session sees: none when logged out, so the caller checks the login."""
    found = list(islice(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}), OBJECTS_MAX + 1))
    if len(found) > OBJECTS_MAX:
        raise KeyStoreError(
            f"the token holds more than {OBJECTS_MAX} secret keys: give the vault a token of its own"
        )
    keys = []
    for each in found:
        label = _label(each)
        parsed = None if label is None else parse_label(label)
        if parsed is not None:
            keys.append(TokenKey(*parsed, each))
    return keys


def find(session: Session, name: KeyName) -> TokenKey | None:
    """The one key of a name, or None. Two are an error: nothing tells which of them sealed the records."""
    keys = []
    for custody in Custody:
        wanted = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: label_of(name, custody)}
        keys += [TokenKey(name, custody, each) for each in islice(session.get_objects(wanted), 2)]
    if len(keys) > 1:
        raise duplicate(name)
    return keys[0] if keys else None


def duplicate(name: KeyName) -> KeyStoreError:
    """The error for two keys of one name."""
    return KeyStoreError(
        f"the token holds more than one key {name}: find out with the module's own tools which one is in use "
        "and remove the other"
    )


def make(session: Session, name: KeyName, custody: Custody, identity: bytes) -> None:
    """Make a key in the token, unless there is one; `identity` is its CKA_ID, to find it by.

    Run again with the same identity, it goes on with what the first run made. Raises CollisionError when there is
    another key of this name, or another process makes one too.
    """
    before = [key for key in find_all(session) if key.name == name]
    if not find_made(session, identity):
        if before:
            raise CollisionError
        generate(session, name, custody, identity)
    made = find_made(session, identity)
    named = [key for key in find_all(session) if key.name == name]
    if len(made) != 1 or not named:
        raise TokenMissingError("the token does not show the key that it has just made: try again")
    if len(named) > 1:
        made[0].destroy()
        raise CollisionError
    _verify_made(named[0])


def generate(session: Session, name: KeyName, custody: Custody, identity: bytes) -> None:
    """Generate a key in the token, whatever is there."""
    session.generate_key(
        KeyType.AES,
        KEY_BYTES * 8,
        label=label_of(name, custody),
        id=identity,
        store=True,
        capabilities=CAPABILITIES,
        template={Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    )


def find_made(session: Session, identity: bytes) -> list[Object]:
    """The secret keys with a CKA_ID: the one that was made with it, or none."""
    wanted = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.ID: identity}
    return list(islice(session.get_objects(wanted), 2))


def _verify_made(key: TokenKey) -> None:
    wrong = _differences(key.object, _REQUIRED_OF_GENERATED)
    if wrong:
        raise TokenMissingError(
            f"the module generated a key with other attributes than asked for ({', '.join(wrong)}); it was "
            "destroyed again: this module or its policy does not fit"
        )


def verify(key: TokenKey) -> None:
    """Refuse a key whose attributes let more be done with it than encrypting."""
    wrong = _differences(key.object, _REQUIRED)
    if wrong:
        raise unfit(key.name, wrong)


def unfit(name: KeyName, wrong: list[str]) -> DoubtfulError:
    """The error for a key with wrong attributes."""
    return DoubtfulError(
        f"the key {name} has unsafe or unfit attributes ({', '.join(wrong)}) and is not used: it may "
        "have been imported, changed or planted; make a new version"
    )


def _differences(found: Object, required: dict[Attribute, object]) -> list[str]:
    return [attribute.name for attribute, value in required.items() if found[attribute] != value]


def _label(found: Object) -> str | None:
    try:
        label = found[Attribute.LABEL]
    except UnicodeDecodeError:
        return None  # of another object: labels of the vault's keys are ASCII
    return label if isinstance(label, str) else None
