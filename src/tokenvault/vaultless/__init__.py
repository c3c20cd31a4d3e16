"""Tokens without a vault: FF1 over the digits of card numbers, single and as columns."""
