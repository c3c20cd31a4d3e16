"""Closing a vault: calls under way come to their end before the trail does."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

from tokenvault.vault.core import Core

CLOSING_SECONDS_MAX: Final = 10.0
"""How long closing waits for calls under way."""

_POLL_SECONDS: Final = 0.001


async def close(core: Core, calls: Sequence[None], pid: int) -> None:
    """Wait for calls under way, and close the trail.

    Args:
        core: of a vault that begins no more calls.
        calls: one entry for each under way.
        pid: of the process that opened the vault: a forked child does not know which of them are its own.
    """
    until = time.monotonic() + (CLOSING_SECONDS_MAX if os.getpid() == pid else 0)
    while calls and time.monotonic() < until:
        await core.runtime.sleep(_POLL_SECONDS)
    await core.trail.close(core.clock.now_ms())
