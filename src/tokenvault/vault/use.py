"""Using a token: is it allowed, and if so, the card behind it."""

from __future__ import annotations

from typing import Final, NamedTuple

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.guard_note import Failure
from tokenvault.audit.use_note import UseNote
from tokenvault.errors import DomainRestrictionError, IntegrityError, InvalidInputError, TokenVaultError
from tokenvault.model import accounting
from tokenvault.model.clear_ids import ClearIds
from tokenvault.model.decision import Decision, decide
from tokenvault.model.kinds import KINDS
from tokenvault.model.ledger import LedgerEntry, Uses
from tokenvault.model.pan import Card
from tokenvault.model.programs import Permission
from tokenvault.model.restrictions import Restrictions
from tokenvault.model.transaction import Transaction
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import effective_expiry
from tokenvault.vault.core import ONLY_DELETED, Core, Unsealed
from tokenvault.vault.refusals import Refusals
from tokenvault.vault.risk import RISK_UNANSWERED, RiskDesk, Verdict
from tokenvault.vault.uses import UseNames, genuine_events

CONTAINS_PAN_CODE: Final = "CARD_NUMBER_IN_TRANSACTION"
CONTAINS_PAN: Final = "a field of the transaction holds the card number: use ids that do not"


class Case(NamedTuple):
    """A use of a token, with all that it is decided by.

    Attributes:
        unsealed: the token's record and card.
        restrictions: the domains that apply.
        names: by which the ledger knows the transaction.
        uses: what the ledger has on it.
        transaction: the use.
        now_ms: when, in milliseconds of the Unix epoch.
    """

    unsealed: Unsealed
    restrictions: Restrictions
    names: UseNames
    uses: Uses
    transaction: Transaction
    now_ms: int


class Judgment(NamedTuple):
    """What comes of a use.

    Attributes:
        refusal: why the card is not handed out; None where it is.
        codes: of the controls that failed.
        note: what the event notes.
        entry: what it adds to the ledger; None where it is refused, or a retry.
        changed: the record as it has to be written with the event; None: the event is written alone.
    """

    refusal: TokenVaultError | None
    codes: tuple[str, ...]
    note: UseNote
    entry: LedgerEntry | None = None
    changed: TokenRecord | None = None

    def after(self, verdict: Verdict, case: Case) -> Judgment:
        """The judgment of a use that is allowed, once the risk control was asked."""
        if verdict.violation is None:
            note = self.note._replace(score=verdict.score)
            return self._replace(note=note, codes=() if verdict.answered else (RISK_UNANSWERED,))
        refused = case.names.note(case.transaction, None, allowed=False)._replace(score=verdict.score)
        return Judgment(DomainRestrictionError((verdict.violation,)), (verdict.violation.code,), refused)

    @property
    def outcome(self) -> Outcome:
        """How the use ended."""
        return Outcome.DONE if self.refusal is None else Outcome.DENIED

    def event(self, case: Case, ids: ClearIds, failures: tuple[Failure, ...] = ()) -> Event:
        """The event of the use, with what the guard counts of it."""
        record, card = case.unsealed
        # The card number stands in no field of a use that is allowed.
        known = None if self.refusal is None or card is None else card.pan
        return Event(
            time_ms=case.now_ms,
            action=Action.DETOKENIZE,
            outcome=self.outcome,
            requestor=case.transaction.requestor,
            reference=record.reference,
            transaction_id=ids.kept(case.transaction.id, known),
            codes=self.codes,
            revision=0 if self.changed is None else self.changed.revision,
            use=self.note,
            failures=failures,
        )


async def check(core: Core, name: str | bytes, transaction: Transaction) -> Decision:
    """Decide on a use. No limit counts it; whatever is not allowed leaves an event, as it could be a guess."""
    await core.permit(transaction.requestor, Permission.DETOKENIZE, Action.CHECK, transaction.id)
    case = await _case(core, name, transaction, UseNames.of(core.keys, transaction), Action.CHECK)
    try:
        decision = await with_risk(case, decision_on(case), core.risk_desk())
    except InvalidInputError:
        await core.trail.note(refused_check(core, case, (CONTAINS_PAN_CODE,)))
        raise
    if not decision.allowed:
        refusals = Refusals(core)
        event = refused_check(core, case, codes_of(decision))
        refusals.add(case.unsealed.record, transaction, event.codes)
        await core.trail.note(event._replace(failures=refusals.tally.failures))
        await refusals.settle()
    return decision


async def with_risk(case: Case, decision: Decision, desk: RiskDesk | None) -> Decision:
    """What a check decides, once the risk control was asked about a use that is allowed."""
    if desk is None or not decision.allowed or case.uses.before is not None:
        return decision
    verdict = await desk.verdict(*case.unsealed, case.transaction, case.now_ms, checking=True)
    return decision if verdict.violation is None else Decision((verdict.violation,))


async def judged(case: Case, desk: RiskDesk | None) -> Judgment:
    """As `judge`, once the risk control was asked about a use that is allowed."""
    judgment = judge(case)
    if desk is None or judgment.refusal is not None or case.uses.before is not None:
        return judgment
    verdict = await desk.verdict(*case.unsealed, case.transaction, case.now_ms, checking=False)
    return judgment.after(verdict, case)


