"""The list of changes that no test can notice, each with the reason: `tests/mutants_survivors.toml`.

An entry names the module inside the package, where in it the change is, the lines before and after, and the reason.
It does not name a number of a line: what stands before it in the module may change.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from scripts.mutants.changes import Change

PARTS: Final = ("module", "where", "was", "becomes", "reason")


class Survivor(NamedTuple):
    """A change that no test can notice."""

    module: str
    where: str
    was: str
    becomes: str


def read(path: Path) -> dict[Survivor, str]:
    """The reason of each change in the list. Raises ValueError for an entry without one, or in another form."""
    listed: dict[Survivor, str] = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", []):
        if set(entry) != set(PARTS) or not all(isinstance(entry[part], str) for part in PARTS):
            raise ValueError(f"{path.name}: an entry has {', '.join(PARTS)}, each a text: {entry}")
        *key, reason = (entry[part] for part in PARTS)
        survivor = Survivor(*key)
        if not reason.strip() or survivor in listed:
            raise ValueError(f"{path.name}: an entry has no reason, or stands there twice: {entry}")
        listed[survivor] = reason
    return listed


def named_in(text: str) -> set[Survivor]:
    """The changes whose entries a text holds, between other lines."""
    blocks = [block.split("\n\n")[0] for block in text.split("[[survivor]]\n")[1:]]
    entries = [tomllib.loads(block) for block in blocks]
    return {Survivor(*(entry[part] for part in PARTS[:-1])) for entry in entries}


def key_of(change: Change) -> Survivor:
    """By which a change is found in the list."""
    return Survivor(change.module, change.where, change.was, change.becomes)


def entry(change: Change) -> str:
    """A change as an entry of the list, whose reason is still to be written."""
    key = key_of(change)
    lines = [f"{part} = {_quoted(value)}" for part, value in zip(PARTS, (*key, ""), strict=True)]
    return "\n".join(["[[survivor]]", *lines]) + "\n"


def _quoted(text: str) -> str:
    if "'" not in text:
        return f"'{text}'"
    return json.dumps(text, ensure_ascii=False)


def wrong(
    listed: dict[Survivor, str],
    planted: Iterable[Change],
    survived: Sequence[Change],
    noticed: Sequence[Change],
    modules: Iterable[str],
) -> tuple[list[Change], list[tuple[Survivor, str]]]:
    """What is wrong with the list: changes that survived and are not in it, and entries that no longer hold.

    Args:
        listed: the list.
        planted: every change of the modules, whether it was tried or not.
        survived: those that were tried and that no test noticed.
        noticed: the others that were tried.
        modules: whose entries are checked.
    """
    unlisted = [change for change in survived if key_of(change) not in listed]
    there, lived = {key_of(change) for change in planted}, {key_of(change) for change in survived}
    seen = {key_of(change) for change in noticed} - lived
    ours = [each for each in listed if each.module in set(modules)]
    stale = [(each, "no such change can be made any more") for each in ours if each not in there]
    return unlisted, stale + [(each, "the tests notice it") for each in ours if each in seen]
