"""`python -m tokenvault.cli`: the same as `tokenvault`."""

from __future__ import annotations

import sys

from tokenvault.cli import main

if __name__ == "__main__":
    sys.exit(main())
