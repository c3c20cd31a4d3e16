"""Calls on many tokens at once."""
