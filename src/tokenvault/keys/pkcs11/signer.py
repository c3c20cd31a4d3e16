"""The key pair of a PKCS#11 token that signs checkpoints: ECDSA P-256, one pair a token.

Asked of the module are CKM_EC_KEY_PAIR_GEN and CKM_ECDSA; the hash is made here, so that no module need know it. A
module without the two is one without a signer.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from functools import partial
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11 import objects
from tokenvault.keys.pkcs11.constants import Attribute, Code, Mechanism, ObjectClass
from tokenvault.keys.pkcs11.cryptoki import CallError, Session, Template
from tokenvault.keys.pkcs11.errors import (
    PIN_CODES,
    SESSION_LOST,
    CollisionError,
    DoubtfulError,
    TokenMissingError,
)
from tokenvault.keys.pkcs11.sessions import State, TokenSessions

_log: Final = logging.getLogger(__name__)

NEEDED: Final = (Mechanism.EC_KEY_PAIR_GEN, Mechanism.ECDSA)
FUNCTIONS_NEEDED: Final = ("C_GetMechanismList", "C_GenerateKeyPair", "C_SignInit", "C_Sign")
SIGNATURE_BYTES: Final = 64
_POINT_BYTES: Final = 65  # uncompressed: 04, x, y (SEC 1 section 2.3.3)


class ModuleSigner:
    """Signs in the module; see `tokenvault.keys.port.Signer`."""

    def __init__(self, sessions: TokenSessions, public: ec.EllipticCurvePublicKey) -> None:
        self._sessions: Final = sessions
        self._public: Final = public
        self.public_key: Final = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, message: bytes) -> bytes:
        """The signature of a message. Raises KeyStoreError."""
        digest = hashlib.sha256(message).digest()

        def sign(session: Session) -> bytes:
            key = objects.find_signer(session, ObjectClass.PRIVATE_KEY)
            if key is None:
                raise DoubtfulError(
                    f"the token has no key {objects.SIGNER_LABEL} that signs", code="KEY_STORE_KEY_MISSING"
                )
            objects.verify_signer(session, key)
            return session.sign(key, Mechanism.ECDSA, digest)

        signature = self._sessions.run(lambda state: self._sessions.in_session(state, sign))
        r, s = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
        valid = len(signature) == SIGNATURE_BYTES
        try:  # the private key of another pair, or a module that is wrong, would be noticed by auditors only
            self._public.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(SHA256())))
        except InvalidSignature:
            valid = False
        if not valid:
            raise KeyStoreError(
                f"the module's signature does not fit the public key {objects.SIGNER_LABEL}",
                code="KEY_STORE_KEY_UNFIT",
            )
        return signature


def find_signer(sessions: TokenSessions) -> ModuleSigner | None:
    """The pair that the token holds."""

    def look(state: State) -> bytes | None:
        point = sessions.in_session(state, _point)
        if point is None:
            sessions.check(state)  # or the private key was not found because its user is logged out
        return point

    point = sessions.run(look)
    if point is None:
        return None
    try:
        # CKA_EC_POINT is the point in a DER octet string; some modules leave that out.
        return ModuleSigner(
            sessions, ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point[-_POINT_BYTES:])
        )
    except ValueError:
        pass
    raise KeyStoreError(
        f"the public key {objects.SIGNER_LABEL} is no point of P-256: remove it", code="KEY_STORE_KEY_UNFIT"
    )


def create_signer(sessions: TokenSessions) -> ModuleSigner | None:
    """Make the pair unless there is one; None where the module can not, or refuses: the reason is logged.

    Raises CollisionError where another process makes one too: ours is then destroyed again.
    """
    there = sessions.run(lambda state: sessions.in_session(state, objects.find_signers))
    if len(there) == 1 or not sessions.run(_offered):
        return find_signer(sessions)
    identity = secrets.token_bytes(objects.IDENTITY_BYTES)
    refusal = sessions.run(lambda state: sessions.write(state, partial(_create, sessions, state, identity)))
    if refusal:
        _log.warning("no key pair to sign checkpoints with, they stay unsigned: %s", refusal)
        return None
    # Once more: another process may have made one at the same moment, and not have seen ours.
    sessions.run(lambda state: sessions.write(state, partial(_withdraw_twin, sessions, state, identity)))
    found = find_signer(sessions)
    if found is None:
        raise CollisionError  # the other one was withdrawn
    return found


def _offered(state: State) -> bool:
    """Whether the token's module says that it can make the pair and sign with it."""
    login = state.login
    cryptoki = state.module.library.cryptoki()
    if login is None or not cryptoki.has(*FUNCTIONS_NEEDED):
        return False
    try:
        return cryptoki.mechanisms(login.token.slot_id).issuperset(NEEDED)
    except CallError as error:
        if error.code == Code.FUNCTION_NOT_SUPPORTED:
            return False
        raise


def _create(sessions: TokenSessions, state: State, identity: bytes, session: Session) -> str:
    """Make the pair; the reason where the module refuses to, or made another than asked for.

    What is a matter of the PIN, or of a lost session, is raised: others can cure it.
    """
    made: Template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: identity}
    if not session.find(made, 1):  # or an earlier attempt was cut short after it
        there = objects.find_signers(session)
        if len(there) > 1:
            raise CollisionError
        if there:
            return ""  # another process came first
        try:
            objects.generate_signer(session, identity)
        except CallError as error:
            if error.code in SESSION_LOST or error.code in PIN_CODES:
                raise
            sessions.check(state)  # or it is the token that is away
            return str(error)
        state.module.settle()
    keys = objects.find_signers(session)
    if not keys:
        raise TokenMissingError("the token does not show the key pair that it has just made: try again")
    _withdraw_twin(sessions, state, identity, session)
    try:
        objects.verify_signer(session, keys[0])
    except DoubtfulError as error:
        _destroy(session, identity)
        return str(error)
    return ""


def _withdraw_twin(sessions: TokenSessions, state: State, identity: bytes, session: Session) -> None:
    """Destroy the pair of an identity, if there is another one; raise CollisionError where there are two."""
    there = objects.find_signers(session)
    if not there:
        sessions.check(state)  # or they were not found because their user is logged out
    if len(there) > 1:
        _destroy(session, identity)
        raise CollisionError


def _destroy(session: Session, identity: bytes) -> None:
    for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
        for key in session.find({Attribute.CLASS: kind, Attribute.ID: identity}, 2):
            session.destroy(key)


def _point(session: Session) -> bytes | None:
    public = objects.find_signer(session, ObjectClass.PUBLIC_KEY)
    private = objects.find_signer(session, ObjectClass.PRIVATE_KEY)
    if public is None or private is None:
        return None
    point = session.attributes(public, [Attribute.EC_POINT]).get(Attribute.EC_POINT)
    return point if isinstance(point, bytes) else b""
