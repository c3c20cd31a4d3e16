"""Uses that were refused, as the guard counts them: for their requestor, and for their token where that is wanted."""

from __future__ import annotations

from contextlib import suppress

from tokenvault.audit.guard_note import FAILURE_BYTES, Account, Failure, FailureKind
from tokenvault.errors import ConflictError, LifecycleError, RequestorLockedOutError
from tokenvault.model.controls import STRONG_AUTHENTICATION_REQUIRED
from tokenvault.model.lifecycle import Actor, Change, TokenStatus
from tokenvault.model.transaction import Transaction
from tokenvault.records.record import TokenRecord
from tokenvault.vault import manage
from tokenvault.vault.core import Core
from tokenvault.vault.guard import Tally


class Refusals:
    """What one call, of a use or of many, counts for the guard."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.tally = Tally(core.guards)
        self._of_tokens: dict[bytes, int] = {}  # by reference, after how many the token is suspended

    def add(self, record: TokenRecord, transaction: Transaction, codes: tuple[str, ...]) -> None:
        """Count a use that was refused; not one that passes once the cardholder is authenticated strongly."""
        if set(codes) == {STRONG_AUTHENTICATION_REQUIRED}:
            return
        core, reference = self._core, record.reference
        # The content too: who changes it under one id tries what the token is good for.
        content = transaction.content.hex()
        use = core.keys.failure("use", transaction.requestor, transaction.id, reference.hex(), content)
        program = core.parties.known.by_name.get(record.program)  # its restrictions were read before
        most = None if program is None else program.suspend_after_refusals
        if most is None or record.status is not TokenStatus.ACTIVE:
            self.tally.refusal(transaction.requestor, use)
        else:
            self.tally.refusal(transaction.requestor, use, reference)
            self._of_tokens[reference] = most

    async def settle(self) -> RequestorLockedOutError | None:
        """Lock out and suspend what has failed too often, once the event is written. Returns as `Tally.settle`."""
        counted = {failure.account for failure in self.tally.failures}
        for reference, most in self._of_tokens.items():
            account = Account.TOKEN.of(reference)
            if account in counted and await self._core.guards.refusals(reference) >= most:
                mark = Failure(FailureKind.SUSPENSION, account, bytes(FAILURE_BYTES))
                # Deleted since, or changed by others all the time: the next refusal tries again.
                with suppress(LifecycleError, ConflictError):
                    by_vault = manage.By(actor=Actor.VAULT)
                    core = self._core.lasting(reference)
                    await manage.change_status(core, reference, Change.SUSPEND, by_vault, (mark,))
        return await self.tally.settle()
