"""Archives of audit events: which lines are one, what is left of a file that is refused, and what full disks do."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import issue
from tokenvault import maintenance
from tokenvault.audit.archive import (
    HEADER,
    ArchiveFile,
    ArchivePlaces,
    ArchiveReader,
    archive_path,
    line_of,
)
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import SealedEvent, TokenStore

STREAM, OTHER = b"s" * 16, b"t" * 16
LINE_BYTES = 2**21


def event(number: int, stream: bytes = STREAM) -> SealedEvent:
    return SealedEvent(stream, number, b"r" * 16, b"body", b"m" * 16)


def other(number: int) -> SealedEvent:
    """An event of another stream."""
    return event(number, OTHER)


def holding(path: Path, *events: SealedEvent) -> Path:
    """An archive of these events."""
    path.write_bytes(HEADER + b"".join(map(line_of, events)))
    return path


def written(path: Path, *numbers: int) -> Path:
    """An archive of the events of these numbers."""
    return holding(path, *map(event, numbers))


def read(path: Path) -> list[int]:
    """The numbers of an archive, up to 9."""
    with closing(ArchiveReader(path)) as archive:
        return [each.number for first in range(1, 10) for each in archive.events(STREAM, first, first)]


def gone_on_with(path: Path) -> list[int]:
    """The numbers that an archive holds as it is opened to write."""
    with closing(ArchiveFile(path)) as archive:
        return [each.number for each in archive.events()]


def edited(**fields: object) -> bytes:
    return json.dumps({**json.loads(line_of(event(2))), **fields}).encode() + b"\n"


LINES = {
    "nothing": b"\n",
    "no JSON": b"{\n",
    "no text": b"\xff\n",
    "a list": b"[1, 2]\n",
    "lists in lists": b"[" * 100_000 + b"\n",
    "a field less": b'{"stream": "' + b"73" * 16 + b'", "number": 2}\n',
    "a field more": edited(more=1),
    "a blank more": line_of(event(2))[:-1] + b" \n",
    "capital letters": line_of(event(2)).replace(b"6d" * 16, b"6D" * 16),
    "a number as a text": edited(number="2"),
    "a number as a truth": edited(number=True),
    "number 0": edited(number=0),
    "a number above the last": edited(number=2**63),
    "a short name of a stream": edited(stream="73" * 15),
    "a short reference": edited(reference="72" * 15),
    "a short MAC": edited(mac="6d" * 15),
    "a body with a blank": edited(body="Ym9k eQ=="),
    "a body that is none": edited(body=5),
}


@pytest.mark.parametrize("case", LINES)
@pytest.mark.parametrize("opened", [read, gone_on_with])
def test_an_archive_with_a_line_that_was_not_written_so_is_refused_and_left(
    opened: Callable[[Path], list[int]], case: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "archive", 1)
    path.write_bytes(path.read_bytes() + LINES[case] + line_of(event(3)))
    before, files = path.read_bytes(), open_files()
    with pytest.raises(tv.IntegrityError) as refused:
        opened(path)
    assert refused.value.code == "ARCHIVE_UNREADABLE"
    assert path.read_bytes() == before
    if opened is read:
        assert open_files() == files


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_verification_and_archiving_refuse_an_archive_with_a_line_that_was_not_written_so(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    store, path = a_trail(local_keys), tmp_path / "archive"
    maintenance.archive_events(local_keys, store, path)
    path.write_bytes(path.read_bytes() + LINES["a number as a text"])
    refusing: tuple[Callable[[], object], ...] = (
        lambda: tv.verify_audit(store, keys=local_keys, archive=path),
        lambda: maintenance.archive_events(local_keys, store, path),
    )
    for call in refusing:
        with pytest.raises(tv.IntegrityError) as refused:
            call()
        assert refused.value.code == "ARCHIVE_UNREADABLE"


def a_trail(keys: KeyStore) -> TokenStore:
    """A stream of ten events."""
    store = MemoryTokenStore()
    tv.provision(keys, store)
    with vaults.open_vault(keys, store) as vault:
        for _ in range(8):
            issue(vault)
    return store


@pytest.mark.parametrize("opened", [read, gone_on_with])
def test_what_stands_behind_the_last_line_may_be_as_long_as_a_line_that_was_cut_off(
    opened: Callable[[Path], list[int]], tmp_path: Path
) -> None:
    path = written(tmp_path / "archive", 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * (LINE_BYTES - 1))
    assert opened(path) == [1]
    path.write_bytes(whole + b"x" * LINE_BYTES)
    with pytest.raises(tv.IntegrityError) as refused:
        opened(path)
    assert refused.value.code == "ARCHIVE_UNREADABLE"


def test_an_archive_that_lacks_events_in_between_gets_exactly_these(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    store, path = a_trail(local_keys), tmp_path / "archive"
    assert maintenance.archive_events(local_keys, store, path).done == 10
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[5:6], *lines[8:]]))
    with closing(ArchiveFile(path)) as archive:
        assert len(list(archive.events())) == 6
        assert list(archive.places.missing(min(store.streams()))) == [(3, 4), (6, 7), (11, None)]
    assert maintenance.archive_events(local_keys, store, path).done == 4
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


@pytest.mark.parametrize("path", ["archive", Path("folder/archive")])
def test_the_path_of_an_archive_is_a_text_or_what_stands_for_one(path: str | Path) -> None:
    assert archive_path("to", path) == Path(path)


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"archive"


@pytest.mark.parametrize("path", [None, 5, "", b"archive", "a\0b", BytesPath()])
def test_what_is_no_path_of_a_file_is_none_of_an_archive(path: object) -> None:
    with pytest.raises(tv.InvalidInputError, match=r"^to is the path of an archive$"):
        archive_path("to", path)


def test_a_new_archive_is_a_line_that_names_the_format_in_a_file_of_its_owner(tmp_path: Path) -> None:
    ArchiveFile(tmp_path / "archive").close()
    assert (tmp_path / "archive").read_bytes() == b'{"format": "tokenvault-archive-1"}\n'
    assert (tmp_path / "archive").stat().st_mode & 0o777 == 0o600


def test_no_archive_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(tv.InvalidInputError, match="symbolic links"):
        ArchiveFile(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_new_archive_is_on_the_disk_with_its_name_and_so_is_what_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files, sync, synced = tmp_path / "archive", open_files(), os.fsync, list[str]()

    def watched(descriptor: int) -> None:
        sync(descriptor)
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", watched)
    with closing(ArchiveFile(path)) as archive:
        assert synced == [str(path), str(tmp_path)]
        assert list(archive.events()) == []
        archive.append([event(1)])
        assert synced[2:] == [str(path)]
    assert open_files() == files


def test_of_an_archive_that_is_gone_on_with_a_line_without_its_end_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / "archive", 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + line_of(event(3))[:-1])
    assert gone_on_with(path) == [1, 2]
    assert path.read_bytes() == whole


def test_an_archive_that_is_written_tells_of_its_lines_as_one_that_is_opened_then(tmp_path: Path) -> None:
    path = written(tmp_path / "archive", 1, 4)
    added = [other(7), event(5), event(2), event(3)]
    with closing(ArchiveFile(path)) as archive, closing(ArchiveFile(tmp_path / "new")) as new:
        assert list(new.events()) == []
        assert new.append([event(1), event(4)]) == 2
        assert list(archive.events()) == [event(1), event(4)]
        for each in (archive, new):
            assert each.append([event(1), *added]) == len(added)
            assert list(each.events()) == [event(1), event(4), *added], "from the first line, each time"
    with closing(ArchiveFile(path)) as again:
        assert list(again.events()) == [event(1), event(4), *added]
        for stream, number in ((STREAM, 1), (STREAM, 2), (STREAM, 3), (STREAM, 4), (STREAM, 5), (OTHER, 7)):
            run = again.places.run(stream, number)
            assert run is not None
            assert archive.places.run(stream, number) == new.places.run(stream, number) == run


LINES_IN_ANY_ORDER = {
    "one after the other": [event(1), event(2), event(3)],
    "some of them twice": [event(1), event(2), event(3), event(1), event(2)],
    "one again, and what follows it": [event(2), event(1), event(2), event(3)],
    "one again behind another stream": [event(1), event(2), other(1), event(2), event(3)],
    "backwards": [event(3), event(2), event(1)],
    "one in between at the end": [event(1), event(3), event(2)],
    "two streams in turns": [event(1), other(1), event(2), other(2), event(3)],
    "another stream in between": [event(1), event(2), other(3), event(3)],
    "another stream that goes on": [event(1), other(2), event(3), event(2)],
}


@pytest.mark.parametrize("case", LINES_IN_ANY_ORDER)
def test_an_archive_gives_what_it_holds_whatever_the_order_of_its_lines(case: str, tmp_path: Path) -> None:
    lines = LINES_IN_ANY_ORDER[case]
    path = holding(tmp_path / "archive", *lines)
    with closing(ArchiveReader(path)) as archive:
        for stream in (STREAM, OTHER):
            held = {each.number for each in lines if each.stream == stream}
            for first in range(5):
                for last in range(first, 5):
                    given = [each.number for each in archive.events(stream, first, last)]
                    up_to = next(number for number in range(first, 6) if number not in held)
                    assert given == list(range(first, min(up_to, last + 1)))


def test_a_thousand_lines_in_a_row_are_found_by_the_place_of_the_first() -> None:
    places = ArchivePlaces()
    for number in range(5, 1_006):
        places.add(event(number), 10 * number)
    assert places.run(STREAM, 5) == places.run(STREAM, 1_004) == (5, 1_004, 50)
    assert places.run(STREAM, 1_005) == (1_005, 1_005, 10_050)
    assert places.run(STREAM, 4) is places.run(STREAM, 1_006) is places.run(OTHER, 5) is None


def test_an_archive_has_one_writer_and_who_is_refused_leaves_it_free(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with closing(ArchiveFile(path)) as archive:
        assert list(archive.events()) == []
        assert archive.append([event(1)]) == 1
        files = open_files()
        with pytest.raises(tv.InvalidInputError, match=r"^another process writes the archive$") as refused:
            ArchiveFile(path)
        assert refused.value.code == "INVALID_INPUT"
        assert open_files() == files
        assert archive.append([event(1), event(2)]) == 1
    assert gone_on_with(path) == [1, 2]


def test_a_folder_is_no_archive_and_stays_closed(tmp_path: Path) -> None:
    files = open_files()
    for opened in (ArchiveReader, ArchiveFile):
        with pytest.raises(tv.InvalidInputError, match="Is a directory"):
            opened(tmp_path)
        assert open_files() == files


@pytest.mark.parametrize(("now", "left"), [((2, 1, 3), []), ((1, 3, 2), [1]), ((1, 2, 9), [1, 2])])
def test_of_an_archive_that_is_written_anew_as_it_is_read_nothing_stands_in_for_an_event(
    now: tuple[int, ...], left: list[int], tmp_path: Path
) -> None:
    path = written(tmp_path / "archive", 1, 2, 3)
    with closing(ArchiveReader(path)) as archive:
        assert [each.number for each in archive.events(STREAM, 1, 3)] == [1, 2, 3]
        written(path, *now)
        assert [each.number for each in archive.events(STREAM, 1, 3)] == left


# A full disk.


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file gets longer than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL: Any = {"match": r"^the archive can not be used \(File too large\)$"}


def test_a_new_archive_without_room_is_refused_and_made_once_there_is_some(tmp_path: Path) -> None:
    path, files = tmp_path / "archive", open_files()
    with room_for(5), pytest.raises(tv.InvalidInputError, **FULL) as refused:
        ArchiveFile(path)
    assert refused.value.code == "INVALID_INPUT"
    assert open_files() == files
    assert gone_on_with(path) == []
    assert path.read_bytes() == HEADER


def test_events_without_room_are_refused_and_added_once_there_is_some(tmp_path: Path) -> None:
    path = written(tmp_path / "archive", 1)
    with closing(ArchiveFile(path)) as archive:
        assert [each.number for each in archive.events()] == [1]
        with room_for(path.stat().st_size + len(line_of(event(2))) + 5):
            with pytest.raises(tv.InvalidInputError, **FULL):
                archive.append([event(2), event(3)])
            archive.close()
    with closing(ArchiveFile(path)) as archive:
        assert [each.number for each in archive.events()] == [1, 2]
        assert archive.append([event(2), event(3)]) == 1
    assert gone_on_with(path) == [1, 2, 3]
