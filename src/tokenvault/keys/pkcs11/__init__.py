"""Key store over a PKCS#11 module."""
