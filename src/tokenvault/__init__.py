"""Payment tokens bound to a domain."""
