"""Importing cards from files as they are: with the spellings that exports and spreadsheets have.

Rows are issued in chunks, in their order, and a chunk is in the database before its first row is reported. So an
import that ended early may have issued rows that it did not report. It is done again, from the start or after the
last line that it reported: a row that has an id of its own, or one by the import's `import_id` and its line, gets the
token that it has.
"""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TextIO, TypeAlias, cast

import attrs

from tokenvault.errors import (
    InvalidInputError,
    TokenVaultError,
    asked,
    boundary_init,
    given,
    iterator_boundary,
)
from tokenvault.interrupts import is_interrupt
from tokenvault.model import checks
from tokenvault.model.domain import Domain
from tokenvault.model.pan import CardExpiry, could_hold_pan
from tokenvault.model.spellings import SHORTEST_NUMBER, spells
from tokenvault.records.token_info import TokenInfo
from tokenvault.vault.batch.cards import CardToIssue
from tokenvault.vault.blocking import Vault
from tokenvault.vault.csv_rows import MISSHAPEN, csv_rows

CHUNK_ROWS: Final = 4_000
"""Rows that are issued at once."""

CELL_CHARACTERS_MAX: Final = 4_096
IMPORT_ID_CHARACTERS_MAX: Final = 40
"""With a line behind it, it is an idempotency key."""

COLUMN_SETS_MAX: Final = 1_024
"""Sets of columns that are remembered; mappings may each have another."""

COLUMNS: Final[Mapping[str, frozenset[str]]] = {
    "pan": frozenset(
        {
            "pan",
            "cardnumber",
            "number",
            "ccnumber",
            "creditcardnumber",
            "accountnumber",
            "primaryaccountnumber",
            "card",
        }
    ),
    "expiry": frozenset(
        {"expiry", "exp", "expdate", "expirydate", "expirationdate", "expiration", "validthru"}
    ),
    "month": frozenset({"expmonth", "expirymonth", "expirationmonth", "month"}),
    "year": frozenset({"expyear", "expiryyear", "expirationyear", "year"}),
    "customer": frozenset({"customer", "customerid", "clientid", "userid", "accountid"}),
    "par": frozenset({"par", "paymentaccountreference"}),
    "id": frozenset({"id", "rowid", "cardid", "tokenid", "reference", "paymentmethodid"}),
}
"""The columns that are known, each by its names: without regard to case, blanks and signs."""

_MONTHS: Final = {
    name: number
    for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), start=1)
}
_ROUNDED: Final = re.compile(r"[0-9](?:[.,][0-9]+)?[eE][+]?[0-9]+")
_PATTERNS: Final = (
    re.compile(
        r"(?P<y>20[0-9]{2})[-/. ]?(?P<m>0[1-9]|1[0-2])(?:[-/.](?:0[1-9]|[12][0-9]|3[01]))?(?:[t ].*)?"
    ),
    re.compile(r"(?P<m>0?[1-9]|1[0-2])[-/. ](?P<y>20[0-9]{2}|[0-9]{2})"),
    re.compile(r"(?P<m>0[1-9]|1[0-2])(?P<y>20[0-9]{2}|[0-9]{2})"),
    re.compile(r"(?P<m>[1-9])(?P<y>[0-9]{2})"),  # a spreadsheet dropped the first 0
    re.compile(r"(?P<m>[a-z]{3})[a-z]*[-/. ]+(?P<y>20[0-9]{2}|[0-9]{2})"),
)

Source: TypeAlias = Path | TextIO | Iterable[Mapping[str, object]]


@boundary_init
@attrs.frozen(kw_only=True)
class ImportedRow:
    """What came of a row. Never its card number.

    Attributes:
        line: number of the line in the file, from 1, where its row ends; of a mapping, its place, from 1.
        id: the row's own id, if it has one that could be no card number.
        token: the token that was issued; None where the row was rejected.
        code: why it was rejected, as `TokenVaultError.code`; None where it was not.
        message: the same in words.
    """

    line: int
    id: str | None
    token: TokenInfo | None
    code: str | None
    message: str | None


class _Row(NamedTuple):
    line: int
    id: str | None
    card: CardToIssue | InvalidInputError


