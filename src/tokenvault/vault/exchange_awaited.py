"""The vault's methods for operators, and by which cards come and leave otherwise than for payments, for asyncio.

`exchange_blocking` is generated from this module by `python -m scripts.blocking_vault`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenvault.audit.event import Action
from tokenvault.audit.export import HISTORY_MAX, AuditEvent
from tokenvault.audit.verify.report import AuditReport
from tokenvault.errors import InvalidInputError, async_boundary, async_call_boundary
from tokenvault.model import checks, dual_control
from tokenvault.model.domain import Domain
from tokenvault.model.dual_control import RevealRequest
from tokenvault.model.pan import Card
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.records.token_info import TokenInfo
from tokenvault.vault import acknowledging, arguments, capacity, export, health, history, manage, reveal
from tokenvault.vault.batch import run as batches
from tokenvault.vault.batch.imports import Importing, TokenToImport
from tokenvault.vault.batch.results import IssueBatchResult
from tokenvault.vault.export import ExportReport, Writable
from tokenvault.vault.face import AwaitedFace
from tokenvault.vault.recipient import Recipient
from tokenvault.vault.stored_parties import DirectoryChange


class AwaitedExchange(AwaitedFace):
    """What operators do: two together, one of whom asks and the other approves; and with tokens from elsewhere."""

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
        return await reveal.request_reveal(core, name, operator, purpose)

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
        subject, number = which
        if subject == number:
            return await export.approve(core, number, operator)
        return await reveal.approve(core, which, operator)

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
        return await reveal.reveal(core, which, operator)

    @async_call_boundary
    async def request_export(
        self,
        *,
        public_key: str | bytes,
        operator: str,
        purpose: str,
        program: str | None = None,
        requestor: str | None = None,
    ) -> RevealRequest:
        """Ask to export cards with their tokens to the holder of a key. Another person has to approve it.

        Args:
            public_key: in PEM, RSA of 3,072 bits or more, or EC on P-256, P-384 or P-521; the request is good for it
                alone. Compare its thumbprint (`RevealRequest.terms`) with the holder, by another way than it came.
            operator: the person who asks; as of `request_reveal`.
            purpose: one of the RevealPolicy's.
            program: only tokens of this one.
            requestor: only those that were issued to this one.

        Raises:
            PermissionDeniedError, ConfigurationError: as `request_reveal`; also where joserfc is not installed.
        """
        core, recipient = self._open(), Recipient(public_key)
        named = arguments.optional_text("program", program)
        whose = arguments.caller(requestor)
        return await export.request_export(core, operator, purpose, recipient, named, whose)

    @async_call_boundary
    async def export_cards(
        self, request: RevealRequest | str, *, public_key: str | bytes, operator: str, to: Writable
    ) -> ExportReport:
        """Write the cards and tokens of an approved export, encrypted: once, for the person who asked for it.

        With domains, counters, status, metadata, references. Each line is a JWE (RFC 7516: RSA-OAEP-256 or ECDH-ES,
        with A256GCM) of at most 500 tokens, written once the event of their export is. Uses that are made meanwhile
        may be left out of the counters: let no requestor use the tokens. `open_export` and `import_tokens` take them
        into another vault.

        Args:
            request: as `request_export` or `approve` gave it, or its id.
            public_key: the one that was approved.
            operator: the person who asked.
            to: an open text file, or what else has a method `write`.

        Raises:
            PermissionDeniedError: the request is unknown, late, used, not approved, another person's or for another
                key.
            IntegrityError: a record is not what the vault sealed; nothing of it is written.
            ConfigurationError: as `request_export`.
        """
        core, which = self._open(), dual_control.request_id(request)
        checks.offers("to", to, "write", "an open text file")
        return await export.export_cards(core, which, operator, Recipient(public_key), to)

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
            requestor: of the rows that name none. Each is registered, and has the program unless the row has a
                state; no Permission is asked for, as the operator imports.
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

    @async_call_boundary
    async def release(self, requestor: str, *, operator: str | None = None) -> None:
        """Let a requestor in that the guard locked out; what it has failed before counts no more.

        This process does so at once, others within `Guard.refresh`. No requestor may do this.

        Args:
            requestor: id of the requestor.
            operator: the person behind the call.

        Raises:
            PermissionDeniedError: the vault has no such requestor.
        """
        core, whom = self._open(), checks.requestor_id("requestor", requestor)
        await manage.release(core, whom, arguments.by(None, operator))

    @async_call_boundary
    async def put_program(self, program: TokenProgram, *, operator: str | None = None) -> None:
        """Add a program, or change the one of its name, in the database of a vault with a StoredDirectory.

        Every running vault sees it within the directory's `max_age_seconds`. Its audit event comes first.

        Raises:
            ConfigurationError: this vault has no StoredDirectory.
            ConflictError: others keep changing the same program.
        """
        checks.instance("program", program, TokenProgram)
        change = DirectoryChange(Action.PUT_PROGRAM, program, arguments.optional_text("operator", operator))
        await self._open().changing.put(change)

    @async_call_boundary
    async def put_requestor(self, requestor: TokenRequestor, *, operator: str | None = None) -> None:
        """Add a requestor, or change the one of its id, in the database of a vault with a StoredDirectory.

        Every running vault sees it within the directory's `max_age_seconds`. Its audit event comes first.

        Raises:
            InvalidInputError: it has a program that the directory does not have.
            ConfigurationError, ConflictError: as `put_program`.
        """
        checks.instance("requestor", requestor, TokenRequestor)
        change = DirectoryChange(
            Action.PUT_REQUESTOR, requestor, arguments.optional_text("operator", operator)
        )
        await self._open().changing.put(change)

    @async_call_boundary
    async def disable_requestor(self, requestor: str, *, operator: str | None = None) -> None:
        """Let a requestor do nothing more. Its tokens still serve the others that their domains name.

        `put_requestor` lets it act again.

        Raises:
            InvalidInputError: there is no such requestor.
            ConfigurationError, ConflictError: as `put_program`.
        """
        named = checks.requestor_id("requestor", requestor)
        await self._open().changing.disable(named, arguments.optional_text("operator", operator))

    @async_call_boundary
    async def acknowledge(self, report: AuditReport, *, operator: str, reason: str) -> int:
        """Acknowledge what a verification found after a restore or a failover, by an event that names each range.

        Later verifications have it in `AuditReport.acknowledged`, and are intact but for that. What is found beyond
        the ranges is a finding as before.

        Args:
            report: what `verify_audit` returned, with `since` where an anchor is kept.
            operator: the person who answers for it, 1 to 64 printable ASCII characters.
            reason: why it is so, likewise; one that could hold a card number is kept as a digest.

        Returns:
            How many findings are acknowledged.

        Raises:
            InvalidInputError: an argument is of another form, or a finding names no range that could be acknowledged.
        """
        return await acknowledging.acknowledge(self._open(), report, operator, reason)

    @async_call_boundary
    async def programs(self) -> list[TokenProgram]:
        """The programs of this vault, by name; those that it has met, where its directory does not list them all."""
        core = self._open()
        await core.parties.refresh()
        return sorted(core.parties.known.by_name.values(), key=lambda program: program.name)

    @async_call_boundary
    async def requestor(self, requestor: str) -> TokenRequestor:
        """A requestor, by its id, as this vault acts on it now.

        Raises:
            InvalidInputError: there is no such requestor.
        """
        found = await self._open().parties.requestor(checks.requestor_id("requestor", requestor))
        if found is None:
            raise InvalidInputError("there is no such requestor", code="REQUESTOR_UNKNOWN")
        return found

    @async_call_boundary
    async def history(
        self, token_or_reference: str, *, after: int = 0, limit: int = HISTORY_MAX
    ) -> list[AuditEvent]:
        """What the audit trail says of a token, each event authenticated, by time, stream and number.

        By its reference (32 hexadecimal digits) also where the record is gone. Raises TokenNotFoundError.

        Args:
            token_or_reference: the token.
            after: how many events to pass over: with `limit`, for reading in pages.
            limit: the most events to return, from 1 to 1,000.
        """
        core, name = self._open(), arguments.token_or_reference(token_or_reference)
        passed_over = checks.whole_number("after", after, 0, arguments.AFTER_MAX)
        most = checks.whole_number("limit", limit, 1, HISTORY_MAX)
        return await history.history(core, name, after=passed_over, limit=most)

    @async_call_boundary
    async def capacity(self, *, recent_days: int = capacity.RECENT_DAYS) -> tuple[capacity.Capacity, ...]:
        """How full each program is, and when it will be at the rate of the recent days.

        Tokens are not counted: the store keeps their number. The rate is exact where they are few, else an estimate
        by some of the latest: what is read does not grow with the tokens that there are.

        Args:
            recent_days: the time that the rate is taken from, from 1 to 3,650 days.
        """
        return await capacity.capacity(self._open(), recent_days)

    @async_boundary  # not one that reads the key table again first: that waits for a database that stands still
    async def health(self, *, within_ms: int = health.WITHIN_MS) -> health.Health:
        """Whether database, key store, clock, signer and audit trail work: for a readiness probe.

        Raises nothing of what it looks at, which each part tells instead.

        Args:
            within_ms: how long it may take at most, from 1 to 60,000 milliseconds; a part that has not answered then
                is not ok.
        """
        return await health.health(self._open(), within_ms)
