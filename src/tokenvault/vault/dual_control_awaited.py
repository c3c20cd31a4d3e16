"""The vault's methods under dual control, for asyncio.

`dual_control_blocking` is generated from this module by `python -m scripts.blocking_vault`.
"""

from __future__ import annotations

from tokenvault.errors import async_call_boundary
from tokenvault.model import dual_control
from tokenvault.model.dual_control import RevealRequest
from tokenvault.model.pan import Card
from tokenvault.vault import arguments, reveal
from tokenvault.vault.face import AwaitedFace


class AwaitedDualControl(AwaitedFace):
    """What two persons do together: one asks, another one approves."""

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