@iterator_boundary
def import_cards(
    vault: Vault,
    source: Source,
    *,
    requestor: str,
    program: str,
    domain: Domain | None = None,
    columns: Mapping[str, str] | None = None,
    after_line: int = 0,
    import_id: str | None = None,
    operator: str | None = None,
) -> Generator[ImportedRow, None, None]:
    """Issue a token for each row of a file, also for cards that have expired, or have no expiry.

    Expiries are read as "12/29", "1229", "12/2029", "2029-12", "202912", "Dec-29" and the like; card numbers with
    blanks, hyphens, a leading apostrophe or a trailing ".0" of spreadsheets. A number that a spreadsheet has rounded
    is rejected (PAN_ROUNDED). Rows without anything in them are passed over.

    Args:
        vault: where the tokens are issued.
        source: path of a CSV file in UTF-8, with or without a byte order mark, separated by commas, semicolons or
            tabs; an open one; or mappings of column to value, as csv.DictReader gives them.
        requestor: id of the requestor that the tokens are issued to.
        program: name of their program.
        domain: of each token; unset, only the program's and the requestor's restrict it.
        columns: which column is which: of "pan", "expiry", "month", "year", "customer", "par" and "id", the name of
            each that is not recognised by its name. The values of a column "id" are idempotency keys.
        after_line: the line up to which the file is imported already.
        import_id: names the import, 1 to 40 printable ASCII characters; it is given again when the import goes on.
            A row without an id of its own then has one by it and its line: none gets a second token, and each is
            written by itself. Without it, go on in the middle of rows without ids for a CONVERGENT program only,
            where a card has one token anyway.
        operator: the person behind the import.

    Yields:
        Each row's outcome, in the order of the file, once its chunk of 4,000 is in the database.

    Raises:
        InvalidInputError: an argument is not acceptable, or the file is no CSV; nothing of it is repeated.
        PermissionDeniedError, KeyStoreError, TokenStoreError: as `Vault.issue_many`.
    """
    checks.instance("vault", vault, Vault)
    start, name = checks.whole_number("after_line", after_line, 0, 2**62), _import_id(import_id)
    rows = _rows(source, _columns(columns), start)
    while chunk := list(islice(rows, CHUNK_ROWS)):
        cards = [_card(row, name) for row in chunk if not isinstance(row.card, InvalidInputError)]
        results = iter(
            vault.issue_many(
                cards,
                requestor=requestor,
                program=program,
                domain=domain,
                accept_expired=True,
                operator=operator,
            )
        )
        for row in chunk:
            yield _outcome(row, row.card if isinstance(row.card, InvalidInputError) else next(results))


def _columns(value: Mapping[str, str] | None) -> dict[str, str]:
    problem = f"columns is a mapping of texts to texts, and names some of: {', '.join(COLUMNS)}"
    columns = checks.mapping(problem, {} if value is None else value)
    if not columns.keys() <= COLUMNS.keys():
        raise InvalidInputError(problem)
    return {name: checks.instance("the name of a column", column, str) for name, column in columns.items()}


def _import_id(value: str | None) -> str | None:
    if value is not None and len(checks.text("import_id", value)) > IMPORT_ID_CHARACTERS_MAX:
        raise InvalidInputError(f"import_id has at most {IMPORT_ID_CHARACTERS_MAX} characters")
    return value


def _card(row: _Row, import_id: str | None) -> CardToIssue:
    """The card of a row that was read, with an id where the import or the row has one."""
    card = cast(CardToIssue, row.card)
    if import_id is not None and card.get("idempotency_key") is None:
        card["idempotency_key"] = f"{import_id}:{row.line}"
    return card


def _outcome(row: _Row, result: TokenInfo | TokenVaultError) -> ImportedRow:
    if isinstance(result, TokenInfo):
        return ImportedRow(line=row.line, id=row.id, token=result, code=None, message=None)
    return ImportedRow(line=row.line, id=row.id, token=None, code=result.code, message=str(result))


def _rows(source: Source, columns: Mapping[str, str], after_line: int) -> Iterator[_Row]:
    if isinstance(source, Path):
        try:
            # What is no UTF-8 is held against the rows that it stands in.
            file = source.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
        except OSError as error:
            if is_interrupt(error):  # a time limit may be a TimeoutError
                raise
            raise InvalidInputError("the file of cards can not be opened") from None
        with file:
            yield from _rows(file, columns, after_line)
        return
    lines = csv_rows(source) if isinstance(source, io.TextIOBase) else _of_mappings(source)
    known: dict[tuple[str, ...], dict[str, str]] = {}
    for line, cells in lines:
        if line <= after_line:
            continue
        try:
            if not any(_text(value) for value in cells.values()):
                continue
            names = _names_of(cells, columns, known)
        except InvalidInputError as error:
            if not known:
                raise
            yield _Row(line, None, error)
        else:
            yield _row(line, cells, names)


