"""The kinds of a transaction, and what each does: one table."""

from __future__ import annotations

import enum
from typing import Final

import attrs

from tokenvault.model.words import Words


class Kind(Words):
    """What a transaction does to the money.

    PURCHASE, CASH, TRANSFER: a new payment.
    VERIFICATION: asks whether a payment would do; takes no money.
    INCREMENT: raises what a use has authorised.
    CAPTURE: takes what a use has authorised, in one or in parts.
    REVERSAL: gives back what was not captured, as after a decline.
    REFUND: pays back what was captured.
    DISPUTE: tells of a chargeback.
    """

    PURCHASE = "purchase"
    CASH = "cash"
    TRANSFER = "transfer"
    VERIFICATION = "verification"
    INCREMENT = "increment"
    CAPTURE = "capture"
    REVERSAL = "reversal"
    REFUND = "refund"
    DISPUTE = "dispute"


class Binding(enum.Enum):
    """Groups of controls that bind a kind or do not.

    PARTIES: lists of who, and of what kind.
    LISTS: of where, by what, and what for.
    TERMS: validity, assurance method, cryptogram.
    AMOUNTS: currency and size of the amount.
    LIMITS: limits, the least time between uses, and the strong authentication that an amount asks for.
    """

    PARTIES = enum.auto()
    LISTS = enum.auto()
    TERMS = enum.auto()
    AMOUNTS = enum.auto()
    LIMITS = enum.auto()


class Original(enum.Enum):
    """What the `original` of a transaction has to be.

    NONE: it names none, but for a merchant-initiated purchase, which may name any use.
    OPEN: a use of which neither all is captured nor all is given back.
    USE: any use that takes money; or none at all where the domain allows that.
    """

    NONE = enum.auto()
    OPEN = enum.auto()
    USE = enum.auto()


@attrs.frozen(kw_only=True)
class KindRule:
    """What a kind does.

    Attributes:
        counts_use: whether limits of uses count it.
        counts_money: whether limits of money count it.
        original: what it follows up.
        live: whether it needs an active, unexpired token. Others are allowed while a token is expired, winding
            down, or suspended by anybody but the vault.
        bound_by: the controls that bind it.
    """

    counts_use: bool
    counts_money: bool
    original: Original
    live: bool
    bound_by: frozenset[Binding]

    @property
    def follow_up(self) -> bool:
        """Whether it belongs to a use that was made before, and is none itself."""
        return self.original is not Original.NONE


_ALL: Final = frozenset(Binding)


def _payment() -> KindRule:
    return KindRule(counts_use=True, counts_money=True, original=Original.NONE, live=True, bound_by=_ALL)


def _follow_up(original: Original) -> KindRule:
    # Their use was bound by all controls, as they were then. What one says of where and by what is as it was there,
    # which the domain of today may not list any more, or its own, as of a refund in a shop; and one that leaves it
    # out passes anyway.
    parties = frozenset({Binding.PARTIES})
    return KindRule(counts_use=False, counts_money=False, original=original, live=False, bound_by=parties)


KINDS: Final = {
    Kind.PURCHASE: _payment(),
    Kind.CASH: _payment(),
    Kind.TRANSFER: _payment(),
    Kind.VERIFICATION: KindRule(
        counts_use=False,
        counts_money=False,
        original=Original.NONE,
        live=True,
        bound_by=frozenset({Binding.PARTIES, Binding.LISTS, Binding.TERMS}),
    ),
    Kind.INCREMENT: KindRule(
        counts_use=False, counts_money=True, original=Original.OPEN, live=True, bound_by=_ALL
    ),
    Kind.CAPTURE: _follow_up(Original.OPEN),
    Kind.REVERSAL: _follow_up(Original.OPEN),
    Kind.REFUND: _follow_up(Original.USE),
    Kind.DISPUTE: _follow_up(Original.USE),
}
"""What each kind does."""
