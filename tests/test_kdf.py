"""derive: NIST SP 800-108 in counter mode with CMAC, as OpenSSL computes it."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation, Mode
from hypothesis import given
from hypothesis import strategies as st

from tests.ciphers import CountingCipher, FailingCipher
from tokenvault.crypto.kdf import CONTEXT_BYTES_MAX, DERIVED_BYTES_MAX, LABEL_BYTES_MAX, derive
from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys import LocalBlockCipher

KEYS = st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
LABELS = st.binary(min_size=1, max_size=40).filter(lambda label: 0 not in label)
CONTEXTS = st.binary(max_size=40)
LOCAL = LocalBlockCipher(bytes(range(32)))


@given(KEYS, LABELS, CONTEXTS, st.integers(1, 100))
def test_agrees_with_kbkdf_of_cryptography_on_both_paths(
    key: bytes, label: bytes, context: bytes, length: int
) -> None:
    expected = KBKDFCMAC(
        AES, Mode.CounterMode, length, 4, 4, CounterLocation.BeforeFixed, label, context, None
    ).derive(key)
    cipher = LocalBlockCipher(key)
    assert derive(cipher, label=label, context=context, length=length) == expected
    assert derive(CountingCipher(cipher), label=label, context=context, length=length) == expected


@given(LABELS, CONTEXTS, LABELS, CONTEXTS)
def test_another_label_or_context_gives_another_key(
    label: bytes, context: bytes, other_label: bytes, other_context: bytes
) -> None:
    same = (label, context) == (other_label, other_context)
    one = derive(LOCAL, label=label, context=context, length=32)
    other = derive(LOCAL, label=other_label, context=other_context, length=32)
    assert (one == other) is same


def test_a_shorter_key_is_no_prefix_of_a_longer_one() -> None:
    short = derive(LOCAL, label=b"label", context=b"", length=16)
    assert not derive(LOCAL, label=b"label", context=b"", length=32).startswith(short)


def test_the_longest_key_derives() -> None:
    assert len(derive(LOCAL, label=b"label", context=b"", length=DERIVED_BYTES_MAX)) == DERIVED_BYTES_MAX


@pytest.mark.parametrize("label", [b"", b"a\0b", b"\0", bytes([1]) * (LABEL_BYTES_MAX + 1), "label", None, 5])
def test_refuses_labels_that_could_run_into_the_context(label: object) -> None:
    with pytest.raises(InvalidInputError):
        derive(LOCAL, label=label, context=b"", length=32)  # type: ignore[arg-type] # the wrong type is the point


@pytest.mark.parametrize("context", ["context", None, 5, bytearray(4), bytes(CONTEXT_BYTES_MAX + 1)])
def test_refuses_what_is_no_context(context: object) -> None:
    with pytest.raises(InvalidInputError):
        derive(LOCAL, label=b"label", context=context, length=32)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize("length", [0, -1, DERIVED_BYTES_MAX + 1, True, 32.0, "32", None])
def test_refuses_what_is_no_length(length: object) -> None:
    with pytest.raises(InvalidInputError):
        derive(LOCAL, label=b"label", context=b"", length=length)  # type: ignore[arg-type] # wrong on purpose


def test_refuses_what_is_no_cipher_and_passes_on_a_lost_key_store() -> None:
    with pytest.raises(InvalidInputError):
        derive(b"key", label=b"label", context=b"", length=32)  # type: ignore[arg-type] # wrong on purpose
    for answers in range(3):
        with pytest.raises(KeyStoreError):
            derive(FailingCipher(LOCAL, answers), label=b"label", context=b"", length=32)
