# fmt: off
"""The vault: issues tokens, checks each use against the token's domain, hands out the card behind one.

Generated from `awaited` by `python -m scripts.blocking_vault`: change that module, and run this.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.export import HISTORY_MAX, AuditEvent
from tokenvault.errors import TokenVaultError, boundary, boundary_init, call_boundary
from tokenvault.keys.port import Custody, KeyStore
from tokenvault.model import checks
from tokenvault.model.decision import Decision
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, Change
from tokenvault.model.pan import Card, CardExpiry, Pan, read_pan
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import TokenInfo, info_of
from tokenvault.runtime import BlockingRuntime, Clock, run
from tokenvault.stores.port import TokenStore
from tokenvault.vault import arguments, history, issue, manage, use
from tokenvault.vault.batch import run as batches
from tokenvault.vault.batch.results import BatchResult, IssueBatchResult
from tokenvault.vault.face import BlockingFace, store_without_coroutines
from tokenvault.vault.issue import Order
from tokenvault.vault.observer import Observer
from tokenvault.vault.open import open_core
from tokenvault.vault.provision import KEY_DELAY, create_schema_and_keys


@boundary
def provision(
    keys: KeyStore,
    store: TokenStore,
    *,
    custody: Custody = Custody.IN_PROCESS,
    key_delay: timedelta = KEY_DELAY,
) -> None:
    """Create the database's schema and the keys that are missing. Idempotent.

    Args:
        keys: where the keys are made.
        store: the database; it notes the check value of each key and is bound to them from then on.
        custody: of the keys that are made.
        key_delay: how long a running vault may take to notice that keys are rotated, from 0.1 to 600 seconds; of a
            database that has none yet. A vault asks the database twice in this time; rotation waits for it.

    Raises:
        ConfigurationError: the database was made under other keys, or by a newer version of the library.
        InvalidInputError: an argument is of another kind.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached.
    """
    with closing(BlockingRuntime()) as runtime:
        run(create_schema_and_keys(keys, store_without_coroutines(store), runtime, custody, key_delay))


@boundary_init
class Vault(BlockingFace):
    """A token vault over a key store and a token store, both of which the caller opens and closes.

    It opens when it is made. Safe to share between threads; a forked child may go on with it.

    Args:
        keys: the key store.
        store: the token store, as `open_token_store` opens it.
        programs: the token programs; every program that has tokens in the store belongs here.
        requestors: the parties that may use the vault.
        clock: the source of the time; unset, the machine's.
        checkpoints: how often the audit trail gets a checkpoint; unset, after 1,000 events or 60 seconds.
        observer: is told of calls, decisions and conflicts, from a thread of its own: it can neither break a call nor
            hold it up. Unset, nothing is told.

    Raises:
        ConfigurationError: the parts do not fit together, or nothing is provisioned yet.
        InvalidInputError: an argument is of another kind.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached.

    Every method may raise KeyStoreError, TokenStoreError, IntegrityError (what was read is not what was written),
    InvalidInputError (an argument is not acceptable) and ConfigurationError (the vault is not open, or a token's
    program or requestor is not configured), besides what it names itself.
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
        observer: Observer | None = None,
    ) -> None:
        opening = partial(
            open_core,
            keys,
            programs=programs,
            requestors=requestors,
            clock=clock,
            checkpoints=checkpoints,
            observer=observer,
        )
        super().__init__(store, opening)

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
            TokenSpaceExhaustedError: the program has too few free tokens left.
        """
        core = self._open()
        card = Card(read_pan(pan), arguments.optional_expiry(expiry))
        terms = arguments.terms(requestor, program, domain, token_expiry, assurance, active)
        order = Order(card, terms, None if par is None else checks.par(par))
        return info_of(*run(issue.issue(core, order)))

    @call_boundary
    def check(self, token: str, transaction: Transaction) -> Decision:
        """Decide on a use without making it: nothing is counted.

        Raises TokenNotFoundError, PermissionDeniedError.
        """
        return run(use.check(self._open(), checks.token(token), arguments.transaction(transaction)))

    @call_boundary
    def detokenize(self, token: str, transaction: Transaction) -> Card:
        """The card behind a token, for a use that its domain allows. The use is counted and recorded first.

        A retry with the same transaction gets the same answer and counts once, while the record remembers it
        (the last 32 counted uses of the token).

        Raises:
            DomainRestrictionError: with every control that failed.
            TokenNotFoundError: there is no such token.
            PermissionDeniedError: the transaction's requestor is unknown or has no Permission.DETOKENIZE.
            InvalidInputError: an argument is of another form, or the transaction holds the card number.
            ConflictError: others kept using the token; nothing was counted.
        """
        return run(use.detokenize(self._open(), checks.token(token), arguments.transaction(transaction)))

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
        """Issue a token for each of many cards, as `issue` does; its arguments are here those of every token.

        Cards are PANs, or pairs of PAN and expiry, in any iterable, such as a list or an iterator. They are taken
        in chunks of 8,000. Each chunk is written in one step with one audit event. A batch that is cut short leaves
        whole chunks; the same batch of a CONVERGENT program completes it, with the same tokens.

        Returns:
            For each card, in order, its TokenInfo or the error that `issue` would raise. If the database or the key
            store is away, each card of a chunk gets that error; after two such chunks the rest is not tried.

        Raises:
            InvalidInputError: an argument that all cards have in common is not acceptable, or the iterable failed.
            PermissionDeniedError: the requestor is unknown or may not issue tokens of this program.
        """
        core = self._open()
        terms = arguments.terms(requestor, program, domain, token_expiry, assurance, active)
        return run(batches.issue_all(core, cards, terms))

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
        """Make an inactive token active, after identification and verification. No requestor may do this.

        Raises as `suspend`.
        """
        return run(manage.change_status(self._open(), checks.token(token), Change.ACTIVATE))

    @call_boundary
    def suspend(self, token: str, *, by: Actor, requestor: str | None = None) -> TokenInfo:
        """Suspend a token on behalf of an actor.

        Args:
            token: the token.
            by: the actor. Actor.REQUESTOR is the requestor that the token was issued to.
            requestor: id of the calling requestor: it acts as Actor.REQUESTOR, needs Permission.MANAGE, and only
                its own tokens are open to it. Unset, the host application itself acts. The same holds for other
                methods.

        Raises:
            LifecycleError: the token's status does not allow that.
            TokenNotFoundError: there is no such token.
            PermissionDeniedError: the requestor may not do that.
            ConflictError: others kept changing the token; nothing was done.
        """
        return run(manage.change_status(
            self._open(),
            checks.token(token),
            Change.SUSPEND,
            arguments.actor(by),
            arguments.caller(requestor),
        ))

    @call_boundary
    def resume(self, token: str, *, by: Actor, requestor: str | None = None) -> TokenInfo:
        """Lift an actor's own suspension; the last one lifted makes the token active. Raises as `suspend`."""
        return run(manage.change_status(
            self._open(), checks.token(token), Change.RESUME, arguments.actor(by), arguments.caller(requestor)
        ))

    @call_boundary
    def delete(self, token: str, *, requestor: str | None = None) -> TokenInfo:
        """Delete a token for ever: its record loses the card, and it is never issued again. Raises as `suspend`."""
        return run(manage.change_status(
            self._open(), checks.token(token), Change.DELETE, None, arguments.caller(requestor)
        ))

    @call_boundary
    def update_domain(
        self, token: str, domain: Domain | None, *, requestor: str | None = None
    ) -> TokenInfo:
        """Give a token another domain of its own. What was counted stays counted. Raises as `suspend`."""
        return run(manage.update_domain(
            self._open(), checks.token(token), arguments.own_domain(domain), arguments.caller(requestor)
        ))

    @call_boundary
    def update_card(
        self,
        pan: str | Pan,
        *,
        new_pan: str | Pan | None = None,
        expiry: str | CardExpiry | None = None,
        requestor: str | None = None,
    ) -> list[TokenInfo]:
        """Put a new PAN, a new expiry or both behind all live tokens of a card; returns those that changed.

        Each token changes in one step of its own. After an error some may have changed: call again.

        Args:
            pan: the card's PAN so far.
            new_pan: its new PAN; unset, it stays.
            expiry: its new expiry, "YYYY-MM"; unset, it stays.
            requestor: unset, the tokens of all requestors; set, those of this one, which needs Permission.MANAGE.

        Raises:
            TokenNotFoundError: the card has no live token here.
            PermissionDeniedError, ConflictError: as `suspend`.
        """
        return run(manage.update_card(
            self._open(),
            read_pan(pan),
            new_pan=None if new_pan is None else read_pan(new_pan),
            expiry=arguments.optional_expiry(expiry),
            requestor=arguments.caller(requestor),
        ))

    @call_boundary
    def tokens_of(self, pan: str | Pan, *, requestor: str | None = None) -> list[TokenInfo]:
        """The live tokens of a card, by token; with a requestor, its own only. Raises PermissionDeniedError."""
        return run(manage.tokens_of(self._open(), read_pan(pan), arguments.caller(requestor)))

    @call_boundary
    def get(self, token_or_reference: str) -> TokenInfo:
        """The properties of a token, given the token or its reference (32 hexadecimal digits). Never its PAN.

        Raises TokenNotFoundError.
        """
        return run(manage.get(self._open(), arguments.token_or_reference(token_or_reference)))

    @call_boundary
    def history(
        self, token_or_reference: str, *, after: int = 0, limit: int = HISTORY_MAX
    ) -> list[AuditEvent]:
        """What the audit trail says of a token, each event authenticated, by time, stream and number.

        By its reference (32 hexadecimal digits) also where the record is gone. Raises TokenNotFoundError.

        Args:
            token_or_reference: the token.
            after: how many events to pass over: with `limit`, for reading in pages.
            limit: the most events to return, from 1 to 1,000.
        """
        return run(history.history(
            self._open(),
            arguments.token_or_reference(token_or_reference),
            after=checks.whole_number("after", after, 0, arguments.AFTER_MAX),
            limit=checks.whole_number("limit", limit, 1, HISTORY_MAX),
        ))

    @boundary
    def close(self) -> None:
        """Write the checkpoint that closes the audit trail, and refuse later calls; the stores stay open. Idempotent.

        Calls under way, in other threads or tasks, are waited for, at most 10 seconds. A forked child does not wait.
        The vault is closed also after an error: its trail then ends as that of a process that was killed.
        """
        run(self._close())

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with suppress(*(() if error is None else (TokenVaultError,))):  # the error on its way says more
            self.close()
