"""AES-CCM: one result on both paths, three calls for a record, and no plaintext for anything changed."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ciphers import CountingCipher, FailingCipher, ShortCipher, library_locals
from tests.threads import same_in_threads
from tokenvault.crypto import ccm
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.errors import IntegrityError, InvalidInputError, KeyStoreError
from tokenvault.keys import LocalBlockCipher

KEYS = st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
NONCES = st.binary(min_size=13, max_size=13)
LOCAL = LocalBlockCipher(bytes(range(32)))
GENERIC = CountingCipher(LOCAL)
NONCE = bytes(range(13))

# RFC 3610 section 8, packet vectors 1 to 4: nonce, associated data, payload, ciphertext, 8-byte tag
RFC_3610_KEY = "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf"
RFC_3610 = [
    (
        "00000003020100a0a1a2a3a4a5",
        bytes(range(8)),
        bytes(range(0x08, 0x1F)),
        "588c979a61c663d2f066d0c2c0f989806d5f6b61dac384",
        "17e8d12cfdf926e0",
    ),
    (
        "00000004030201a0a1a2a3a4a5",
        bytes(range(8)),
        bytes(range(0x08, 0x20)),
        "72c91a36e135f8cf291ca894085c87e3cc15c439c9e43a3b",
        "a091d56e10400916",
    ),
    (
        "00000005040302a0a1a2a3a4a5",
        bytes(range(8)),
        bytes(range(0x08, 0x21)),
        "51b1e5f44a197d1da46b0f8e2d282ae871e838bb64da859657",
        "4adaa76fbd9fb0c5",
    ),
    (
        "00000006050403a0a1a2a3a4a5",
        bytes(range(12)),
        bytes(range(0x0C, 0x1F)),
        "a28c6865939a9a79faaa5c4c2a9d4a91cdac8c",
        "96c861b9c9e61ef1",
    ),
]


def reference(cipher: BlockCipher, nonce: bytes, payload: bytes, associated: bytes, tag_bytes: int) -> bytes:
    """RFC 3610 section 2, block after block, for a 13-byte nonce and any tag length."""

    def add(left: bytes, right: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(left, right, strict=False))

    flags = 64 * bool(associated) + 8 * ((tag_bytes - 2) // 2) + 1
    blocks = [bytes([flags, *nonce, *len(payload).to_bytes(2, "big")])]
    for part in (len(associated).to_bytes(2, "big") + associated if associated else b"", payload):
        blocks += [part[i : i + 16].ljust(16, b"\0") for i in range(0, len(part), 16)]
    mac = bytes(16)
    for block in blocks:
        mac = cipher.encrypt_blocks(add(mac, block))
    key_blocks = [
        cipher.encrypt_blocks(bytes([1, *nonce, *i.to_bytes(2, "big")]))
        for i in range(2 + len(payload) // 16)
    ]
    return add(payload, b"".join(key_blocks[1:])) + add(mac, key_blocks[0])[:tag_bytes]


@pytest.mark.parametrize(("nonce", "associated", "payload", "ciphertext", "tag"), RFC_3610)
def test_the_reference_gives_the_packets_of_rfc_3610_and_encrypt_their_ciphertext(
    nonce: str, associated: bytes, payload: bytes, ciphertext: str, tag: str
) -> None:
    """Packets have 8-byte tags: they check the reference whole, and of `encrypt` the ciphertext."""
    cipher = LocalBlockCipher(bytes.fromhex(RFC_3610_KEY))
    assert reference(cipher, bytes.fromhex(nonce), payload, associated, 8).hex() == ciphertext + tag
    for each in (cipher, CountingCipher(cipher)):
        sealed = ccm.encrypt(each, bytes.fromhex(nonce), payload, associated)
        assert sealed[:-16].hex() == ciphertext


@given(KEYS, NONCES, st.binary(max_size=70), st.binary(max_size=70))
def test_both_paths_agree_with_the_reference_and_with_openssl_both_ways(
    key: bytes, nonce: bytes, plaintext: bytes, associated: bytes
) -> None:
    local = LocalBlockCipher(key)
    generic = CountingCipher(local)
    sealed = ccm.encrypt(local, nonce, plaintext, associated)
    assert sealed == ccm.encrypt(generic, nonce, plaintext, associated)
    assert sealed == reference(local, nonce, plaintext, associated, 16)
    assert sealed == AESCCM(key, tag_length=16).encrypt(nonce, plaintext, associated)
    assert ccm.decrypt(local, nonce, sealed, associated) == plaintext
    assert ccm.decrypt(generic, nonce, sealed, associated) == plaintext


def test_a_record_costs_three_calls_in_either_direction() -> None:
    cipher = CountingCipher(LOCAL)
    sealed = ccm.encrypt(cipher, NONCE, bytes(16), bytes(14))
    assert cipher.sizes == [3, 1, 1]
    cipher.reset()
    ccm.decrypt(cipher, NONCE, sealed, bytes(14))
    assert cipher.sizes == [3, 1, 1]


@pytest.mark.parametrize("cipher", [LOCAL, GENERIC])
@given(plaintext=st.binary(max_size=40), associated=st.binary(max_size=40), mask=st.integers(1, 255))
@settings(max_examples=20)
def test_changing_any_byte_of_nonce_data_ciphertext_or_tag_is_refused(
    cipher: BlockCipher, plaintext: bytes, associated: bytes, mask: int
) -> None:
    genuine = [NONCE, ccm.encrypt(cipher, NONCE, plaintext, associated), associated]
    for which, part in enumerate(genuine):
        for i in range(len(part)):
            nonce, sealed, data = (
                part[:i] + bytes([part[i] ^ mask]) + part[i + 1 :] if which == each else genuine[each]
                for each in range(3)
            )
            with pytest.raises(IntegrityError):
                ccm.decrypt(cipher, nonce, sealed, data)


@pytest.mark.parametrize("cipher", [LOCAL, GENERIC])
def test_refuses_what_encrypt_never_made(cipher: BlockCipher) -> None:
    """Cut, padded, shifted between the parts, under another key, or with a tag that is all zeros or ones."""
    plaintext, associated = b"0123456789abcdef", b"associated"
    sealed = ccm.encrypt(cipher, NONCE, plaintext, associated)
    cases = [
        *((NONCE, sealed[:length], associated) for length in range(len(sealed))),
        (NONCE, sealed + b"\0", associated),
        (NONCE, b"\0" + sealed, associated),
        (NONCE, sealed[1:], associated + sealed[:1]),
        (NONCE, associated[-1:] + sealed, associated[:-1]),
        (NONCE, sealed[:-16] + bytes(16), associated),
        (NONCE, sealed[:-16] + b"\xff" * 16, associated),
        (NONCE, sealed[:-16] + sealed[-16:][::-1], associated),
        (NONCE, sealed[-16:] + sealed[:-16], associated),
        (NONCE, sealed, b""),
        (NONCE, sealed, associated + b"\0"),  # what padding would hide
        (NONCE, plaintext + sealed[-16:], associated),
        (NONCE[:-1], sealed, associated),
        (NONCE + b"\0", sealed, associated),
        (b"", sealed, associated),
        (NONCE[::-1], sealed, associated),
        (NONCE, bytes(ccm.PLAINTEXT_BYTES_MAX + 17), associated),
    ]
    for nonce, ciphertext, data in cases:
        with pytest.raises(IntegrityError):
            ccm.decrypt(cipher, nonce, ciphertext, data)
    with pytest.raises(IntegrityError):
        ccm.decrypt(LocalBlockCipher(bytes(32)), NONCE, sealed, associated)


def test_the_largest_message_is_the_same_on_both_paths() -> None:
    plaintext, associated = bytes(ccm.PLAINTEXT_BYTES_MAX), bytes(ccm.ASSOCIATED_BYTES_MAX)
    sealed = ccm.encrypt(LOCAL, NONCE, plaintext, associated)
    assert sealed == ccm.encrypt(GENERIC, NONCE, plaintext, associated)
    assert ccm.decrypt(GENERIC, NONCE, sealed, associated) == plaintext


@pytest.mark.parametrize("cipher", [LOCAL, GENERIC])
@pytest.mark.parametrize(
    "wrong", [None, "text" * 4, 13, bytearray(13), list(range(13)), 1.5, memoryview(NONCE)]
)
def test_refuses_arguments_that_are_not_bytes(cipher: BlockCipher, wrong: object) -> None:
    for at in range(3):
        arguments: list[object] = [NONCE, bytes(32), b""]
        arguments[at] = wrong
        for function in (ccm.encrypt, ccm.decrypt):
            with pytest.raises(InvalidInputError):
                function(cipher, *arguments)  # type: ignore[arg-type] # the wrong type is the point


@pytest.mark.parametrize("cipher", [LOCAL, GENERIC])
def test_refuses_lengths_outside_the_limits(cipher: BlockCipher) -> None:
    for nonce in (b"", bytes(12), bytes(14)):
        with pytest.raises(InvalidInputError):
            ccm.encrypt(cipher, nonce, b"", b"")
    with pytest.raises(InvalidInputError):
        ccm.encrypt(cipher, NONCE, bytes(ccm.PLAINTEXT_BYTES_MAX + 1), b"")
    for function in (ccm.encrypt, ccm.decrypt):
        with pytest.raises(InvalidInputError):
            function(cipher, NONCE, bytes(16), bytes(ccm.ASSOCIATED_BYTES_MAX + 1))


@pytest.mark.parametrize("cipher", [None, b"key", object()])
def test_refuses_what_is_no_cipher(cipher: object) -> None:
    for function in (ccm.encrypt, ccm.decrypt):
        with pytest.raises(InvalidInputError):
            function(cipher, NONCE, bytes(16), b"")  # type: ignore[arg-type] # the wrong type is the point


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_errors_and_their_frames_hold_no_plaintext(answers: int) -> None:
    plaintext = b"4111111111111111"
    sealed = ccm.encrypt(LOCAL, NONCE, plaintext, bytes(14))
    failing = FailingCipher(LOCAL, answers)
    with pytest.raises(KeyStoreError) as lost:
        ccm.encrypt(failing, NONCE, plaintext, bytes(14))
    assert plaintext.decode() not in library_locals(lost.value)
    with pytest.raises(KeyStoreError) as lost:
        ccm.decrypt(FailingCipher(LOCAL, answers), NONCE, sealed, bytes(14))
    assert plaintext.decode() not in library_locals(lost.value)
    for cipher in (LOCAL, GENERIC):
        with pytest.raises(IntegrityError) as refused:
            ccm.decrypt(cipher, NONCE, sealed, bytes(13))
        assert plaintext.decode() not in library_locals(refused.value)


@pytest.mark.parametrize("cipher", [LOCAL, GENERIC])
def test_threads_that_share_one_cipher_seal_and_open_rightly(cipher: BlockCipher) -> None:
    def work() -> list[bytes]:
        sealed = [ccm.encrypt(cipher, NONCE, bytes(length), b"associated") for length in (0, 16, 3000)]
        return sealed + [ccm.decrypt(cipher, NONCE, each, b"associated") for each in sealed]

    assert same_in_threads(work, times=10)


def test_an_answer_of_the_wrong_length_lets_no_plaintext_through() -> None:
    with pytest.raises(KeyStoreError):
        ccm.encrypt(ShortCipher(LOCAL), NONCE, bytes(16), b"")
