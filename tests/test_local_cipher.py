"""LocalBlockCipher: AES in ECB, safe between threads and across a fork, and closed about its key."""

from __future__ import annotations

import copy
import os
import pickle

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ciphers import library_locals
from tests.threads import same_in_threads
from tokenvault.crypto.block_cipher import BLOCK_BYTES
from tokenvault.errors import InvalidInputError
from tokenvault.keys import LocalBlockCipher

KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")

# NIST FIPS 197 appendix C: plaintext 00112233445566778899aabbccddeeff under keys 000102...
FIPS_197 = {
    16: "69c4e0d86a7b0430d8cdb78070b4c55a",
    24: "dda97ca4864cdfe06eaf70a0ec0d7191",
    32: "8ea2b7ca516745bfeafc49904b496089",
}


@pytest.mark.parametrize("key_bytes", FIPS_197)
def test_gives_the_ciphertexts_of_fips_197(key_bytes: int) -> None:
    plaintext = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert LocalBlockCipher(bytes(range(key_bytes))).encrypt_blocks(plaintext).hex() == FIPS_197[key_bytes]


@given(st.lists(st.binary(min_size=BLOCK_BYTES, max_size=BLOCK_BYTES)))
def test_encrypting_many_blocks_is_encrypting_each(blocks: list[bytes]) -> None:
    cipher = LocalBlockCipher(KEY)
    assert cipher.encrypt_blocks(b"".join(blocks)) == b"".join(map(cipher.encrypt_blocks, blocks))


def test_no_blocks_give_no_bytes() -> None:
    assert LocalBlockCipher(KEY).encrypt_blocks(b"") == b""


@pytest.mark.parametrize(
    "blocks", [b"1", bytes(15), bytes(17), bytearray(16), memoryview(bytes(16)), "0" * 16, 16, None]
)
def test_refuses_parts_of_blocks_and_what_is_not_bytes_and_stays_usable(blocks: object) -> None:
    cipher = LocalBlockCipher(KEY)
    before = cipher.encrypt_blocks(bytes(16))
    with pytest.raises(InvalidInputError):
        cipher.encrypt_blocks(blocks)  # type: ignore[arg-type] # the wrong type is the point
    assert cipher.encrypt_blocks(bytes(16)) == before


@pytest.mark.parametrize(
    "key", [b"", bytes(15), bytes(31), bytes(33), bytes(64), bytearray(32), "k" * 32, None, 32]
)
def test_refuses_what_is_no_aes_key_without_showing_it(key: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        LocalBlockCipher(key)  # type: ignore[arg-type] # the wrong type is the point
    assert "key=" not in library_locals(caught.value)


def test_threads_that_share_one_cipher_get_the_right_blocks() -> None:
    """A context shared between threads raises "Already borrowed" within milliseconds."""
    cipher = LocalBlockCipher(KEY)
    inputs = [os.urandom(BLOCK_BYTES * blocks) for blocks in (1, 2, 64, 4096)]
    assert same_in_threads(lambda: [cipher.encrypt_blocks(blocks) for blocks in inputs])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_with_the_same_key() -> None:
    cipher = LocalBlockCipher(KEY)
    expected = cipher.encrypt_blocks(bytes(32))
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, cipher.encrypt_blocks(bytes(32)))
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        assert answer.read() == expected
    os.waitpid(child, 0)
    assert cipher.encrypt_blocks(bytes(32)) == expected


def test_shows_no_key_in_repr_vars_or_asdict() -> None:
    @attrs.frozen
    class Holder:
        cipher: LocalBlockCipher

    cipher = LocalBlockCipher(KEY)
    with pytest.raises(TypeError):
        vars(cipher)
    for shown in (repr(cipher), str(cipher), repr(attrs.asdict(Holder(cipher)))):
        assert KEY.hex() not in shown
        assert repr(KEY) not in shown
    assert repr(cipher) == "<LocalBlockCipher>"


def test_can_be_neither_pickled_nor_copied() -> None:
    cipher = LocalBlockCipher(KEY)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(InvalidInputError):
            pickle.dumps(cipher, protocol)
    with pytest.raises(InvalidInputError):
        copy.copy(cipher)
    with pytest.raises(InvalidInputError):
        copy.deepcopy(cipher)
