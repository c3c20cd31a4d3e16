"""Events of a vault as records of `logging`."""

from __future__ import annotations

import logging
from typing import Final

import attrs

from tokenvault.vault.observer import DONE, REFUSED, CallEnded, ConflictMet, Decided, LockedOut, Observed


class LoggingObserver:
    """Writes events to a logger; each record has the event's fields as a dict in its attribute `tokenvault`.

    Calls that are done and allowed uses are DEBUG, refusals and conflicts INFO, lock-outs WARNING, failures ERROR.

    Args:
        logger: unset, the one named "tokenvault".
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger: Final = logger or logging.getLogger("tokenvault")

    def observe(self, event: Observed) -> None:
        """Write an event."""
        fields = {"tokenvault": attrs.asdict(event)}
        if isinstance(event, CallEnded):
            level = {DONE: logging.DEBUG, REFUSED: logging.INFO}.get(event.outcome, logging.ERROR)
            shown = event.outcome if event.code is None else f"{event.outcome} ({event.code})"
            self._logger.log(level, "%s %s in %.1f ms", event.name, shown, event.milliseconds, extra=fields)
        elif isinstance(event, Decided):
            level = logging.DEBUG if event.allowed else logging.INFO
            told = "allowed" if event.allowed else f"not allowed: {', '.join(event.codes)}"
            self._logger.log(level, "%s %s", event.name, told, extra=fields)
        elif isinstance(event, ConflictMet):
            self._logger.info("a change starts over, for the %d. time", event.attempts, extra=fields)
        elif isinstance(event, LockedOut):
            self._logger.warning("requestor %s is locked out: %s", event.requestor, event.cause, extra=fields)
