"""A time limit that is an OSError, as TimeoutError is, comes out of each look at a path: it is never taken for no."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.interrupts import TimeLimitError
from tokenvault import interrupts
from tokenvault.audit.archive import HEADER, ArchiveFile, ArchiveReader
from tokenvault.keys.pkcs11.host_lock import host_lock


def locked(path: str) -> None:
    with host_lock(path):
        pass


def archived(path: str) -> None:
    with closing(ArchiveFile(Path(path))) as archive:
        assert list(archive.events()) == []
        archive.append([])


def read(path: str) -> None:
    ArchiveReader(Path(path)).close()


LOOKS: dict[str, tuple[Callable[[str], object], str, str]] = {
    "real_path": (interrupts.real_path, "os", "lstat"),
    "exists": (interrupts.exists, "os", "stat"),
    "is_file": (interrupts.is_file, "os", "stat"),
    "host_lock opening": (locked, "os", "open"),
    "host_lock locking": (locked, "fcntl", "flock"),
    "archive opening": (archived, "os", "open"),
    "archive locking": (archived, "fcntl", "flock"),
    "archive flushing": (archived, "os", "fsync"),
    "archive opening to read": (read, "io", "open"),
}


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("look", LOOKS)
def test_a_time_limit_comes_out_of_every_look_at_a_path_and_no_handle_is_left(
    look: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, module, name = LOOKS[look]
    path = tmp_path / "file"
    path.write_bytes(HEADER)
    call(str(path))  # before: what measures coverage looks at the path of each file that it meets
    real = getattr(__import__(module), name)

    strikes = [signal.SIGUSR1]

    def struck(*arguments: Any, **named: Any) -> Any:
        if strikes and "opening" in look:  # behind it, the handle would be lost in this function
            signal.raise_signal(strikes.pop())
        result = real(*arguments, **named)
        if strikes:
            signal.raise_signal(strikes.pop())
        return result

    before = len(os.listdir("/proc/self/fd"))

    def called() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(f"{module}.{name}", struck)
            call(str(path))

    with pytest.raises(TimeLimitError):
        called()
    assert len(os.listdir("/proc/self/fd")) == before
    call(str(path))


@pytest.mark.usefixtures("limit")
def test_a_time_limit_comes_out_of_closing_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Struck(io.BytesIO):
        def close(self) -> None:
            super().close()
            signal.raise_signal(signal.SIGUSR1)

    archive = ArchiveFile(tmp_path / "archive")
    with monkeypatch.context() as patched:
        patched.setattr(archive, "_file", Struck())
        with pytest.raises(TimeLimitError):
            archive.close()
    archive.close()


def test_paths_are_told_as_os_path_tells_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling", "nowhere", ".", "file/below", "\0"):
        path = str(tmp_path / name)
        assert interrupts.exists(path) == os.path.exists(path), name  # what it replaces
        assert interrupts.is_file(path) == os.path.isfile(path), name  # what it replaces
    assert interrupts.real_path(str(tmp_path / "link")) == os.path.realpath(tmp_path / "file")
    assert interrupts.real_path(str(tmp_path / "nowhere")) == str(tmp_path / "nowhere")
