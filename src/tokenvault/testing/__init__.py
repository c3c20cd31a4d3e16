"""What an adapter of a token store or key store runs to prove itself."""
