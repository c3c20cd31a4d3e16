"""The cards of a batch: read into columns, as single calls read each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypedDict

import numpy as np

from tokenvault.errors import InvalidInputError
from tokenvault.model import checks
from tokenvault.model.domain import Domain
from tokenvault.model.pan import CardExpiry, Pan, PanRule
from tokenvault.model.pan_columns import PanColumns, parse_pans
from tokenvault.model.programs import TokenProgram
from tokenvault.records.card_columns import CardColumns
from tokenvault.vault import arguments
from tokenvault.vault.batch.results import Mask


class CardToIssue(TypedDict, total=False):
    """A card of `issue_many` with what its token has of its own; each is as of `issue`, and unset, as of all tokens.

    `pan` is required.
    """

    pan: str | Pan
    expiry: str | CardExpiry | None
    domain: Domain | None
    token_expiry: str | CardExpiry | None
    assurance: str | None
    par: str | None
    customer: str | None
    metadata: Mapping[str, str] | None
    idempotency_key: str | None


class Own(NamedTuple):
    """What a token of a batch has of its own, besides its card; None where all tokens have it in common."""

    domain: Domain | None = None
    token_expiry: CardExpiry | None = None
    assurance: str | None = None
    par: str | None = None
    customer: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    idempotency_key: str | None = None


NOTHING: Final = Own()


class ReadCards(NamedTuple):
    """The cards of a chunk.

    Attributes:
        cards: a row for each, with PAN length 0 where it was refused.
        refused: the errors of those, by row.
        own: what tokens have of their own, by row; of others nothing.
    """

    cards: CardColumns
    refused: dict[int, InvalidInputError]
    own: dict[int, Own]


def read_cards(items: Sequence[object], rule: PanRule) -> ReadCards:
    """Read cards, each a PAN by a rule, a pair of PAN and expiry, or a CardToIssue."""
    numbers: list[object] = []
    refused: dict[int, InvalidInputError] = {}
    own: dict[int, Own] = {}
    months = np.zeros(len(items), np.uint16)
    known: dict[object, int] = {}
    for row, item in enumerate(items):
        if isinstance(item, Mapping):
            number = expiry = None
            try:
                fields = checks.mapping("a card to issue is a CardToIssue", item)
                number, expiry = fields.get("pan"), fields.get("expiry")
                own[row] = _own(fields)
            except InvalidInputError as error:
                refused[row] = error
        else:
            number, expiry = _pair(item)
        numbers.append(number)
        if expiry is not None:
            try:
                months[row] = _month(expiry, known)
            except InvalidInputError as error:
                refused[row] = error
    pans, errors = parse_pans(numbers, rule)
    refused.update(errors)  # as a single call reads it, the PAN comes first
    for row in refused:
        pans.values[row] = pans.lengths[row] = 0
    return ReadCards(CardColumns(pans, months), refused, own)


def _own(item: Mapping[object, object]) -> Own:
    unknown = item.keys() - CardToIssue.__annotations__.keys()
    if unknown:
        raise InvalidInputError("a card to issue has another key than those of CardToIssue")
    given: dict[str, Any] = {str(name): value for name, value in item.items() if value is not None}
    domain, expiry, pairs = (given.get(name) for name in ("domain", "token_expiry", "metadata"))
    par, assurance = given.get("par"), given.get("assurance")
    return Own(
        domain=None if domain is None else arguments.own_domain(domain),
        token_expiry=arguments.optional_expiry(expiry),
        assurance=None if assurance is None else checks.assurance("assurance", assurance),
        par=None if par is None else checks.par(par),
        customer=arguments.optional_text("customer", given.get("customer")),
        metadata=tuple(sorted((arguments.metadata(pairs) or {}).items())),
        idempotency_key=arguments.optional_text("idempotency_key", given.get("idempotency_key")),
    )


def _pair(item: object) -> tuple[object, object]:
    if type(item) is tuple or type(item) is list:
        # Another number of parts is no PAN either, and refused as such.
        return (item[0], item[1]) if len(item) == 2 else (None, None)
    return item, None


def _month(expiry: object, known: dict[object, int]) -> int:
    """The month of an expiry, which is parsed once for all cards that have it."""
    if type(expiry) is not str:
        return CardExpiry.parse(expiry).month_number  # type: ignore[arg-type] # refuses what is not an expiry
    if expiry not in known:
        known[expiry] = CardExpiry.parse(expiry).month_number
    return known[expiry]


def in_token_bins(pans: PanColumns, programs: Iterable[TokenProgram]) -> Mask:
    """Which PANs lie in the token BIN of any of the programs."""
    bins: dict[int, set[int]] = defaultdict(set)
    for program in programs:
        bins[len(program.format.bin)].add(int(program.format.bin))
    found = np.zeros(len(pans.values), np.bool_)
    for length in np.unique(pans.lengths[pans.lengths > 0]).tolist():
        chosen = pans.lengths == length
        for bin_length, values in bins.items():
            prefixes = pans.values[chosen] // np.uint64(10 ** (length - bin_length))
            found[chosen] |= np.isin(prefixes, np.array(sorted(values), np.uint64))
    return found
