"""Format-preserving encryption of other packages, behind one shape: digit strings in, digit strings out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

PACKAGES = Path(__file__).parent / "peers.txt"
DIGITS = "0123456789"

Encrypt = Callable[[Sequence[str]], list[str]]


@attrs.frozen
class Peer:
    """A package.

    Attributes:
        name: package and version, as in peers.txt.
        algorithm: what it runs. FF1 gives the results of tokenvault; the others are shown for their speed.
        encrypt: encrypts digit strings under the key and tweak it was made with; none if the package is not there.
        absence: why there is none.
    """

    name: str
    algorithm: str
    encrypt: Encrypt | None
    absence: str = ""


def load(key: bytes, tweak: bytes, length: int) -> list[Peer]:
    """Every peer, with what it takes to set a key up done beforehand, where the package allows that."""
    makers: dict[str, tuple[str, Callable[[bytes, bytes, int], Encrypt]]] = {
        "fastfpe": ("FF1", _fastfpe),
        "libffx": ("FF1", _libffx),
        "ubiq-security-fpe": ("FF1", _ubiq),
        "ff3": ("FF3-1", _ff3),
        "pyffx": ("FFX of 2010", _pyffx),
    }
    peers = []
    for line in PACKAGES.read_text().splitlines():
        name = line.split()[0]  # behind it, what it needs and does not say
        algorithm, make = makers[name.partition("==")[0]]
        try:
            peers.append(Peer(name, algorithm, make(key, tweak, length)))
        except ImportError as error:
            peers.append(Peer(name, algorithm, None, str(error)))
    return peers


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _fastfpe(key: bytes, tweak: bytes, _length: int) -> Encrypt:
    encrypt = _module("fastfpe.ff1").encrypt
    key_hex, tweak_hex = key.hex(), tweak.hex()
    return lambda digits: [encrypt(key_hex, tweak_hex, DIGITS, each) for each in digits]


def _libffx(key: bytes, tweak: bytes, _length: int) -> Encrypt:
    encrypt = _module("ffx").FF1(key, radix=10).encrypt
    return lambda digits: [encrypt(each, tweak=tweak) for each in digits]


def _ubiq(key: bytes, tweak: bytes, _length: int) -> Encrypt:
    encrypt = _module("ubiq_security_fpe.ff1").Context(key, tweak, 0, 32, 10).Encrypt
    return lambda digits: [encrypt(each) for each in digits]


def _ff3(key: bytes, tweak: bytes, _length: int) -> Encrypt:
    encrypt = _module("ff3").FF3Cipher(key.hex(), tweak[:7].hex()).encrypt  # FF3-1: 7 bytes of tweak
    return lambda digits: [encrypt(each) for each in digits]


def _pyffx(key: bytes, _tweak: bytes, length: int) -> Encrypt:
    encrypt = _module("pyffx").String(key, alphabet=DIGITS, length=length).encrypt  # has no tweaks
    return lambda digits: [encrypt(each) for each in digits]
