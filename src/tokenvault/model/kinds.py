"""Stub."""
import enum


class Kind(enum.Enum):
    """What a transaction does."""

    PURCHASE = "purchase"
    CASH = "cash"
    TRANSFER = "transfer"
    VERIFICATION = "verification"
    INCREMENT = "increment"
    CAPTURE = "capture"
    REVERSAL = "reversal"
    REFUND = "refund"
    DISPUTE = "dispute"
