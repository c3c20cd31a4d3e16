"""The rules of payment tokens, pure: no database, no key store, no clock."""
