"""How many blocks a module takes in one call, found out by use.

Modules take from 2 KiB to many MiB at once, say so nowhere, and refuse more with whatever return code. So the first
calls are small; while they work they grow, and a size that was refused is halved and remembered.
"""

from __future__ import annotations

from typing import Final

import attrs

START_BLOCKS: Final = 1_024
"""Blocks in the first call: 16 KiB, which nearly every module takes."""

GROWTH: Final = 1_024
"""How many times as much the next call carries: 16 MiB, which is as much as a batch has at once."""


@attrs.define
class BlockLimits:
    """What one module takes.

    Attributes:
        good: the most blocks that went through in one call.
        size: the most blocks that the next call carries.
        refused: the fewest blocks that were refused, if any were.
    """

    good: int = 0
    size: int = START_BLOCKS
    refused: int | None = None

    def worked(self, blocks: int) -> None:
        """A call of so many blocks went through."""
        self.good = max(self.good, blocks)
        if blocks >= self.size:
            self.size = self._below_refused(GROWTH * blocks)

    def failed(self, blocks: int) -> None:
        """A call of so many blocks failed where a smaller one went through."""
        self.refused = blocks
        self.size = max(self._below_refused(blocks // 2), 1)

    def _below_refused(self, blocks: int) -> int:
        if self.refused is None or blocks < self.refused:
            return blocks
        return max(self.good, 1)
