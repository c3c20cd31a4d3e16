"""Events of a vault as metrics and spans of OpenTelemetry.

Names follow its semantic conventions for clients: durations in seconds, counts with a unit in braces, `error.type`
where a call did not end well. With tokenvault.client before each name, and tokenvault before each attribute but that:

    operation.duration    histogram, s            operation.name, error.type
    decisions             counter, {decision}     operation.name, decision.allowed
    violations            counter, {violation}    operation.name, violation.code
    conflicts             counter, {conflict}
    lock_outs             counter, {lock_out}     lock_out.cause

A span is made once its call has ended, in another thread: it has the call's own times, and no parent.
"""

from __future__ import annotations

from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from tokenvault.vault.observer import DONE, REFUSED, CallEnded, ConflictMet, Decided, LockedOut, Observed

SCOPE: Final = "tokenvault"


class OpenTelemetryObserver:
    """Records metrics, and a span for each call. Needs the extra `payment-tokenvault[otel]`.

    Args:
        meter_provider, tracer_provider: unset, the global ones.
    """

    def __init__(
        self,
        meter_provider: metrics.MeterProvider | None = None,
        tracer_provider: trace.TracerProvider | None = None,
    ) -> None:
        meter = metrics.get_meter(SCOPE, meter_provider=meter_provider)
        self._tracer: Final = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._duration: Final = meter.create_histogram(
            "tokenvault.client.operation.duration", "s", "Duration of calls of the vault."
        )
        self._decisions: Final = meter.create_counter(
            "tokenvault.client.decisions", "{decision}", "Uses that were decided on."
        )
        self._violations: Final = meter.create_counter(
            "tokenvault.client.violations", "{violation}", "Controls that uses failed."
        )
        self._conflicts: Final = meter.create_counter(
            "tokenvault.client.conflicts", "{conflict}", "Changes that started over."
        )
        self._lock_outs: Final = meter.create_counter(
            "tokenvault.client.lock_outs", "{lock_out}", "Requestors that the guard locked out."
        )

    def observe(self, event: Observed) -> None:
        """Record an event."""
        if isinstance(event, CallEnded):
            self._record_call(event)
        elif isinstance(event, Decided):
            name = {"tokenvault.operation.name": event.name}
            self._decisions.add(1, {**name, "tokenvault.decision.allowed": event.allowed})
            for code in event.codes:
                self._violations.add(1, {**name, "tokenvault.violation.code": code})
        elif isinstance(event, ConflictMet):
            self._conflicts.add(1)
        elif isinstance(event, LockedOut):
            self._lock_outs.add(1, {"tokenvault.lock_out.cause": event.cause})

    def _record_call(self, event: CallEnded) -> None:
        attributes: dict[str, str | int] = {"tokenvault.operation.name": event.name}
        if event.code is not None:
            attributes["error.type"] = event.code
        self._duration.record(event.milliseconds / 1_000, attributes)
        if event.items is not None:
            attributes["tokenvault.operation.batch.size"] = event.items
        began_ns = event.ended_ns - round(event.milliseconds * 1e6)
        span = self._tracer.start_span(
            f"tokenvault {event.name}", kind=SpanKind.CLIENT, attributes=attributes, start_time=began_ns
        )
        if event.outcome not in (DONE, REFUSED):
            span.set_status(Status(StatusCode.ERROR))
        span.end(event.ended_ns)
