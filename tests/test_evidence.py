"""What the page of evidence names is there, and each requirement has a row: what shows it, and who does the rest."""

from __future__ import annotations

import re

import pytest

from tests.test_cli import commands
from tests.test_site_examples import DOCS, blocks_of

ROOT = DOCS.parent
PAGE = (DOCS / "evidence.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+(?:\.\d+)+) [^|]+ \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
REQUIREMENTS = """
    3.2.1 3.3.1 3.3.2 3.4.1 3.4.2 3.5.1 3.5.1.1 3.6.1 3.6.1.1 3.6.1.2 3.6.1.3 3.6.1.4
    3.7.1 3.7.2 3.7.3 3.7.4 3.7.5 3.7.6 3.7.7 3.7.8 3.7.9
    6.2.4 6.3.2 7.2.5 7.2.6 8.6.1 8.6.2 8.6.3
    10.2.1.1 10.2.2 10.3.2 10.3.4 10.4.1 10.5.1 12.3.3 12.3.4
""".split()
"""Of PCI DSS v4.0.1: those that card data in a library, its keys and its log have to do with."""
NOTHING = "-"


def names_of_tests() -> set[str]:
    """The name of each test."""
    return {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(
            r"^(?:async )?def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }


def missing(page: str) -> list[str]:
    """What a page names and nobody finds: tests, commands of `tokenvault`, targets of make, files."""
    known = names_of_tests()
    lost = [name for name in re.findall(r"\btest_\w+", page) if name not in known]
    words = set(commands())
    for line in re.findall(r"`tokenvault ([a-z][^`]*)`", page):
        told = tuple(line.split())
        if not any(told[: len(each)] == each for each in words):
            lost.append(line)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    lost += [name for name in re.findall(r"`make ([a-z-]+)", page) if name not in targets]
    for name in re.findall(r"`((?:src|scripts|tests|docs)/[^`]+)`", page):
        if not (ROOT / name).exists():
            lost.append(name)
    for name in re.findall(r"\]\(([^)#]+\.md)", page):
        if not (DOCS / name).exists():
            lost.append(name)
    return lost


def test_each_test_command_and_file_that_the_page_of_evidence_names_is_there() -> None:
    assert missing(PAGE) == []
    assert PAGE.count("`test_") > 40


@pytest.mark.parametrize(
    "planted",
    [
        "`test_no_such_thing`",
        "`tokenvault keys shred`",
        "`make bogus`",
        "`scripts/none.py`",
        "[x](none.md#y)",
    ],
)
def test_a_name_that_is_not_there_is_found(planted: str) -> None:
    assert len(missing(PAGE + planted)) == 1


def test_each_requirement_has_a_row_that_shows_it_or_says_who_must() -> None:
    rows = ROW.findall(PAGE)
    assert [number for number, _, _ in rows] == REQUIREMENTS
    for number, shown, rest in rows:
        assert shown == NOTHING or "`" in shown, number
        assert re.search(r"\b(Host|Operator|QSA)\b", rest), number


def test_the_command_of_the_page_finds_its_test() -> None:
    [shown] = [text for language, text in blocks_of("evidence.md") if language == "sh"]
    [name] = re.findall(r"-k (test_\w+)$", shown.strip())
    assert name in names_of_tests()


@pytest.mark.parametrize("page", sorted(path.name for path in (DOCS / "howto").glob("*.md")))
def test_each_command_that_a_how_to_names_is_there(page: str) -> None:
    """Links between pages are looked at where the site is built; some pages show tests of the reader's own."""
    lost = missing((DOCS / "howto" / page).read_text(encoding="utf-8"))
    assert [name for name in lost if not name.endswith(".md") and not name.startswith("test_")] == []
