"""Observers of a vault: the port and its events, and adapters for `logging` and OpenTelemetry (extra `[otel]`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenvault.observers.logs import LoggingObserver
from tokenvault.vault.observer import CallEnded, ConflictMet, Decided, LockedOut, Observer

if TYPE_CHECKING:
    from tokenvault.observers.telemetry import OpenTelemetryObserver

__all__ = [
    "CallEnded",
    "ConflictMet",
    "Decided",
    "LockedOut",
    "LoggingObserver",
    "Observer",
    "OpenTelemetryObserver",
]


def __getattr__(name: str) -> object:
    if name == "OpenTelemetryObserver":
        from tokenvault.observers.telemetry import OpenTelemetryObserver  # noqa: PLC0415 # of an extra

        return OpenTelemetryObserver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
