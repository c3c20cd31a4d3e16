"""FF1 of columns: the scalar results bit for bit, few calls, and nothing but InvalidInputError outside the limits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tokenvault as tv
from tests.ciphers import CountingCipher, FailingCipher, ShortCipher, library_locals
from tests.test_ff1 import ANYTHING, vectors
from tokenvault.crypto import block_columns as _block_columns
from tokenvault.crypto import ff1
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.keys import LocalBlockCipher
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore

LOCAL = LocalBlockCipher(bytes(range(32)))
CHUNK = _block_columns.CHUNK_BLOCKS_LOCAL
Words = npt.NDArray[np.uint64]


def column(*values: int) -> Words:
    return np.array(values, np.uint64)


def scalar(values: Words, length: int, tweaks: list[bytes], *, encrypts: bool = True) -> list[int]:
    function = ff1.encrypt_digits if encrypts else ff1.decrypt_digits
    digits = [f"{value:0{length}}" for value in values.tolist()]
    return [int(function(LOCAL, text, tweak=tweak)) for text, tweak in zip(digits, tweaks, strict=True)]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Words, int, list[bytes]]:
    """Values, their length and a tweak a row; small and large values are drawn often."""
    length = draw(st.integers(6, 19))
    largest = 10**length - 1
    value = st.one_of(st.sampled_from([0, 1, largest, 10 ** (length // 2)]), st.integers(0, largest))
    values = draw(st.lists(value, max_size=20))
    tweak_bytes = draw(st.one_of(st.integers(0, 13), st.integers(0, 60)))
    tweak = st.binary(min_size=tweak_bytes, max_size=tweak_bytes)
    tweaks = draw(st.lists(tweak, min_size=len(values), max_size=len(values)))
    return column(*values), length, tweaks


@given(batches(), st.booleans(), st.sampled_from([1, 2, 3, 7, CHUNK]), st.integers(1, 3))
@example((column(10**19 - 1, 0, 1), 19, [b"x" * 11] * 3), False, 2, 1)
@example((column(10**16 - 1, 0, 1), 16, [b"x" * 28] * 3), True, 2, 1)
@example((column(10**16 - 1, 0, 1, 2, 3), 16, [bytes([n]) * 28 for n in range(5)]), True, 1, 3)
def test_gives_the_scalar_results_for_every_length_tweak_and_number_of_rows(
    batch: tuple[Words, int, list[bytes]], generic: bool, chunk: int, parts: int
) -> None:
    values, length, tweaks = batch
    cipher = CountingCipher(LOCAL) if generic else LOCAL
    array = np.frombuffer(b"".join(tweaks), np.uint8).reshape(len(tweaks), len(tweaks[0]) if tweaks else 0)
    with patch.multiple(_block_columns, CHUNK_BLOCKS_LOCAL=chunk, CHUNK_BLOCKS_MODULE_IN_PARTS=parts * chunk):
        encrypted = ff1.encrypt_many(cipher, values, length=length, tweaks=tweaks)
        assert encrypted.dtype == np.uint64
        assert encrypted.tolist() == scalar(values, length, tweaks)
        assert ff1.encrypt_many(cipher, values, length=length, tweaks=array).tolist() == encrypted.tolist()
        assert ff1.decrypt_many(cipher, encrypted, length=length, tweaks=array).tolist() == values.tolist()
        assert ff1.decrypt_many(cipher, values, length=length, tweaks=tweaks).tolist() == scalar(
            values, length, tweaks, encrypts=False
        )
        for tweak in tweaks[:1]:
            common = [tweak] * len(values)
            assert ff1.encrypt_many(cipher, values, length=length, tweaks=tweak).tolist() == scalar(
                values, length, common
            )
            assert ff1.decrypt_many(cipher, values, length=length, tweaks=tweak).tolist() == scalar(
                values, length, common, encrypts=False
            )


@pytest.mark.parametrize("vector", [vector for vector in vectors() if vector["radix"] == 10], ids=str)
def test_gives_the_published_results_of_radix_10_both_ways(vector: dict[str, str]) -> None:
    cipher, tweak = LocalBlockCipher(bytes.fromhex(vector["key"])), bytes.fromhex(vector["tweak"])
    if len(vector["pt_str"]) > 19:
        pytest.skip("longer than a number of a column")
    plain, secret, length = int(vector["pt_str"]), int(vector["ct_str"]), len(vector["pt_str"])
    assert ff1.encrypt_many(cipher, column(plain), length=length, tweaks=tweak).tolist() == [secret]
    assert ff1.decrypt_many(cipher, column(secret), length=length, tweaks=[tweak]).tolist() == [plain]


@pytest.mark.parametrize("rows", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
def test_rows_at_the_edges_of_chunks_are_like_all_others(rows: int) -> None:
    rng = np.random.default_rng(rows)
    values = rng.integers(0, 10**16, rows, np.uint64)
    tweaks = rng.integers(0, 256, (rows, 11), np.uint8)
    encrypted = ff1.encrypt_many(LOCAL, values, length=16, tweaks=tweaks)
    assert (ff1.decrypt_many(LOCAL, encrypted, length=16, tweaks=tweaks) == values).all()
    edges = [row for row in (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, rows - 1) if row < rows]
    assert encrypted[edges].tolist() == scalar(values[edges], 16, [tweaks[row].tobytes() for row in edges])


@pytest.mark.parametrize(
    ("length", "tweak_bytes", "calls"),
    [(16, 0, 11), (16, 11, 11), (16, 12, 12), (16, 27, 12), (19, 10, 11), (19, 11, 12), (6, 13, 11)],
)
def test_a_batch_of_any_size_costs_as_many_calls_as_one_row(
    length: int, tweak_bytes: int, calls: int
) -> None:
    for rows in (1, 2, 20_000):
        for tweaks in (bytes(tweak_bytes), np.zeros((rows, tweak_bytes), np.uint8)):
            for function in (ff1.encrypt_many, ff1.decrypt_many):
                cipher = CountingCipher(LOCAL)
                function(cipher, np.zeros(rows, np.uint64), length=length, tweaks=tweaks)
                assert cipher.calls == calls
                assert cipher.sizes[-10:] == [rows] * 10


def test_no_call_carries_more_than_a_chunk_and_what_no_row_changes_goes_out_once() -> None:
    cipher = CountingCipher(LOCAL)
    most = _block_columns.CHUNK_BLOCKS_MODULE_IN_PARTS
    ff1.encrypt_many(cipher, np.zeros(most + 1, np.uint64), length=16)
    assert cipher.sizes == [1, *[most] * 10, *[1] * 10]


def test_no_rows_need_no_key() -> None:
    each: list[bytes | list[bytes] | npt.NDArray[np.uint8]] = [b"", [], np.zeros((0, 9), np.uint8)]
    for tweaks in each:
        cipher = FailingCipher(LOCAL, 0)
        assert ff1.encrypt_many(cipher, column(), length=16, tweaks=tweaks).tolist() == []


def test_keys_in_softhsm_give_the_same_in_at_most_twelve_operations(softhsm_uri: str) -> None:
    with Pkcs11KeyStore(softhsm_uri) as keys:
        name = keys.create(tv.KeyPurpose.FPE, tv.Custody.IN_MODULE)
        cipher = keys.cipher(name)
        for rows in (1, 1_000, 131_073, 2**20):
            values = np.random.default_rng(1).integers(0, 10**16, rows, np.uint64)
            before = keys.operations
            encrypted = ff1.encrypt_many(cipher, values, length=16, tweaks=b"eleven-byte")
            assert keys.operations - before <= 12
            before = keys.operations
            assert (ff1.decrypt_many(cipher, encrypted, length=16, tweaks=b"eleven-byte") == values).all()
            assert keys.operations - before <= 12
            for row in {0, 4_095, 131_072, 2**20 - 1} & set(range(rows)):
                digits = ff1.encrypt_digits(cipher, f"{values[row]:016}", tweak=b"eleven-byte")
                assert int(digits) == encrypted[row]


def test_arguments_are_not_changed_and_may_be_views() -> None:
    values = np.arange(100, dtype=np.uint64)
    tweaks = np.arange(100 * 16, dtype=np.uint64).astype(np.uint8).reshape(100, 16)
    before = values.copy(), tweaks.copy()
    values.flags.writeable = tweaks.flags.writeable = False
    encrypted = ff1.encrypt_many(LOCAL, values[::-2], length=9, tweaks=tweaks[::-2, ::-3])
    same = ff1.encrypt_many(LOCAL, values[::-2].copy(), length=9, tweaks=tweaks[::-2, ::-3].copy())
    assert encrypted.tolist() == same.tolist()
    assert (values == before[0]).all()
    assert (tweaks == before[1]).all()


SIX = column(1, 2, 3, 4, 5, 6)
WRONG: list[tuple[dict[str, object], str]] = [
    ({"values": SIX.astype(np.int64)}, "uint64"),
    ({"values": SIX.astype(">u8")}, "uint64") if np.little_endian else ({"values": None}, "uint64"),
    ({"values": SIX.astype(float)}, "uint64"),
    ({"values": SIX.astype(object)}, "uint64"),
    ({"values": SIX.reshape(2, 3)}, "uint64"),
    ({"values": np.uint64(5)}, "uint64"),
    ({"values": np.array(5, np.uint64)}, "uint64"),
    ({"values": SIX.tolist()}, "uint64"),
    ({"values": np.ma.masked_array(SIX, SIX > 3)}, "uint64"),
    ({"values": column(1, 10**9, 3, 4, 5, 6)}, "below"),
    ({"values": column(1, 2**64 - 1, 3, 4, 5, 6)}, "below"),
    ({"length": 5}, "length"),
    ({"length": 20}, "length"),
    ({"length": 9.0}, "length"),
    ({"length": True}, "length"),
    ({"length": None}, "length"),
    ({"tweaks": None}, "tweaks"),
    ({"tweaks": "text"}, "tweaks"),
    ({"tweaks": bytearray(4)}, "tweaks"),
    ({"tweaks": [b"1"] * 5}, "tweaks"),
    ({"tweaks": [b"1"] * 5 + [b"22"]}, "tweaks"),
    ({"tweaks": [b"1"] * 5 + ["2"]}, "tweaks"),
    ({"tweaks": []}, "tweaks"),
    ({"tweaks": np.zeros((5, 3), np.uint8)}, "tweak"),
    ({"tweaks": np.zeros((6, 3), np.int8)}, "tweaks"),
    ({"tweaks": np.zeros(6, np.uint8)}, "tweaks"),
    ({"tweaks": bytes(ff1.TWEAK_BYTES_MAX + 1)}, "tweak"),
    ({"tweaks": np.zeros((6, ff1.TWEAK_BYTES_MAX + 1), np.uint8)}, "tweak"),
    ({"cipher": None}, "cipher"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=str)
def test_refuses_what_is_outside_the_limits_and_says_which(wrong: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"cipher": LOCAL, "values": SIX, "length": 9, "tweaks": b"", **wrong}
    for function in (ff1.encrypt_many, ff1.decrypt_many):
        with pytest.raises(tv.InvalidInputError, match=message):
            function(**arguments)  # type: ignore[arg-type] # wrong on purpose


ARRAYS = st.builds(
    lambda dtype, shape: np.ones(shape, dtype),
    st.sampled_from(["u8", "i8", "u1", "f4", "U3", "S2", "O", "c16", "M8[s]", "V3", "?", ">u8"]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
)


@given(
    st.one_of(st.just(LOCAL), ANYTHING),
    st.one_of(ARRAYS, ANYTHING),
    st.one_of(st.just(9), ANYTHING),
    st.one_of(st.just(b""), ARRAYS, ANYTHING),
)
def test_whatever_goes_in_only_invalid_input_comes_out(
    cipher: object, values: object, length: object, tweaks: object
) -> None:
    for function in (ff1.encrypt_many, ff1.decrypt_many):
        for one in (values, SIX[:2]):
            with contextlib.suppress(tv.InvalidInputError):
                function(cipher, one, length=length, tweaks=tweaks)  # type: ignore[arg-type] # on purpose


@pytest.mark.parametrize("broken", [lambda: FailingCipher(LOCAL, 5), lambda: ShortCipher(LOCAL)])
def test_a_lost_key_store_shows_no_values(broken: Callable[[], BlockCipher]) -> None:
    with pytest.raises(tv.KeyStoreError) as caught:
        ff1.encrypt_many(broken(), column(4111111111111111), length=16)
    assert "4111111111111111" not in library_locals(caught.value)
