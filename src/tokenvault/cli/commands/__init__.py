"""The commands, each one function: see `command`. A new one is written in the module of its subject."""
