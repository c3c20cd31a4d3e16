"""Small changes planted in the library, one at a time: do the tests notice? `python -m scripts.mutants`."""
