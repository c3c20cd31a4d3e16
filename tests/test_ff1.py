"""FF1: the published vectors, a naive reference, and nothing but InvalidInputError outside the limits."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.ciphers import CountingCipher, FailingCipher, ShortCipher, library_locals
from tokenvault.crypto import ff1
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys import LocalBlockCipher

KEY = bytes(range(32))
LOCAL = LocalBlockCipher(KEY)
PAN = "4111111111111111"


def vectors() -> list[dict[str, object]]:
    """NIST's nine samples and four binary or long ones of str4d/fpe; the files say where each is from."""
    folder = Path(__file__).parent / "vectors"
    found: list[dict[str, object]] = []
    for name in ("nist_ff1_samples.json", "str4d_extra_ff1.json"):
        found += json.loads((folder / name).read_text())["vectors"]
    return found


def test_the_corpus_holds_every_vector() -> None:
    assert len(vectors()) == 13
    assert sum(vector["sample"] is not None for vector in vectors()) == 9


@pytest.mark.parametrize("vector", vectors(), ids=lambda v: f"{v['aes']}-radix{v['radix']}-{len(v['pt'])}")
@pytest.mark.parametrize("wrap", [LocalBlockCipher, lambda key: CountingCipher(LocalBlockCipher(key))])
def test_gives_the_published_results_both_ways(
    vector: dict[str, str], wrap: Callable[[bytes], BlockCipher]
) -> None:
    cipher, tweak, radix = wrap(bytes.fromhex(vector["key"])), bytes.fromhex(vector["tweak"]), vector["radix"]
    plaintext, ciphertext = list(map(int, vector["pt"])), list(map(int, vector["ct"]))
    assert ff1.encrypt(cipher, plaintext, radix=int(radix), tweak=tweak) == ciphertext
    assert ff1.decrypt(cipher, ciphertext, radix=int(radix), tweak=tweak) == plaintext
    if int(radix) == 10:
        assert ff1.encrypt_digits(cipher, vector["pt_str"], tweak=tweak) == vector["ct_str"]
        assert ff1.decrypt_digits(cipher, vector["ct_str"], tweak=tweak) == vector["pt_str"]


