"""Plants small changes in a room of the library, one at a time, and tells which of them no test notices.

python -m scripts.mutants ROOM                    every change: hours for the large rooms
python -m scripts.mutants ROOM --part 2/8         every eighth change, from the second on
python -m scripts.mutants ROOM --sample 50        so many at random; --seed chooses others
python -m scripts.mutants ROOM --module audit/    those of a module or folder
python -m scripts.mutants ROOM --only FILE        those that the output of an earlier run names

A change is noticed when a test fails, or does not end. Which tests run a line is found once, and kept in
build/mutants. It fails when a change survives that tests/mutants_survivors.toml does not list, and when an entry
there does not hold any more. Nothing else of the working tree is written.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from scripts.mutants import copies, coverage_map, survivors
from scripts.mutants.changes import Change, changes_of
from scripts.mutants.copies import Copy, Selection
from scripts.mutants.coverage_map import PACKAGE, TESTS_SECONDS_MAX, CoverageMap
from scripts.mutants.rooms import ROOMS, Room
from scripts.mutants.trial import Bench, try_changes

ROOT: Final = Path(__file__).resolve().parents[2]
SURVIVORS: Final = Path("tests/mutants_survivors.toml")
MAPS: Final = Path("build/mutants")
JOBS: Final = 2


def planted_in(root: Path, room: Room) -> list[Change]:
    """Every change of a room, module by module."""
    modules: list[str] = []
    for place in room.places:
        path = root / PACKAGE / place
        found = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        modules += [str(each.relative_to(root / PACKAGE)) for each in found]
    return [
        change
        for module in modules
        if module not in room.generated
        for change in changes_of(module, (root / PACKAGE / module).read_text(encoding="utf-8"))
    ]


def chosen_of(changes: list[Change], part: str, sample: int | None, seed: int, module: str) -> list[Change]:
    """Those that are tried now. Raises ValueError for a part that is none."""
    number, _, count = part.partition("/")
    if not number.isdigit() or not count.isdigit() or not 1 <= int(number) <= int(count):
        raise ValueError(f"a part is such as 2/8, not {part}")
    found = [each for each in changes if each.module.startswith(module)][int(number) - 1 :: int(count)]
    if sample is not None and sample < len(found):
        places = sorted(random.Random(seed).sample(range(len(found)), sample))  # noqa: S311  chooses, guards nothing
        found = [found[place] for place in places]
    return found


def map_of(root: Path, copy: Copy, room: Room) -> CoverageMap:
    """Which tests of a room run which lines, from build/mutants or made now. Raises SystemExit where tests fail."""
    files = copies.has_tests(root, room.tests)
    path = root / MAPS / f"{coverage_map.state_of(root, files, room.left_out)}.json"
    if path.is_file():
        pid = copy.start(lambda: copies.run_pytest(Selection(None), files, "--collect-only"))
    else:
        print("finding which tests run which lines", flush=True)
        pid = copy.start(lambda: coverage_map.measure(copy, files, room.left_out, path))
    _, status = os.waitpid(pid, 0)
    copies.end(pid)
    if status or not path.is_file():
        raise SystemExit(f"the tests do not pass without a change:\n{copy.log.read_text()[-5_000:]}")
    return coverage_map.read(path)


def difference(root: Path, change: Change) -> str:
    """A change as a diff of its module, with its place."""
    before = (root / PACKAGE / change.module).read_text(encoding="utf-8").splitlines()
    lines = list(difflib.unified_diff(before, change.text.splitlines(), lineterm="", n=1))[2:]
    return "\n".join([f"{PACKAGE / change.module}:{change.line}: {change.where}", *lines])


class Bounds(NamedTuple):
    """How long things may take.

    Attributes:
        jobs: processes that try.
        seconds: of tests for one change, as they take without it.
        minutes: after which no further change is tried.
    """

    jobs: int = JOBS
    seconds: float = TESTS_SECONDS_MAX
    minutes: float = math.inf


def run(root: Path, room: Room, changes: list[Change], chosen: list[Change], bounds: Bounds) -> int:
    """Try changes of a room and tell of the survivors; 1 where the list of survivors does not hold.

    Args:
        root: of the project.
        room: whose tests have to notice.
        changes: every change of the room.
        chosen: those that are tried.
        bounds: on processes and time.
    """
    listed = survivors.read(root / SURVIVORS)
    survived: list[Change] = []
    noticed: list[Change] = []
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the copies are removed
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  a fresh folder in it
    folder = Path(tempfile.mkdtemp(prefix="tokenvault-mutants-", dir=place))
    folder.chmod(0o755)  # servers of the tests run as other users
    try:
        copies.load()
        first = Copy(root, folder / "0")
        covered = map_of(root, first, room)
        others = [Copy(first.tree, folder / str(i), with_bytecode=True) for i in range(1, bounds.jobs)]
        sys.dont_write_bytecode = True
        files = copies.has_tests(root, room.tests)
        benches = [Bench(copy, files, covered, bounds.seconds) for copy in (first, *others)]
        for number, result in enumerate(try_changes(chosen, benches), 1):
            (noticed if result.noticed else survived).append(result.change)
            if not result.noticed and survivors.key_of(result.change) not in listed:
                print(f"\n{difference(root, result.change)}\nsurvived {result.tests} tests\n", flush=True)
                print(survivors.entry(result.change), flush=True)
            if number % 50 == 0:
                print(f"{number} of {len(chosen)}, {time.monotonic() - began:.0f} s", flush=True)
            if time.monotonic() - began > 60 * bounds.minutes:
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    modules = {change.module for change in changes}
    unlisted, stale = survivors.wrong(listed, changes, survived, noticed, modules)
    for entry, why in stale:
        print(f"\nstale, {why}: {entry}")
    behaviour = len(noticed) + len(unlisted)
    share = len(noticed) / behaviour if behaviour else 1.0
    print(
        f"\n{len(noticed) + len(survived)} of {len(chosen)} changes: {len(noticed)} noticed, "
        f"{len(survived) - len(unlisted)} listed in {SURVIVORS}, "
        f"{len(unlisted)} not noticed: {share:.1%} of those that behaviour can show, {time.monotonic() - began:.0f} s"
    )
    return 1 if unlisted or stale else 0


def main(arguments: Sequence[str]) -> int:
    """Try the changes that the arguments choose."""
    parser = argparse.ArgumentParser("python -m scripts.mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--part", default="1/1", help="such as 2/8")
    parser.add_argument("--sample", type=int, help="how many, at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--module", default="", help="what the path inside the package begins with")
    parser.add_argument(
        "--only", type=Path, help="those of a file of entries, such as an earlier run's output"
    )
    parser.add_argument("--seconds", type=float, default=TESTS_SECONDS_MAX, help="of tests for one change")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no further one is tried")
    parser.add_argument("--jobs", type=int, default=JOBS, help="processes")
    told = parser.parse_args(arguments)
    room = ROOMS[told.room]
    changes = planted_in(ROOT, room)
    tried = chosen_of(changes, told.part, told.sample, told.seed, told.module)
    if told.only is not None:
        named = survivors.named_in(told.only.read_text(encoding="utf-8"))
        tried = [change for change in tried if survivors.key_of(change) in named]
    return run(ROOT, room, changes, tried, Bounds(told.jobs, told.seconds, told.minutes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
