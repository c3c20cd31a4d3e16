"""FF1, CMAC, CCM and key derivation over one block cipher, for single values and for columns."""
