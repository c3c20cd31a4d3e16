"""Cmac: the published tags, the same tags on both paths, and the promised number of calls."""

from __future__ import annotations

import copy
import pickle

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import given
from hypothesis import strategies as st

from tests.ciphers import CountingCipher, FailingCipher, ShortCipher, library_locals
from tests.threads import same_in_threads
from tokenvault.crypto.cmac import MESSAGE_BYTES_MAX, Cmac
from tokenvault.errors import IntegrityError, InvalidInputError, KeyStoreError
from tokenvault.keys import LocalBlockCipher

KEYS = st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
LOCAL = LocalBlockCipher(bytes(range(32)))

# NIST SP 800-38B examples (AES-128 also in RFC 4493): one message, cut to 0, 16, 40 and 64 bytes
MESSAGE = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
EXAMPLES = {
    "2b7e151628aed2a6abf7158809cf4f3c": {
        0: "bb1d6929e95937287fa37d129b756746",
        16: "070a16b46b4d4144f79bdd9dd04a287c",
        40: "dfa66747de9ae63030ca32611497c827",
        64: "51f0bebf7e3b9d92fc49741779363cfe",
    },
    "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b": {
        0: "d17ddf46adaacde531cac483de7a9367",
        16: "9e99a7bf31e710900662f65e617c5184",
        40: "8a1de5be2eb31aad089a82e6ee908b0e",
        64: "a1d5df0eed790f794d77589659f39a11",
    },
    "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4": {
        0: "028962f61b7bf89efc6b551f4667d983",
        16: "28a7023f452e8f82bd4bf28d8c37c35c",
        40: "aaf3d8f1de5640c232f5b169b9c911e6",
        64: "e1992190549f6ed5696a2c056c315410",
    },
}
CASES = [(key, length, tag) for key, tags in EXAMPLES.items() for length, tag in tags.items()]


@pytest.mark.parametrize(("key", "length", "tag"), CASES)
def test_gives_the_tags_of_sp_800_38b_on_both_paths(key: str, length: int, tag: str) -> None:
    cipher = LocalBlockCipher(bytes.fromhex(key))
    assert Cmac(cipher).tag(MESSAGE[:length]).hex() == tag
    assert Cmac(CountingCipher(cipher)).tag(MESSAGE[:length]).hex() == tag


@given(KEYS, st.binary(max_size=100))
def test_generic_and_local_paths_agree_with_openssl(key: bytes, message: bytes) -> None:
    openssl = CMAC(AES(key))
    openssl.update(message)
    cipher = LocalBlockCipher(key)
    assert Cmac(CountingCipher(cipher)).tag(message) == Cmac(cipher).tag(message) == openssl.finalize()


@given(st.binary(max_size=100))
def test_a_message_costs_one_call_per_block_and_the_subkeys_one_call_per_key(message: bytes) -> None:
    cipher = CountingCipher(LOCAL)
    cmac = Cmac(cipher)
    assert cipher.sizes == [1]
    cipher.reset()
    cmac.tag(message)
    assert cipher.sizes == [1] * max(1, -(-len(message) // 16))


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=16).filter(any), st.booleans())
def test_verify_takes_the_tag_and_nothing_else(message: bytes, difference: bytes, generic: bool) -> None:
    cmac = Cmac(CountingCipher(LOCAL) if generic else LOCAL)
    tag = cmac.tag(message)
    cmac.verify(message, tag)
    changed = bytes(a ^ b for a, b in zip(tag, difference.ljust(16, b"\0"), strict=True))
    for wrong in (changed, tag[:15], tag + b"\0", b""):
        with pytest.raises(IntegrityError):
            cmac.verify(message, wrong)
    with pytest.raises(IntegrityError):
        cmac.verify(message + b"\0", tag)


@pytest.mark.parametrize("cipher", [LOCAL, CountingCipher(LOCAL)])
@pytest.mark.parametrize("message", [None, "text", 1, bytearray(16), [1], bytes(MESSAGE_BYTES_MAX + 1)])
def test_refuses_what_is_no_message(cipher: LocalBlockCipher | CountingCipher, message: object) -> None:
    cmac = Cmac(cipher)
    with pytest.raises(InvalidInputError):
        cmac.tag(message)  # type: ignore[arg-type] # the wrong type is the point
    with pytest.raises(InvalidInputError):
        cmac.verify(message, bytes(16))  # type: ignore[arg-type] # the wrong type is the point
    with pytest.raises(InvalidInputError):
        cmac.verify(b"", "0" * 16)  # type: ignore[arg-type] # the wrong type is the point


@pytest.mark.parametrize("cipher", [None, 1, b"key", object()])
def test_refuses_what_is_no_cipher(cipher: object) -> None:
    with pytest.raises(InvalidInputError):
        Cmac(cipher)  # type: ignore[arg-type] # the wrong type is the point


def test_a_lost_key_store_shows_neither_message_nor_frames_that_hold_it() -> None:
    cmac = Cmac(FailingCipher(LOCAL, answers=1))
    for call in (lambda: cmac.tag(b"4111111111111111"), lambda: cmac.verify(b"4111111111111111", bytes(16))):
        with pytest.raises(KeyStoreError) as caught:
            call()
        assert "4111111111111111" not in library_locals(caught.value)


@pytest.mark.parametrize("cipher", [LOCAL, CountingCipher(LOCAL)])
def test_threads_that_share_one_object_get_the_right_tags(cipher: LocalBlockCipher | CountingCipher) -> None:
    cmac = Cmac(cipher)
    messages = [bytes(length) for length in (0, 16, 40, 3000)]
    assert same_in_threads(lambda: [cmac.tag(message) for message in messages], times=20)


def test_an_answer_of_the_wrong_length_is_a_key_store_error() -> None:
    with pytest.raises(KeyStoreError):
        Cmac(ShortCipher(LOCAL))


def test_can_be_neither_pickled_nor_copied_and_shows_no_subkey() -> None:
    cmac = Cmac(CountingCipher(LOCAL))
    assert repr(cmac) == "<Cmac>"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InvalidInputError):
            leak(cmac)
