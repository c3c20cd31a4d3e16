"""The vault's methods by which cards come and leave otherwise than for payments, for asyncio.

`exchange_blocking` is generated from this module by `python -m scripts.blocking_vault`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenvault.errors import async_call_boundary
from tokenvault.model import checks, dual_control
from tokenvault.model.domain import Domain
from tokenvault.model.dual_control import RevealRequest
from tokenvault.model.pan import Card
from tokenvault.records.token_info import TokenInfo
from tokenvault.vault import arguments, reveal
from tokenvault.vault.batch import run as batches
from tokenvault.vault.batch.imports import Importing, TokenToImport
from tokenvault.vault.batch.results import IssueBatchResult
from tokenvault.vault.face import AwaitedFace


class AwaitedExchange(AwaitedFace):
    """What two persons do together, one of whom asks and the other approves; and tokens that come from elsewhere."""

    @async_call_boundary
    async def request_reveal(self, token_or_reference: str, *, operator: str, purpose: str) -> RevealRequest:
        """Ask to see the card number behind a token. Another person has to approve it; nothing is seen by this.

        Args:
            token_or_reference: the token.
            operator: the person who asks, as the host knows them by its own sign-on; case and blanks do not make
                another person. No 12 digits in a row.
            purpose: one of the RevealPolicy's.

        Returns:
            The request: its `id` is for the person who approves it.

        Raises:
            PermissionDeniedError: the purpose is not one of the policy's, or the person has asked too often today.
            TokenNotFoundError: there is no such token.
            LifecycleError: the token is deleted.
            ConfigurationError: the vault was opened without a RevealPolicy.
        """
        core, name = self._open(), arguments.token_or_reference(token_or_reference)
        return await reveal.request_reveal(core, name, dual_control.operator(operator), purpose)

    @async_call_boundary
    async def approve(self, request: RevealRequest | str, *, operator: str) -> RevealRequest:
        """Approve another person's request.

        Args:
            request: as `request_reveal` gave it, or its id.
            operator: the person who approves: another one than who asked.

        Returns:
            The request, approved: what it is for, and by whom.

        Raises:
            PermissionDeniedError: it is the same person, or the request is unknown, late, approved or used.
            ConfigurationError, TokenNotFoundError, LifecycleError: as `request_reveal`.
        """
        core, which = self._open(), dual_control.request_id(request)
        return await reveal.approve(core, which, dual_control.operator(operator))

    @async_call_boundary
    async def reveal(self, request: RevealRequest | str, *, operator: str) -> Card:
        """The card behind the token of an approved request: once, to the person who asked for it.

        The event is written first. A call that fails may have used the request up: ask again.

        Args:
            request: as `request_reveal` or `approve` gave it, or its id.
            operator: the person who asked.

        Raises:
            PermissionDeniedError: the request is unknown, late, used, not approved, or another person's.
            ConfigurationError, TokenNotFoundError, LifecycleError: as `request_reveal`.
        """
        core, which = self._open(), dual_control.request_id(request)
        return await reveal.reveal(core, which, dual_control.operator(operator))

    @async_call_boundary
    async def import_tokens(
        self,
        rows: Iterable[TokenToImport],
        *,
        requestor: str | None = None,
        program: str | None = None,
        domain: Domain | None = None,
        active: bool = True,
        operator: str | None = None,
    ) -> IssueBatchResult[TokenInfo]:
        """Import tokens with given values, from another vault or a vendor: each with its card, also an expired one.

        Rows are taken in chunks of 8,000, each written in one step with one audit event, whose code is IMPORTED. A
        row whose token is there already, of the same card, requestor and program, has that token as its result: an
        import that ended early is done again.

        Args:
            rows: a TokenToImport each, in any iterable.
            requestor: of the rows that name none: it has Permission.ISSUE and the program.
            program: of the rows that name none; a token has to be one of its format.
            domain: of the rows that name none.
            active: False for tokens that `activate` makes usable later.
            operator: the person behind the import.

        Returns:
            For each row, in order, its TokenInfo, or an error: TOKEN_TAKEN where the token is another card's,
            CARD_HAS_ANOTHER_TOKEN where a convergent program has one for the card, TOKEN_FORMAT_DIFFERS, PAN_IS_TOKEN
            and what `issue` would raise. See `issue_many` for a database that is away.

        Raises:
            InvalidInputError: an argument that all rows have in common is not acceptable, or the iterable failed.
        """
        common = Importing(
            requestor=arguments.caller(requestor),
            program=arguments.optional_text("program", program),
            domain=arguments.own_domain(domain),
            active=checks.true_or_false("active", active),
            operator=arguments.optional_text("operator", operator),
        )
        return await batches.import_all(self._open(), rows, common)
