"""Key stores: the port and its adapters."""

from tokenvault.keys.local import LocalBlockCipher

__all__ = ["LocalBlockCipher"]
