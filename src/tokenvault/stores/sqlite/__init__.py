"""The token store over SQLite."""