def refused_check(core: Core, case: Case, codes: tuple[str, ...]) -> Event:
    """The event of a use that was asked about, and would not be allowed."""
    (record, card), transaction = case.unsealed, case.transaction
    return Event(
        time_ms=case.now_ms,
        action=Action.CHECK,
        outcome=Outcome.DENIED,
        requestor=transaction.requestor,
        reference=record.reference,
        transaction_id=core.trail.ids.kept(transaction.id, None if card is None else card.pan),
        codes=codes,
    )


def codes_of(decision: Decision) -> tuple[str, ...]:
    """The codes of the controls that failed."""
    return tuple(violation.code for violation in decision.violations)


async def detokenize(core: Core, name: str | bytes, transaction: Transaction) -> Card:
    """Decide on a use, record it, and only then hand out the card."""
    await core.permit(transaction.requestor, Permission.DETOKENIZE, Action.DETOKENIZE, transaction.id)
    names = UseNames.of(core.keys, transaction)
    refusals, desk = Refusals(core), core.risk_desk()
    conflicts = 0
    while True:
        case = await _case(core, name, transaction, names, Action.DETOKENIZE)
        judgment = await judged(case, desk)
        if judgment.refusal is not None:
            refusals.add(case.unsealed.record, transaction, judgment.codes)
        if not await _write(core, case, judgment, refusals.tally.failures):
            break
        conflicts = await core.conflict(conflicts)
    if judgment.refusal is not None:
        await refusals.settle()
        raise judgment.refusal
    card = case.unsealed.card
    if card is None:  # pragma: no cover # no use of a deleted token is allowed, and no other lacks its card
        raise IntegrityError(ONLY_DELETED)
    return card


async def _case(
    core: Core, name: str | bytes, transaction: Transaction, names: UseNames, action: Action
) -> Case:
    """Read what a use is decided by, in one round trip where its domain is known; a failure is noted."""
    found = await core.store.get_use(name, names.every)
    unsealed = await core.found(name, found.record, action, transaction.requestor, transaction.id)
    # Of many calls at once, no more get an answer than of calls one after the other.
    await core.refuse_locked_out(transaction.requestor, action, transaction.id)
    record = unsealed.record
    restrictions = await core.documents.restrictions(core.parties, record, transaction.requestor)
    uses = names.uses(await genuine_events(core, found.events, (record.reference,)), transaction)
    return Case(unsealed, restrictions, names, uses, transaction, core.clock.now_ms())


async def _write(core: Core, case: Case, judgment: Judgment, failures: tuple[Failure, ...]) -> list[str]:
    """Write what comes of a use. Returns the token if another change came first: then nothing is written."""
    record, card = case.unsealed
    event = judgment.event(case, core.trail.ids, failures if judgment.refusal is not None else ())
    if judgment.changed is not None:
        return await core.replace(Unsealed(judgment.changed, card), event)
    # What is handed out was decided on this revision: a change that was acknowledged since must hold.
    fence = () if judgment.refusal is not None else ((record.token, record.revision),)
    return await core.trail.note(event, fence)


def decision_on(case: Case) -> Decision:
    """Decide on a use. Raises InvalidInputError where it is allowed, but its transaction holds the card number."""
    decision, card = _decide(case), case.unsealed.card
    if decision.allowed and card is not None and case.transaction.contains_pan(card.pan):
        raise InvalidInputError(CONTAINS_PAN, code=CONTAINS_PAN_CODE)
    return decision


def judge(case: Case) -> Judgment:
    """Decide on a use to be made."""
    record, card = case.unsealed
    decision = _decide(case)
    refusal: TokenVaultError | None = None
    codes: tuple[str, ...] = ()
    if card is None or not decision.allowed:
        refusal = DomainRestrictionError(decision.violations)
        codes = codes_of(decision)
    elif case.transaction.contains_pan(card.pan):
        # Only a caller that would get the card learns that it stands in the transaction: others could test guesses.
        refusal, codes = InvalidInputError(CONTAINS_PAN, code=CONTAINS_PAN_CODE), (CONTAINS_PAN_CODE,)
    if refusal is not None:
        return Judgment(refusal, codes, case.names.note(case.transaction, None, allowed=False))
    recorded = accounting.record(record.usage, case.restrictions, case.transaction, case.now_ms, case.uses)
    note = case.names.note(case.transaction, recorded.entry, allowed=True)
    # Follow-ups of one use change what the next one may do: each goes through the record's compare-and-swap.
    follows_up = recorded.entry is not None and KINDS[case.transaction.kind].follow_up
    if recorded.usage is record.usage and not follows_up:
        return Judgment(None, (), note, recorded.entry)
    return Judgment(None, (), note, recorded.entry, record.used(recorded.usage, case.now_ms))


def _decide(case: Case) -> Decision:
    record, card = case.unsealed
    expiry = effective_expiry(record, card)
    return decide(record, expiry, case.restrictions, case.transaction, case.now_ms, case.uses)
