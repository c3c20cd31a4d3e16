"""The vault: issues tokens, checks each use against the token's domain, and hands out the card behind one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.export import HISTORY_MAX, AuditEvent
from tokenvault.errors import ConfigurationError, TokenVaultError, boundary, boundary_init, call_boundary
from tokenvault.keys.port import Custody, KeyStore
from tokenvault.model import checks
from tokenvault.model.decision import Decision
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, Change
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import TokenInfo
from tokenvault.runtime import CLOSED, BlockingRuntime, Clock, run
from tokenvault.stores.blocking import BlockingStore
from tokenvault.stores.port import TokenStore
from tokenvault.vault import arguments as requests
from tokenvault.vault import closing
from tokenvault.vault import provision as opening
from tokenvault.vault.batch import run as batches
from tokenvault.vault.batch.results import BatchResult, IssueBatchResult
from tokenvault.vault.core import Core
from tokenvault.vault.open import open_core

T = TypeVar("T")


@boundary
def provision(keys: KeyStore, store: TokenStore, *, custody: Custody = Custody.IN_PROCESS) -> None:
    """Create the database's schema and the keys that are missing. Idempotent.

    Args:
        keys: where the keys are made.
        store: the database; it notes the check value of each key and is bound to them from then on.
        custody: of the keys that are made.

    Raises:
        ConfigurationError: the database was made under other keys, or by a newer version of the library.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached.
    """
    checks.instance("custody", custody, Custody)
    run(opening.provision(keys, BlockingStore(store), BlockingRuntime(), custody))


@boundary_init
class Vault:
    """A token vault over a key store and a token store, both of which the caller opens and closes.

    Safe to share between threads; a forked child may go on with it.

    Args:
        keys: the key store.
        store: the token store.
        programs: the token programs; every program that has tokens in the store belongs here.
        requestors: the parties that may use the vault.
        clock: tells the time; unset, the machine's.
        checkpoints: how often the audit trail gets a checkpoint; unset, after 1,000 events or 60 seconds.

    Raises:
        ConfigurationError: the parts do not fit together, or nothing is provisioned yet.
        InvalidInputError: an argument is of another kind.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached.

    Every method may raise KeyStoreError, TokenStoreError, and IntegrityError (what was read is not what was
    written), besides what it names itself.
    """

    def __init__(
        self,
        keys: KeyStore,
        store: TokenStore,
        *,
        programs: Iterable[TokenProgram] = (),
        requestors: Iterable[TokenRequestor] = (),
        clock: Clock | None = None,
        checkpoints: CheckpointPolicy | None = None,
    ) -> None:
        opened = open_core(
            keys, BlockingStore(store), BlockingRuntime(), programs, requestors, clock, checkpoints
        )
        self._calls: list[None] = []
        self._pid = os.getpid()
        self._core: Core | None = run(opened)

    @call_boundary
    def issue(
        self,
        pan: str | Pan,
        *,
        expiry: str | CardExpiry | None = None,
        requestor: str,
        program: str,
        domain: Domain | None = None,
        token_expiry: str | CardExpiry | None = None,
        assurance: str | None = None,
        par: str | None = None,
        active: bool = True,
    ) -> TokenInfo:
        """Issue a token for a card.

        Args:
            pan: 13 to 19 digits, Luhn-valid; single spaces or hyphens may stand between groups.
            expiry: the card's, "YYYY-MM"; a card is valid through that month.
            requestor: id of the requestor that the token is issued to; needs Permission.ISSUE and the program.
            program: name of the token program.
            domain: the token's own domain; unset, only the program's and the requestor's restrict it, and only
                the requestor itself may use it.
            token_expiry: "YYYY-MM"; unset, the token expires with its card.
            assurance: token assurance method, 2 characters.
            par: payment account reference, 29 uppercase alphanumerics.
            active: False for a token that `activate` makes usable later, after identification and verification.

        Returns:
            The token. Of a CONVERGENT program: the one that this card has already, if it has one.

        Raises:
            InvalidInputError: an argument is not acceptable, the card has expired, the number is a token, or the
                card has a convergent token with other properties already.
            PermissionDeniedError: the requestor is unknown or may not issue tokens of this program.
            TokenSpaceExhausted: the program has too few free tokens left.
        """
        return run(
            requests.issue(
                self._open(), pan, expiry, requestor, program, domain, token_expiry, assurance, par, active
            )
        )

    @call_boundary
    def check(self, token: str, transaction: Transaction) -> Decision:
        """Decide on a use without making it: nothing is counted.

        Raises:
            InvalidInputError, TokenNotFoundError, PermissionDeniedError, ConfigurationError.
        """
        return run(requests.check(self._open(), token, transaction))

    @call_boundary
    def detokenize(self, token: str, transaction: Transaction) -> Card:
        """The card behind a token, for a use that its domain allows. The use is counted and recorded first.

        The same transaction presented again gets the same answer and counts once, while the record remembers it
        (the last 32 counted uses of the token).

        Raises:
            DomainRestrictionError: with every control that failed.
            TokenNotFoundError: there is no such token.
            PermissionDeniedError: the transaction's requestor is unknown or has no Permission.DETOKENIZE.
            InvalidInputError: an argument is of another form, or the transaction holds the card number.
            ConflictError: others kept using the token; nothing was counted.
            ConfigurationError: the token's program or requestor is not configured.
        """
        return run(requests.detokenize(self._open(), token, transaction))

    @call_boundary
    def issue_many(
        self,
        cards: Iterable[str | Pan | tuple[str | Pan, str | CardExpiry | None]],
        *,
        requestor: str,
        program: str,
        domain: Domain | None = None,
        token_expiry: str | CardExpiry | None = None,
        assurance: str | None = None,
        active: bool = True,
    ) -> IssueBatchResult[TokenInfo]:
        """Issue a token for each of many cards, as `issue` does.

        Cards are taken in chunks of 8,000. Each chunk is written in one step with one audit event. A batch that is
        cut short leaves whole chunks; the same batch of a CONVERGENT program completes it, with the same tokens.
        With PostgreSQL, a thread writes a chunk while this one takes and prepares the next, on a second connection.

        Args:
            cards: PANs, or pairs of PAN and expiry; an iterator will do.
            requestor: of all tokens, as in `issue`; and so is each of the next.
            program: its name.
            domain: their own.
            token_expiry: "YYYY-MM".
            assurance: 2 characters.
            active: False for tokens that `activate` makes usable later.

        Returns:
            For each card, in order, its TokenInfo or the error that `issue` would raise. A database or key store
            that is away is the error of the cards of a chunk, too; after two such chunks the rest is not tried.

        Raises:
            InvalidInputError: of what all cards have in common; or the iterable of cards failed.
            PermissionDeniedError: the requestor is unknown or may not issue tokens of this program.
        """
        return run(
            batches.issue_all(
                self._open(), cards, requestor, program, domain, token_expiry, assurance, active
            )
        )

    @call_boundary
    def detokenize_many(self, uses: Iterable[tuple[str, Transaction]]) -> BatchResult[Card]:
        """The cards behind many tokens, as `detokenize` gives each. All uses are counted and recorded first.

        Uses are taken in chunks of 8,000. Each chunk is written in one step with one audit event, and a token used
        twice sees its first use.

        Args:
            uses: pairs of token and transaction; one Transaction may go with many tokens, as in
                `zip(tokens, itertools.repeat(transaction))`.

        Returns:
            For each use, in order, its Card or the error that `detokenize` would raise; see `issue_many`.

        Raises:
            InvalidInputError: `uses` is no iterable, or it failed.
        """
        return run(batches.detokenize_all(self._open(), uses))

    @call_boundary
    def check_many(self, uses: Iterable[tuple[str, Transaction]]) -> BatchResult[Decision]:
        """Decide on many uses without making them, as `check` does: each as if it were the next one.

        Takes and raises what `detokenize_many` does. Returns a Decision or an error for each use, in order.
        """
        return run(batches.check_all(self._open(), uses))

    @call_boundary
    def activate(self, token: str) -> TokenInfo:
        """Make an inactive token active: the outcome of identification and verification, so no requestor's to make.

        Raises:
            InvalidInputError, TokenNotFoundError, ConflictError.
            LifecycleError: its status does not allow that.
        """
        return run(requests.change_status(self._open(), token, Change.ACTIVATE, None, None))

    @call_boundary
    def suspend(self, token: str, *, by: Actor, requestor: str | None = None) -> TokenInfo:
        """Suspend a token on behalf of an actor.

        Args:
            token: the token.
            by: the actor. As Actor.REQUESTOR acts the requestor that the token was issued to.
            requestor: the calling requestor: it acts as Actor.REQUESTOR, needs Permission.MANAGE, and only its own
                tokens are open to it. Unset, the host application itself acts. So with each method that takes it.

        Raises:
            InvalidInputError, TokenNotFoundError, PermissionDeniedError, ConflictError.
            LifecycleError: its status does not allow that.
        """
        return run(requests.change_status(self._open(), token, Change.SUSPEND, by, requestor))

    @call_boundary
    def resume(self, token: str, *, by: Actor, requestor: str | None = None) -> TokenInfo:
        """Lift an actor's own suspension; active again once nobody suspends it. Raises as `suspend`."""
        return run(requests.change_status(self._open(), token, Change.RESUME, by, requestor))

    @call_boundary
    def delete(self, token: str, *, requestor: str | None = None) -> TokenInfo:
        """Delete a token for ever: its record loses the card, and it is never issued again. Raises as `suspend`."""
        return run(requests.change_status(self._open(), token, Change.DELETE, None, requestor))

    @call_boundary
    def update_domain(self, token: str, domain: Domain | None, *, requestor: str | None = None) -> TokenInfo:
        """Give a token another domain of its own. What was counted stays counted. Raises as `suspend`."""
        return run(requests.update_domain(self._open(), token, domain, requestor))

    @call_boundary
    def update_card(
        self,
        pan: str | Pan,
        *,
        new_pan: str | Pan | None = None,
        expiry: str | CardExpiry | None = None,
        requestor: str | None = None,
    ) -> list[TokenInfo]:
        """Put a new PAN, a new expiry or both behind all live tokens of a card.

        Each token changes in one step of its own. After an error some may have changed: call again.

        Args:
            pan: the card's PAN so far.
            new_pan: its new PAN; unset, it stays.
            expiry: its new expiry, "YYYY-MM"; unset, it stays.
            requestor: unset, the tokens of all requestors; set, those of this one, which needs Permission.MANAGE.

        Returns:
            The tokens that changed.

        Raises:
            InvalidInputError, PermissionDeniedError, ConflictError.
            TokenNotFoundError: the card has no live token here.
        """
        return run(requests.update_card(self._open(), pan, new_pan, expiry, requestor))

    @call_boundary
    def tokens_of(self, pan: str | Pan, *, requestor: str | None = None) -> list[TokenInfo]:
        """The live tokens of a card, by token.

        Args:
            pan: the card's PAN.
            requestor: unset, the tokens of all requestors; set, those of this one, which needs Permission.MANAGE.

        Raises:
            InvalidInputError, PermissionDeniedError.
        """
        return run(requests.tokens_of(self._open(), pan, requestor))

    @call_boundary
    def get(self, token_or_reference: str) -> TokenInfo:
        """What stands about a token, found by itself or by its reference (32 hexadecimal digits). Never its PAN.

        Raises:
            InvalidInputError, TokenNotFoundError.
        """
        return run(requests.get(self._open(), token_or_reference))

    @call_boundary
    def history(
        self, token_or_reference: str, *, after: int = 0, limit: int = HISTORY_MAX
    ) -> list[AuditEvent]:
        """What the audit trail says of a token, each event authenticated, in the order of writing.

        By its reference (32 hexadecimal digits) also where the record is gone.

        Args:
            token_or_reference: the token.
            after: so many events are passed over: with `limit`, for reading in pages.
            limit: the most events to return, from 1 to 1,000.

        Raises:
            InvalidInputError, TokenNotFoundError.
        """
        return run(requests.history(self._open(), token_or_reference, after, limit))

    @boundary
    def close(self) -> None:
        """End the use of the vault, once a checkpoint closes its audit trail; the stores stay open. Idempotent.

        Calls of other threads that are under way are waited for, at most 10 seconds; later ones are refused. A forked
        child does not wait.
        It is closed also after an error: the trail then ends as that of a process that was killed.
        """
        core, self._core = self._core, None
        if core is not None:
            run(closing.close(core, self._calls, self._pid))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(*(() if error is None else (TokenVaultError,))):  # the error on its way tells more
            self.close()

    def _open(self) -> Core:
        if self._core is None:
            raise ConfigurationError(CLOSED)
        return self._core