def _names_of(
    cells: Mapping[str, object], columns: Mapping[str, str], known: dict[tuple[str, ...], dict[str, str]]
) -> dict[str, str]:
    """The column of each property; mappings need not all have the same."""
    keys = tuple(cells)
    if keys not in known:
        names = _names(cells, columns)
        if len(known) >= COLUMN_SETS_MAX:
            known.clear()
        known[keys] = names
    return known[keys]


def _of_mappings(source: object) -> Iterator[tuple[int, Mapping[str, object]]]:
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise InvalidInputError("source is a Path, an open text file, or an iterable of mappings")
    rows = given("the iterable of rows failed; the rows that were reported are done", source)
    for place, cells in enumerate(rows, start=1):
        yield place, checks.mapping("each row is a mapping of column to value", cells)


def _names(cells: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, str]:
    """The column of each property. Raises InvalidInputError."""
    found = dict(columns)
    for name in cells:
        plain = re.sub(r"[^a-z]", "", str(name).lower())
        for known, spellings in COLUMNS.items():
            if plain in spellings and known not in columns and found.setdefault(known, name) != name:
                raise InvalidInputError(
                    f"two columns could be the {known}: say by `columns` which one is", code="COLUMNS_UNCLEAR"
                )
    if found.get("pan") not in cells:
        raise InvalidInputError(
            "no column holds card numbers by its name: say by `columns` which one does",
            code="COLUMNS_UNCLEAR",
        )
    return found


def _row(line: int, cells: Mapping[str, object], names: Mapping[str, str]) -> _Row:
    def cell(known: str) -> str:
        return _text(cells.get(names[known]) if known in names else None)[:CELL_CHARACTERS_MAX]

    if MISSHAPEN in cells:
        message = (
            "the row is too long, its quotes do not close, or it has not as many cells as the first line"
        )
        return _Row(line, None, InvalidInputError(message, code="ROW_MISSHAPEN"))
    name = cell("id")
    try:
        key = checks.text("the id", name) if name else None
        card = CardToIssue(
            pan=_number(cell("pan")),
            expiry=_expiry(cell("expiry"), cell("month"), cell("year")),
            customer=cell("customer") or None,
            par=cell("par") or None,
            idempotency_key=key,
        )
        # An id that could be a card number, or holds the row's, is not repeated.
        number = "".join(re.findall("[0-9]+", cell("pan")))
        secret = could_hold_pan(name) or (len(number) >= SHORTEST_NUMBER and spells(name, number))
        return _Row(line, None if secret else key, card)
    except InvalidInputError as error:
        return _Row(line, None, error)


def _text(value: object) -> str:
    """The text of a cell, which may be of any class. Raises InvalidInputError."""
    if value is None:
        return ""
    return asked("a cell of the row has no text", str, value).strip().strip("\u00a0")


def _number(text: str) -> str:
    """A card number as `issue` reads it. Raises InvalidInputError."""
    if _ROUNDED.fullmatch(text):
        raise InvalidInputError(
            "a spreadsheet has rounded this number: export its column as text", code="PAN_ROUNDED"
        )
    digits = text.lstrip("'\u2019").removesuffix(".0")
    return re.sub(r"[\s\u00a0-]+", " ", digits).strip()


def _expiry(text: str, month: str, year: str) -> CardExpiry | None:
    """The expiry of one cell or two. Raises InvalidInputError."""
    joined = text or (f"{month}/{year}" if month or year else "")
    if not joined:
        return None
    plain = re.sub(r"[\s\u00a0]*([-/.])[\s\u00a0]*", r"\1", joined.lstrip("'").lower())
    for pattern in _PATTERNS:
        found = pattern.fullmatch(plain)
        if found is not None:
            number = _MONTHS.get(found["m"]) or (int(found["m"]) if found["m"].isdecimal() else 0)
            if number:
                return CardExpiry(2000 + int(found["y"][-2:]), number)
    raise InvalidInputError('an expiry of another form than "12/29", "1229" or "2029-12"', code="EXPIRY_FORM")
