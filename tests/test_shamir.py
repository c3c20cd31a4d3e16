"""Shares of a secret: any two rebuild it, one alone says nothing, and the field is that of AES."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvault.crypto import shamir


def times(a: int, b: int) -> int:
    """FIPS 197, section 4.2: the product of two polynomials, and what x^8 + x^4 + x^3 + x + 1 leaves of it."""
    product = 0
    for power in range(8):
        if b >> power & 1:
            product ^= a << power
    for power in range(14, 7, -1):
        if product >> power & 1:
            product ^= 0x11B << (power - 8)
    return product


def test_products_are_those_of_fips_197() -> None:
    """The examples of sections 4.2 and 4.2.1."""
    assert times(0x57, 0x83) == 0xC1
    assert times(0x57, 0x13) == 0xFE


def test_each_share_of_each_byte_is_its_value_of_the_line_through_it() -> None:
    for secret, slope in itertools.product(range(256), repeat=2):
        shares = shamir.split(bytes([secret]), bytes([slope]))
        assert shares == {place: bytes([secret ^ times(slope, place)]) for place in (1, 2, 3)}


def test_any_two_shares_rebuild_each_byte_for_each_slope() -> None:
    secret = bytes(range(256)) * 256
    slopes = bytes(slope for slope in range(256) for _ in range(256))
    shares = shamir.split(secret, slopes)
    for places in itertools.permutations(shares, shamir.THRESHOLD):
        assert shamir.combine({place: shares[place] for place in places}) == secret


def test_one_share_is_any_byte_equally_often_whatever_the_secret() -> None:
    for secret in range(256):
        shares = shamir.split(bytes([secret]) * 256, bytes(range(256)))
        assert len(shares) == shamir.SHARES
        assert all(sorted(share) == list(range(256)) for share in shares.values())


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255))))
def test_each_byte_is_shared_for_itself(pairs: list[tuple[int, int]]) -> None:
    secret, slopes = bytes(pair[0] for pair in pairs), bytes(pair[1] for pair in pairs)
    single = [shamir.split(bytes([value]), bytes([slope])) for value, slope in pairs]
    expected = {place: b"".join(each[place] for each in single) for place in (1, 2, 3)}
    assert shamir.split(secret, slopes) == expected


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {1: b"ab"},
        {1: b"ab", 2: b"cd", 3: b"ef"},
        {1: b"ab", 3: b"c"},
    ],
    ids=["none", "one", "three", "of two lengths"],
)
def test_anything_but_two_shares_of_one_length_is_refused(shares: dict[int, bytes]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  Python's own, from the unpacking or the strict zip
        shamir.combine(shares)


def test_slopes_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError):  # noqa: PT011  as above
        shamir.split(b"ab", b"a")
