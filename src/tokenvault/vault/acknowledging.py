"""Acknowledging what a restore or a failover lost, so that later verifications are clean but for that mark."""

from __future__ import annotations

from tokenvault.audit.acknowledgement import LOSSES_MAX, Acknowledgement, Loss
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.verify.report import AuditReport
from tokenvault.errors import InvalidInputError
from tokenvault.model import checks
from tokenvault.vault.core import Core


async def acknowledge(core: Core, report: AuditReport, operator: str, reason: str) -> int:
    """Write what a report found into the trail, as acknowledged. Returns how many findings that were."""
    checks.instance("report", report, AuditReport)
    checks.text("operator", operator)
    kept = core.trail.ids.kept(checks.text("reason", reason))
    found = (*report.findings, *report.open_findings)
    losses = [loss for loss in map(Loss.of, found) if loss is not None]
    if len(losses) < len(found) or report.findings_omitted:
        raise InvalidInputError(
            "the report has findings that name no range, or too many: these are to be looked into",
            code="NOT_ACKNOWLEDGEABLE",
        )
    for start in range(0, len(losses), LOSSES_MAX):
        await core.trail.note(
            Event(
                time_ms=core.clock.now_ms(),
                action=Action.ACKNOWLEDGE,
                outcome=Outcome.DONE,
                operator=operator,
                acknowledgement=Acknowledgement(kept, tuple(losses[start : start + LOSSES_MAX])),
            )
        )
    return len(losses)
