"""Small changes planted in the library, one at a time, to see whether the tests notice: `python -m scripts.mutants`."""
