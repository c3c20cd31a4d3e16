"""Columns of random numbers from the operating system."""

from __future__ import annotations

import os

import numpy as np

from tokenvault.columns.arrays import Words


def fresh_key() -> bytes:
    """32 random bytes."""
    return os.urandom(32)


def uniform(count: int, below: int) -> Words:
    """Uniform random numbers from 0 to `below - 1`, which is at most 2**64 - 1.

    Draws of 64 bits at or above the greatest multiple of `below` are drawn again: none is more likely than another.
    More than half of them are kept each time.
    """
    bound = np.uint64(2**64 // below * below - 1)
    drawn: Words = np.empty(0, np.uint64)
    while len(drawn) < count:
        fresh = np.frombuffer(os.urandom(8 * (count - len(drawn))), np.uint64)
        drawn = np.concatenate((drawn, fresh[fresh <= bound]))
    return drawn % np.uint64(below)
