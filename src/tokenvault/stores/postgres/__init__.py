"""The token store over PostgreSQL."""
