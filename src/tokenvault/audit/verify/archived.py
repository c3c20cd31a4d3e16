"""Archives that stand in for what a purge took out of the database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tokenvault.audit.archive import ArchiveReader
from tokenvault.audit.event import leaf_of
from tokenvault.audit.purge_note import Run


class Archives:
    """Some archives. Raises, on opening and reading, as ArchiveReader."""

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        self._readers: Final[list[ArchiveReader]] = []
        try:
            self._readers.extend(map(ArchiveReader, paths))
        except BaseException:
            self.close()
            raise

    def leaves(self, stream: bytes, run: Run) -> list[bytes]:
        """The leaf hashes of a run of events; empty where no archive holds the whole run."""
        for reader in self._readers:
            leaves = [leaf_of(row) for row in reader.events(stream, run.first, run.last)]
            if len(leaves) == run.size:
                return leaves
        return []

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers:
            reader.close()
