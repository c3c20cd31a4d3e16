"""The signing key of a module that takes over, made known to whoever trusts the key that signed before."""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tokenvault.audit.checkpoint import key_id_of
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.succession import SUCCESSIONS_MAX, name_of, parse, sign
from tokenvault.audit.verify.trusted_keys import is_signature, public_keys_of, signing_key
from tokenvault.errors import ConflictError, InvalidInputError, LifecycleError
from tokenvault.maintenance.upkeep import Upkeep


async def introduce_signer(public_key: str, at: Upkeep) -> None:
    """Sign the public key of the next signer with the key that signs now, and keep that in the store."""
    keys = public_keys_of(public_key)
    if len(keys) != 1:
        raise InvalidInputError("public_key is one public key of P-256 in PEM")
    successor = keys[0].public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signer = at.versions.ring.audit.signer
    if signer is None:
        raise LifecycleError(
            "this key store signs nothing, so no signature can introduce another key",
            code="KEY_STATE_NOT_FITTING",
        )
    former = await at.runtime.block(lambda: signer.public_key)
    if former == successor:
        return
    own = signing_key(former)
    succession = await at.runtime.block(sign, signer, successor)
    last = 0
    while last < SUCCESSIONS_MAX and (value := await at.store.get_meta(name_of(last + 1))) is not None:
        last += 1
        there = parse(value)
        if (
            there is not None
            and there.signed == succession.signed
            and is_signature(own, there.signature, there.signed)
        ):
            return
    codes = f"FORMER {key_id_of(former).hex()}", f"SUCCESSOR {key_id_of(successor).hex()}"
    await at.trail.note(
        Event(time_ms=at.clock.now_ms(), action=Action.INTRODUCE_SIGNER, outcome=Outcome.DONE, codes=codes)
    )
    value = succession.encode()
    for number in range(last + 1, SUCCESSIONS_MAX + 1):
        if await at.store.put_meta(name_of(number), value) == value:
            return
    raise ConflictError("the names of successions are taken by something else")