def reference_encrypt(numerals: Sequence[int], radix: int, tweak: bytes) -> list[int]:
    """NIST SP 800-38G algorithm 7, step by step, with the numbers and the names of the standard."""

    def ciph(block: bytes) -> bytes:
        return LOCAL.encrypt_blocks(block)

    def prf(blocks: bytes) -> bytes:
        y = bytes(16)
        for j in range(len(blocks) // 16):
            y = ciph(bytes(p ^ q for p, q in zip(y, blocks[16 * j : 16 * j + 16], strict=True)))
        return y

    def num(x: Sequence[int]) -> int:
        return sum(numeral * radix ** (len(x) - 1 - j) for j, numeral in enumerate(x))

    n, t = len(numerals), len(tweak)
    u = n // 2
    v = n - u
    a, b_half = list(numerals[:u]), list(numerals[u:])
    bits = 0
    while 2**bits < radix**v:  # ceil(v * LOG(radix))
        bits += 1
    b = (bits + 7) // 8
    d = 4 * ((b + 3) // 4) + 4
    p_block = bytes(
        [1, 2, 1, *radix.to_bytes(3, "big"), 10, u % 256, *n.to_bytes(4, "big"), *t.to_bytes(4, "big")]
    )
    for i in range(10):
        q = tweak + bytes((-t - b - 1) % 16) + bytes([i]) + num(b_half).to_bytes(b, "big")
        r = prf(p_block + q)
        s = r
        for j in range(1, (d + 15) // 16):
            s += ciph(bytes(p ^ q for p, q in zip(r, j.to_bytes(16, "big"), strict=True)))
        y = int.from_bytes(s[:d], "big")
        m = u if i % 2 == 0 else v
        c = (num(a) + y) % radix**m
        c_numerals = [c // radix ** (m - 1 - j) % radix for j in range(m)]
        a, b_half = b_half, c_numerals
    return a + b_half


@st.composite
def strings(draw: st.DrawFn, length_max: int = 80) -> tuple[list[int], int]:
    """Numerals and their radix; radices near the limits and powers of two are drawn often."""
    radix = draw(
        st.one_of(st.sampled_from([2, 3, 10, 16, 36, 255, 256, 257, 65535, 65536]), st.integers(2, 65536))
    )
    length_min = 2
    while radix**length_min < ff1.DOMAIN_MIN:
        length_min += 1
    length = draw(st.integers(length_min, max(length_min, length_max)))
    return draw(st.lists(st.integers(0, radix - 1), min_size=length, max_size=length)), radix


TWEAKS = st.one_of(st.binary(max_size=20), st.binary(min_size=28, max_size=36), st.binary(max_size=100))


@given(strings(), TWEAKS, st.booleans())
@example(([0] * 58, 256), b"", False)
@example(([65535] * 80, 65536), bytes(11), True)
def test_agrees_with_the_naive_reference_and_decrypts_back(
    string: tuple[list[int], int], tweak: bytes, generic: bool
) -> None:
    numerals, radix = string
    cipher = CountingCipher(LOCAL) if generic else LOCAL
    encrypted = ff1.encrypt(cipher, numerals, radix=radix, tweak=tweak)
    assert encrypted == reference_encrypt(numerals, radix, tweak)
    assert ff1.decrypt(cipher, encrypted, radix=radix, tweak=tweak) == numerals


@given(st.text("0123456789", min_size=6, max_size=60), TWEAKS)
def test_digits_and_numerals_agree(digits: str, tweak: bytes) -> None:
    numerals = list(map(int, digits))
    encrypted = ff1.encrypt_digits(LOCAL, digits, tweak=tweak)
    assert list(map(int, encrypted)) == ff1.encrypt(LOCAL, numerals, radix=10, tweak=tweak)
    assert ff1.decrypt_digits(LOCAL, encrypted, tweak=tweak) == digits
    assert list(map(int, ff1.decrypt_digits(LOCAL, digits, tweak=tweak))) == ff1.decrypt(
        LOCAL, numerals, radix=10, tweak=tweak
    )


def test_the_length_of_a_half_in_bytes_is_exact_where_floating_point_is_not() -> None:
    """29 numerals of radix 256 are 29 bytes; 29 * log(256) / log(2) makes it 30, and another ciphertext."""
    numerals = list(range(58))
    assert ff1.encrypt(LOCAL, numerals, radix=256) == reference_encrypt(numerals, 256, b"")


@pytest.mark.parametrize("length", [ff1.NUMERALS_MAX, ff1.NUMERALS_MAX - 1])
def test_the_longest_strings_agree_with_the_reference(length: int) -> None:
    numerals = [i * i % 10 for i in range(length)]
    encrypted = ff1.encrypt(LOCAL, numerals, radix=10, tweak=b"long")
    assert encrypted == reference_encrypt(numerals, 10, b"long")
    assert ff1.decrypt(LOCAL, encrypted, radix=10, tweak=b"long") == numerals


def test_the_longest_digit_string_works_under_the_strictest_limit_of_the_interpreter() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        for digits in ("9" * ff1.DIGITS_MAX, "7" * (ff1.DIGITS_MAX - 1)):
            assert ff1.decrypt_digits(LOCAL, ff1.encrypt_digits(LOCAL, digits)) == digits
    finally:
        sys.set_int_max_str_digits(limit)


def test_the_longest_tweak_works_and_matters_to_its_last_byte() -> None:
    tweak = bytes(ff1.TWEAK_BYTES_MAX)
    encrypted = ff1.encrypt_digits(LOCAL, PAN, tweak=tweak)
    assert ff1.decrypt_digits(LOCAL, encrypted, tweak=tweak) == PAN
    assert ff1.encrypt_digits(LOCAL, PAN, tweak=tweak[:-1] + b"\1") != encrypted


@pytest.mark.parametrize(
    ("length", "tweak_bytes", "sizes"),
    [
        (16, 0, [1] * 11),
        (16, 8, [1] * 11),
        (16, 11, [1] * 11),
        (16, 12, [1] * 12),  # Q is two blocks, the first of them tweak and padding: constant
        (16, 27, [1] * 12),
        (16, 100, [1] * 17),
    ],
)
def test_constant_blocks_are_encrypted_once(length: int, tweak_bytes: int, sizes: list[int]) -> None:
    cipher = CountingCipher(LOCAL)
    ff1.encrypt_digits(cipher, "1" * length, tweak=bytes(tweak_bytes))
    assert cipher.sizes == sizes


def test_the_expansion_of_a_long_half_is_one_call() -> None:
    cipher = CountingCipher(LOCAL)
    ff1.encrypt(cipher, [0] * 200, radix=256)  # b = 100, d = 104: seven blocks, six of them expanded
    assert cipher.sizes == [1] + ([1] * 7 + [6]) * 10


@given(strings(length_max=20), st.binary(max_size=4), st.binary(max_size=4))
def test_another_tweak_gives_another_permutation(
    string: tuple[list[int], int], tweak: bytes, other: bytes
) -> None:
    numerals, radix = string
    assume(tweak != other and radix ** len(numerals) > 2**64)
    encrypted = ff1.encrypt(LOCAL, numerals, radix=radix, tweak=tweak)
    assert encrypted != ff1.encrypt(LOCAL, numerals, radix=radix, tweak=other)


@pytest.mark.parametrize("numerals", [(1,) * 6, range(6), bytes(6), memoryview(bytes(6))])
def test_any_sequence_of_ints_is_taken(numerals: Sequence[int]) -> None:
    assert ff1.encrypt(LOCAL, numerals, radix=10) == ff1.encrypt(LOCAL, list(numerals), radix=10)


@pytest.mark.parametrize(
    ("numerals", "radix"),
    [
        ([], 10),
        ([1], 65536),
        ([1] * 5, 10),  # a domain of 10**5
        ([1] * 19, 2),  # 2**19 < 10**6
        ([1, 1], 999),  # 999**2 < 10**6
        ([1] * (ff1.NUMERALS_MAX + 1), 10),
        ([1] * 9 + [10], 10),
        ([-1] + [1] * 9, 10),
        ([True] * 10, 10),
        ([1.0] * 10, 10),
        (["1"] * 10, 10),
        ("1" * 10, 10),
        (None, 10),
        ({1, 2, 3, 4, 5, 6}, 10),
        ({1: 1}, 10),
        (iter([1] * 10), 10),
        (range(10**30), 10),
        ([1] * 20, 1),
        ([1] * 20, 0),
        ([1] * 20, -10),
        ([1] * 20, 65537),
        ([1] * 20, 10.0),
        ([1] * 20, True),
        ([1] * 20, "10"),
        ([1] * 20, None),
    ],
)
def test_refuses_strings_and_radices_outside_the_limits(numerals: object, radix: object) -> None:
    ff1.encrypt(LOCAL, [1] * 20, radix=10)  # a cached shape must not let an equal radix of another type in
    for function in (ff1.encrypt, ff1.decrypt):
        with pytest.raises(InvalidInputError):
            function(LOCAL, numerals, radix=radix)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize("radix", [2, 10, 999, 1000, 1001, 65536])
def test_the_smallest_domain_is_a_million(radix: int) -> None:
    length = next(n for n in range(2, 99) if radix**n >= 10**6)
    numerals = [1] * length
    assert ff1.decrypt(LOCAL, ff1.encrypt(LOCAL, numerals, radix=radix), radix=radix) == numerals
    if length > 2:
        with pytest.raises(InvalidInputError):
            ff1.encrypt(LOCAL, numerals[1:], radix=radix)


@pytest.mark.parametrize(
    "digits",
    [
        *("", "1", "12345", "1" * 1281, "12345a", "+123456", "-123456", "1234 56", "1_234_567", "123456\n"),
        *("\N{ARABIC-INDIC DIGIT THREE}" * 10, "\N{SUPERSCRIPT TWO}" * 10),
        *(b"1234567", 1234567, None, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_refuses_what_is_no_string_of_ascii_digits(digits: object) -> None:
    for function in (ff1.encrypt_digits, ff1.decrypt_digits):
        with pytest.raises(InvalidInputError):
            function(LOCAL, digits)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize("tweak", ["tweak", None, 5, bytearray(4), [1], bytes(ff1.TWEAK_BYTES_MAX + 1)])
def test_refuses_what_is_no_tweak(tweak: object) -> None:
    with pytest.raises(InvalidInputError):
        ff1.encrypt(LOCAL, [1] * 10, radix=10, tweak=tweak)  # type: ignore[arg-type] # wrong on purpose
    with pytest.raises(InvalidInputError):
        ff1.decrypt_digits(LOCAL, PAN, tweak=tweak)  # type: ignore[arg-type] # wrong on purpose


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers()
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner, inner)),
    max_leaves=8,
)


@given(st.one_of(st.just(LOCAL), ANYTHING), st.one_of(st.just([1] * 9), ANYTHING), ANYTHING, ANYTHING)
def test_whatever_goes_in_only_invalid_input_comes_out(
    cipher: object, numerals: object, radix: object, tweak: object
) -> None:
    for function in (ff1.encrypt, ff1.decrypt):
        for given_radix in (radix, 10):
            with contextlib.suppress(InvalidInputError):
                function(cipher, numerals, radix=given_radix, tweak=tweak)  # type: ignore[arg-type] # on purpose
    for digits_function in (ff1.encrypt_digits, ff1.decrypt_digits):
        for digits in (numerals, "123456"):
            with contextlib.suppress(InvalidInputError):
                digits_function(cipher, digits, tweak=tweak)  # type: ignore[arg-type] # on purpose


@pytest.mark.parametrize("answers", [0, 1, 5, 10])
def test_a_lost_key_store_shows_no_digits_in_messages_or_frames(answers: int) -> None:
    numerals = list(map(int, PAN))
    calls: list[Callable[[BlockCipher], object]] = [
        lambda cipher: ff1.encrypt_digits(cipher, PAN),
        lambda cipher: ff1.decrypt_digits(cipher, PAN),
        lambda cipher: ff1.encrypt(cipher, numerals, radix=10),
        lambda cipher: ff1.decrypt(cipher, numerals, radix=10),
    ]
    for call in calls:
        with pytest.raises(KeyStoreError) as caught:
            call(FailingCipher(LOCAL, answers))
        shown = library_locals(caught.value)
        assert PAN[:8] not in shown
        assert PAN[8:] not in shown
        assert repr(numerals) not in shown


def test_refused_digits_are_not_repeated() -> None:
    with pytest.raises(InvalidInputError) as caught:
        ff1.encrypt_digits(LOCAL, PAN + "x")
    assert PAN not in library_locals(caught.value)


def test_an_answer_of_the_wrong_length_is_a_key_store_error() -> None:
    with pytest.raises(KeyStoreError):
        ff1.encrypt_digits(ShortCipher(LOCAL), PAN)
