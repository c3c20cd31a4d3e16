"""The vault for asyncio: issues tokens, checks each use against the token's domain, hands out the card behind one.

`blocking` is generated from this module by `python -m scripts.blocking_vault`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Self

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.event import Action
from tokenvault.errors import TokenVaultError, async_boundary, async_call_boundary, boundary, boundary_init
from tokenvault.keys.port import Custody, KeyStore
from tokenvault.model import checks
from tokenvault.model.decision import Decision
from tokenvault.model.domain import Domain
from tokenvault.model.dual_control import RevealPolicy
from tokenvault.model.lifecycle import Actor, Change, TokenStatus
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.model.remaining import Remaining
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import TokenInfo
from tokenvault.runtime import Clock, LoopRuntime
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault import arguments, issue, manage, search, use, within
from tokenvault.vault.batch import change
from tokenvault.vault.batch import run as batches
from tokenvault.vault.batch.cards import CardToIssue
from tokenvault.vault.batch.change import CardChange, TokenChange
from tokenvault.vault.batch.results import BatchResult, IssueBatchResult
from tokenvault.vault.directory import Directory, StoredDirectory
from tokenvault.vault.exchange_awaited import AwaitedExchange
from tokenvault.vault.face import store_with_coroutines
from tokenvault.vault.guard import Guard
from tokenvault.vault.observer import Observer
from tokenvault.vault.open import open_core
from tokenvault.vault.orders import Grant, Order
from tokenvault.vault.provision import KEY_DELAY, create_schema_and_keys
from tokenvault.vault.risk import RiskPolicy


@async_boundary
async def provision_async(
    keys: KeyStore,
    store: AsyncTokenStore,
    *,
    custody: Custody = Custody.IN_PROCESS,
    find_by_last4: bool = False,
    key_delay: timedelta = KEY_DELAY,
) -> None:
    """Create the database's schema and the keys that are missing. Idempotent.

    Args:
        keys: where the keys are made.
        store: the database; it notes the check value of each key and is bound to them from then on.
        custody: of the keys that are made.
        find_by_last4: whether `search` finds tokens by the last four digits of their card, by a keyed index; those
            that are issued from then on by vaults that open later. It stays so.
        key_delay: how long a running vault may take to notice that keys are rotated, from 0.1 to 600 seconds; of a
            database that has none yet. A vault asks the database twice in this time; rotation waits for it.

    Raises:
        ConfigurationError: the database was made under other keys, or by a newer version of the library.
        InvalidInputError: an argument is of another kind.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached.
    """
    with closing(LoopRuntime()) as runtime:
        await create_schema_and_keys(
            keys, store_with_coroutines(store), runtime, custody, key_delay, find_by_last4=find_by_last4
        )


@boundary_init
class AsyncVault(AwaitedExchange):
    """A token vault over a key store and a token store, both of which the caller opens and closes.

    `async with` opens it, once, and raises what is named below.

    A call that is cancelled leaves nothing half done: a use is counted and recorded, or neither, and a
    retry with the same transaction gets its answer. As with any error, `update_card` may have changed some tokens.

    Keys in a module are used from threads of the vault's own, at most 16. Keys that work in this process take some
    10 µs and are used on the event loop: it is blocked while a chunk of a batch is sealed.

    Args:
        keys: the key store.
        store: the token store, as `open_async_token_store` opens it.
        programs: the token programs; every program that has tokens in the store belongs here.
        requestors: the parties that may use the vault.
        directory: in place of both, where they are looked up: a StoredDirectory, which this vault changes, or one of
            the host's own.
        clock: the source of the time; unset, the machine's.
        checkpoints: how often the audit trail gets a checkpoint; unset, after 1,000 events or 60 seconds.
        observer: is told of calls, decisions and conflicts, from a thread of its own: it can neither break a call nor
            hold it up. Unset, nothing is told.
        guard: when a requestor that guesses tokens is locked out; unset, `Guard()`.
        risk: is asked about each use that its domain allows, before the card is handed out; unset, nobody is.
        reveal: under which dual control card numbers leave by `reveal`; unset, none does.

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
        store: AsyncTokenStore,
        *,
        programs: Iterable[TokenProgram] = (),
        requestors: Iterable[TokenRequestor] = (),
        directory: Directory | StoredDirectory | None = None,
        clock: Clock | None = None,
        checkpoints: CheckpointPolicy | None = None,
        observer: Observer | None = None,
        guard: Guard | None = None,
        risk: RiskPolicy | None = None,
        reveal: RevealPolicy | None = None,
    ) -> None:
        opening = partial(
            open_core,
            keys,
            programs=programs,
            requestors=requestors,
            directory=directory,
            clock=clock,
            checkpoints=checkpoints,
            observer=observer,
            guard=guard,
            risk=risk,
            reveal=reveal,
        )
        super().__init__(store, opening)

    @async_call_boundary
    async def issue(
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
        customer: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        accept_expired: bool = False,
        operator: str | None = None,
    ) -> TokenInfo:
        """Issue a token for a card.

        Args:
            pan: digits as the program's PanRule takes them, 13 to 19 and Luhn-valid where it says nothing; single
                spaces or hyphens may stand between groups.
            expiry: the card's, "YYYY-MM"; a card is valid through that month, wherever on earth.
            requestor: id of the requestor that the token is issued to; needs Permission.ISSUE and the program.
            program: name of the token program.
            domain: the token's own domain; unset, only the program's and the requestor's restrict it, and only
                the requestor itself may use it.
            token_expiry: "YYYY-MM"; unset, the token expires with its card.
            assurance: token assurance method, 2 characters.
            par: payment account reference, 29 uppercase alphanumerics.
            active: False for a token that `activate` makes usable later, after identification and verification.
            customer: the caller's own id of whom the token is for, 1 to 64 printable ASCII characters; `search` finds
                the token by it.
            metadata: the caller's own pairs, at most 16, of 1 to 64 printable characters each; they are sealed.
            idempotency_key: names the request, 1 to 64 printable ASCII characters: the same one again, with the same
                arguments, gives the same token as it is by then, of whichever program. Unique to the requestor and
                the program. A card that had its CONVERGENT token before the key was used leaves the key unused.
                A token that was deleted meanwhile is given too, without an error: its `status` is DELETED, and
                another token needs another key.
            accept_expired: whether a card may have expired already, as those that are imported.
            operator: the person behind the call, 1 to 64 printable ASCII characters: it stands in the audit event.

        Returns:
            The token. Of a CONVERGENT program: the one that this card has already, if it has one, with the card's new
            expiry, if that is later and the requestor has Permission.MANAGE.

        Raises:
            InvalidInputError: an argument is not acceptable, the card has expired, the number is a token, the card
                has a convergent token with other properties already (TOKEN_EXISTS_WITH_OTHER_PROPERTIES), or the
                idempotency key is of another request (IDEMPOTENCY_CONFLICT).
            PermissionDeniedError: the requestor is unknown or may not issue tokens of this program.
            TokenSpaceExhaustedError: the program has too few free tokens left.
        """
        core = self._open()
        terms = arguments.terms(
            requestor, program, domain, token_expiry, assurance, active, accept_expired, operator
        )
        await core.parties.refresh(terms.program)
        order = Order(
            card=Card(core.pan(pan, terms.program), arguments.optional_expiry(expiry)),
            terms=terms,
            par=None if par is None else checks.par(par),
            customer=arguments.optional_text("customer", customer),
            metadata=arguments.metadata(metadata),
            idempotency_key=arguments.optional_text("idempotency_key", idempotency_key),
        )
        return await core.info(await issue.issue(core, order))

    @async_call_boundary
    async def issue_from(
        self,
        token_or_reference: str,
        *,
        requestor: str,
        program: str,
        domain: Domain | None = None,
        token_expiry: str | CardExpiry | None = None,
        assurance: str | None = None,
        active: bool = True,
        customer: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        operator: str | None = None,
    ) -> TokenInfo:
        """Issue a token for the card behind another token: for an agent, or a merchant of a marketplace.

        The requestor that the source was issued to grants it: it needs Permission.ISSUE and the program. The new
        token is `requestor`'s, with a life and domain of its own; deleting it revokes the grant. Whom the source was
        issued to sees it by `tokens_from`, and may suspend, resume and delete it.

        Args:
            token_or_reference: the source: active, and at most 7 tokens away from one that was issued for a card.
            requestor: id of the requestor that the new token is for.
            program: name of the new token's program. Of a CONVERGENT one, each source gives `requestor` one token;
                those that it has otherwise, for the same card, do not matter.
            domain: of the new token; unset, only the program's and the requestor's restrict it.
            token_expiry: "YYYY-MM"; unset, it expires with the card.
            assurance: token assurance method, 2 characters.
            active: False for a token that `activate` makes usable later.
            customer: as of `issue`.
            metadata: as of `issue`.
            idempotency_key: as of `issue`, unique to the two requestors and the program. A retry, too, needs an
                active source; that its card was renewed meanwhile does not matter.
            operator: the person behind the call.

        Raises:
            InvalidInputError, PermissionDeniedError, TokenSpaceExhaustedError: as `issue`.
            LifecycleError: the source is not active, or has expired.
            ConflictError: the source was given another card meanwhile; nothing was issued.
            TokenNotFoundError: there is no such source.
        """
        core = self._open()
        terms = arguments.terms(requestor, program, domain, token_expiry, assurance, active, False, operator)
        asked = Grant(
            source=arguments.token_or_reference(token_or_reference),
            terms=terms,
            customer=arguments.optional_text("customer", customer),
            metadata=arguments.metadata(metadata),
            idempotency_key=arguments.optional_text("idempotency_key", idempotency_key),
        )
        return await core.info(await issue.issue_from(core, asked))

    @async_call_boundary
    async def check(self, token_or_reference: str, transaction: Transaction) -> Decision:
        """Decide on a use without making it: nothing is counted. What is not allowed leaves an event.

        Raises TokenNotFoundError, PermissionDeniedError.
        """
        core, name = self._open(), arguments.token_or_reference(token_or_reference)
        return await use.check(core, name, arguments.transaction(transaction))

    @async_call_boundary
    async def detokenize(self, token_or_reference: str, transaction: Transaction) -> Card:
        """The card behind a token, for a use that its domain allows. The use is counted and recorded first.

        What a use does to the money is its kind. A retry with the same transaction gets the same answer and counts
        once, for as long as the audit trail keeps the event of the use.

        Raises:
            DomainRestrictionError: with every control that failed.
            TokenNotFoundError: there is no such token.
            PermissionDeniedError: the transaction's requestor is unknown or has no Permission.DETOKENIZE.
            RequestorLockedOutError: it guessed too often (`guard`).
            InvalidInputError: an argument is of another form, or the transaction holds the card number.
            ConflictError: others kept using the token; nothing was counted.
        """
        core, name = self._open(), arguments.token_or_reference(token_or_reference)
        return await use.detokenize(core, name, arguments.transaction(transaction))

    @async_call_boundary
    async def issue_many(
        self,
        cards: Iterable[str | Pan | tuple[str | Pan, str | CardExpiry | None] | CardToIssue],
        *,
        requestor: str,
        program: str,
        domain: Domain | None = None,
        token_expiry: str | CardExpiry | None = None,
        assurance: str | None = None,
        active: bool = True,
        accept_expired: bool = False,
        operator: str | None = None,
    ) -> IssueBatchResult[TokenInfo]:
        """Issue a token for each of many cards, as `issue` does; its arguments are here those of every token.

        Cards are PANs, pairs of PAN and expiry, or CardToIssue where a token has a domain, a customer or anything
        else of its own, in any iterable, such as a list or an iterator. They are taken in chunks of 8,000, and those
        with an idempotency key or a PAR one by one; the token of a key may be a DELETED one by then. Each chunk is
        written in one step with one audit event. A batch that is cut short leaves whole chunks; the same batch of a
        CONVERGENT program completes it, with the same tokens.

        Returns:
            For each card, in order, its TokenInfo or the error that `issue` would raise. If the database or the key
            store is away, each card of a chunk gets that error; after two such chunks the rest is not tried.

        Raises:
            InvalidInputError: an argument that all cards have in common is not acceptable, or the iterable failed.
            PermissionDeniedError: the requestor is unknown or may not issue tokens of this program.
        """
        core = self._open()
        terms = arguments.terms(
            requestor, program, domain, token_expiry, assurance, active, accept_expired, operator
        )
        return await batches.issue_all(core, cards, terms)

    @async_call_boundary
    async def detokenize_many(self, uses: Iterable[tuple[str, Transaction]]) -> BatchResult[Card]:
        """The cards behind many tokens, as `detokenize` gives each. All uses are counted and recorded first.

        Uses are of any kinds, and taken in chunks of 4,000. Each chunk is written in one step with one audit event,
        and a token used twice sees its first use.

        Args:
            uses: pairs of token or reference and transaction; one Transaction may go with many tokens, as in
                `zip(tokens, itertools.repeat(transaction))`.

        Returns:
            For each use, in order, its Card or the error that `detokenize` would raise; see `issue_many`.

        Raises:
            InvalidInputError: `uses` is no iterable, or it failed.
        """
        return await batches.detokenize_all(self._open(), uses)

    @async_call_boundary
    async def check_many(self, uses: Iterable[tuple[str, Transaction]]) -> BatchResult[Decision]:
        """Decide on many uses without making them, as `check` does: each as if it were the next one.

        Takes and raises what `detokenize_many` does. Returns a Decision or an error for each use, in order.
        """
        return await batches.check_all(self._open(), uses)

    @async_call_boundary
    async def get_many(self, tokens_or_references: Iterable[str]) -> BatchResult[TokenInfo]:
        """The properties of many tokens, as `get` gives each: for each, in order, its TokenInfo or the error."""
        return await batches.get_all(self._open(), tokens_or_references)

    @async_call_boundary
    async def delete_many(
        self,
        tokens_or_references: Iterable[str],
        *,
        requestor: str | None = None,
        operator: str | None = None,
    ) -> BatchResult[TokenInfo]:
        """Delete many tokens, as `delete` does each.

        Tokens are taken in chunks of 8,000. Each chunk is written in one step with one audit event, or not at all
        where others keep changing its tokens: these items then have a ConflictError.

        Returns:
            For each token, in order, its TokenInfo or the error that `delete` would raise; see `issue_many`.

        Raises:
            PermissionDeniedError: the requestor is unknown or has no Permission.MANAGE.
            InvalidInputError: the iterable failed.
        """
        by = arguments.by(requestor, operator)
        items = tokens_or_references
        return await batches.change_all(self._open(), Action.DELETE, by, change.to_delete, items, "tokens")

    @async_call_boundary
    async def update_domain_many(
        self,
        changes: Iterable[tuple[str, Domain | None]],
        *,
        requestor: str | None = None,
        operator: str | None = None,
    ) -> BatchResult[TokenInfo]:
        """Give many tokens other domains, as `update_domain` does each: pairs of token and domain.

        Takes, returns and raises otherwise what `delete_many` does.
        """
        by, reader = arguments.by(requestor, operator), change.domain_to_update
        return await batches.change_all(self._open(), Action.UPDATE_DOMAIN, by, reader, changes, "changes")

    @async_call_boundary
    async def update_token_many(
        self,
        changes: Iterable[tuple[str, TokenChange]],
        *,
        requestor: str | None = None,
        operator: str | None = None,
    ) -> BatchResult[TokenInfo]:
        """Give many tokens other properties, as `update_token` does each: pairs of token and TokenChange.

        Takes, returns and raises otherwise what `delete_many` does.
        """
        by, reader = arguments.by(requestor, operator), change.token_to_update
        return await batches.change_all(self._open(), Action.UPDATE_TOKEN, by, reader, changes, "changes")

    @async_call_boundary
    async def update_card_many(
        self,
        changes: Iterable[tuple[str | Pan, CardChange]],
        *,
        requestor: str | None = None,
        operator: str | None = None,
    ) -> BatchResult[list[TokenInfo]]:
        """Put new PANs or expiries behind many tokens or cards, as an account updater lists them.

        Pairs of PAN, token or reference, and CardChange, taken in chunks of 1,000; each is done as by `update_card`.
        A list that names cards without a token here is presented by the host, without a requestor: each such card is
        a miss of the requestor, which the guard locks out after `Guard.misses` of them.

        Returns:
            For each, in order, the tokens that changed, or the error that `update_card` would raise.

        Raises:
            PermissionDeniedError, InvalidInputError: as `delete_many`.
        """
        return await batches.update_cards(self._open(), arguments.by(requestor, operator), changes)

    @async_call_boundary
    async def activate(self, token: str, *, operator: str | None = None) -> TokenInfo:
        """Make an inactive token active, after identification and verification. No requestor may do this.

        A token that was suspended before it took another card is suspended still. Raises as `suspend`.
        """
        core, name = self._open(), arguments.token_or_reference(token)
        return await manage.change_status(core, name, Change.ACTIVATE, arguments.by(None, operator))

    @async_call_boundary
    async def suspend(
        self, token: str, *, by: Actor, requestor: str | None = None, operator: str | None = None
    ) -> TokenInfo:
        """Suspend a token on behalf of an actor.

        Args:
            token: the token, or its reference.
            by: the actor. Actor.REQUESTOR is the requestor that the token was issued to.
            requestor: id of the calling requestor: it says Actor.REQUESTOR, needs Permission.MANAGE, and only its own
                tokens are open to it, and here and to `resume` and `delete` those that were issued from them. These
                it suspends as Actor.GRANTOR: their holder does not lift that, nor does it lift what their holder did.
                Unset, the host application itself acts. The same holds for other methods.
            operator: the person behind the call.

        Raises:
            LifecycleError: the token's status does not allow that.
            TokenNotFoundError: there is no such token.
            PermissionDeniedError: the requestor may not do that.
            ConflictError: others kept changing the token; nothing was done.
        """
        core, name = self._open(), arguments.token_or_reference(token)
        who = arguments.by(requestor, operator, arguments.actor(by))
        return await manage.change_status(core, name, Change.SUSPEND, who)

    @async_call_boundary
    async def resume(
        self, token: str, *, by: Actor, requestor: str | None = None, operator: str | None = None
    ) -> TokenInfo:
        """Lift an actor's own suspension; the last one lifted makes the token active. Raises as `suspend`."""
        core, name = self._open(), arguments.token_or_reference(token)
        who = arguments.by(requestor, operator, arguments.actor(by))
        return await manage.change_status(core, name, Change.RESUME, who)

    @async_call_boundary
    async def wind_down(
        self,
        token: str,
        *,
        purge_after: datetime,
        requestor: str | None = None,
        operator: str | None = None,
    ) -> TokenInfo:
        """Let a token take no new payments, only captures, reversals, refunds and disputes of those that it made.

        Args:
            token: the token, or its reference.
            purge_after: when the last of these may come, with a time zone and in the future: the token may be purged
                then. Said again of a token that winds down, it moves, later or earlier.
            requestor: as of `suspend`.
            operator: the person behind the call.

        Raises as `suspend`.
        """
        core, name = self._open(), arguments.token_or_reference(token)
        purge_after_ms = arguments.milliseconds("purge_after", purge_after)
        return await manage.begin_winding_down(core, name, purge_after_ms, arguments.by(requestor, operator))

    @async_call_boundary
    async def delete(
        self, token: str, *, requestor: str | None = None, operator: str | None = None
    ) -> TokenInfo:
        """Delete a token for ever: its record loses the card, and it is never issued again. Raises as `suspend`.

        To delete one that is deleted is no error: whoever lost the answer calls again. It leaves an event and
        changes nothing.
        """
        core, name = self._open(), arguments.token_or_reference(token)
        return await manage.change_status(core, name, Change.DELETE, arguments.by(requestor, operator))

    @async_call_boundary
    async def update_domain(
        self,
        token: str,
        domain: Domain | None,
        *,
        requestor: str | None = None,
        operator: str | None = None,
    ) -> TokenInfo:
        """Give a token another domain of its own. What was counted stays counted. Raises as `suspend`."""
        core, name = self._open(), arguments.token_or_reference(token)
        own = arguments.own_domain(domain)
        return await manage.update_domain(core, name, own, arguments.by(requestor, operator))

    @async_call_boundary
    async def update_token(
        self,
        token: str,
        *,
        token_expiry: str | CardExpiry | None = None,
        customer: str | None = None,
        metadata: Mapping[str, str] | None = None,
        requestor: str | None = None,
        operator: str | None = None,
    ) -> TokenInfo:
        """Give a token another expiry, customer or metadata; what is unset stays.

        Args:
            token: the token, or its reference.
            token_expiry: "YYYY-MM", not passed yet; it may lie behind the card's.
            customer: as of `issue`; empty to take it away. It is what a convergent token of a program with
                `per_customer` converges on, and there it stays.
            metadata: takes the place of all pairs; an empty one takes them away.
            requestor: as of `suspend`.
            operator: the person behind the call.

        Raises:
            InvalidInputError: nothing is set, the expiry has passed, or a text holds the card number.
            LifecycleError, TokenNotFoundError, PermissionDeniedError, ConflictError: as `suspend`.
        """
        core, name = self._open(), arguments.token_or_reference(token)
        properties = arguments.properties(token_expiry, customer, metadata)
        return await manage.update_token(core, name, properties, arguments.by(requestor, operator))

    @async_call_boundary
    async def update_assurance(
        self,
        token: str,
        method: str | None,
        *,
        at: datetime | None = None,
        operator: str | None = None,
    ) -> TokenInfo:
        """State how the cardholder was identified and verified. No requestor may do this.

        Args:
            token: the token, or its reference.
            method: token assurance method, 2 characters; None: none holds any more.
            at: when, with a time zone, not in the future; unset, now.
            operator: the person behind the call.

        Raises as `suspend`.
        """
        core, name = self._open(), arguments.token_or_reference(token)
        stated = None if method is None else checks.assurance("method", method)
        at_ms = None if at is None else arguments.milliseconds("at", at)
        return await manage.update_assurance(core, name, stated, at_ms, arguments.by(None, operator))

    @async_call_boundary
    async def update_card(
        self,
        pan_or_token_or_reference: str | Pan,
        *,
        new_pan: str | Pan | None = None,
        expiry: str | CardExpiry | None = None,
        par: str | None = None,
        requestor: str | None = None,
        operator: str | None = None,
    ) -> list[TokenInfo]:
        """Put a new PAN, a new expiry or both behind a token, or behind all live tokens of a card.

        Each token changes in one step of its own. After an error some may have changed: call again. A token whose PAN
        a requestor sets, whichever it was, is inactive from then on, and without assurance: nobody verified it.
        The PAR is of the PAN: it stays where that does, and no token has that of the card before.

        Args:
            pan_or_token_or_reference: the card's PAN so far, or the token that is to change.
            new_pan: its new PAN; unset, it stays.
            expiry: its new expiry, "YYYY-MM"; unset, it stays.
            par: payment account reference of `new_pan`, as of `issue`; unset, none is known of another PAN. The
                host corrects one by naming the PAN that stands as `new_pan`.
            requestor: unset, the tokens of all requestors; set, those of this one, which needs Permission.MANAGE,
                and ISSUE or DETOKENIZE to name a card by its PAN.
            operator: the person behind the call.

        Returns:
            The tokens that changed.

        Raises:
            InvalidInputError: nothing is new, what is new can not be, or the host states another PAR than a token of
                the same requestor and PAN has.
            TokenNotFoundError: the card has no live token here, or there is no such token.
            LifecycleError, PermissionDeniedError, ConflictError: as `suspend`.
        """
        core = self._open()
        await core.parties.refresh()
        new = arguments.new_card(core, new_pan, expiry, par)
        name = arguments.pan_or_name(core, pan_or_token_or_reference)
        return await manage.update_card(core, name, new, arguments.by(requestor, operator))

    @async_call_boundary
    async def tokens_of(self, pan: str | Pan, *, requestor: str | None = None) -> list[TokenInfo]:
        """The live tokens of a card, by token; with a requestor, its own only.

        What a requestor asks leaves an event, and so does what is not found. A requestor needs Permission.MANAGE, and
        ISSUE or DETOKENIZE: the answer confirms a card number.

        Raises PermissionDeniedError.
        """
        core = self._open()
        await core.parties.refresh()
        return await manage.tokens_of(core, core.pan(pan), arguments.caller(requestor))

    @async_call_boundary
    async def tokens_from(self, token_or_reference: str, *, requestor: str | None = None) -> list[TokenInfo]:
        """The live tokens that were issued from a token, directly or one from another, by token.

        With a requestor, only of a token that was issued to it. Of tokens of others it sees neither customer nor
        metadata, and the card of its own token, or none where theirs is another by now; where it suspends, resumes
        or deletes them, none. Raises TokenNotFoundError, PermissionDeniedError.
        """
        core, name = self._open(), arguments.token_or_reference(token_or_reference)
        return await manage.tokens_from(core, name, arguments.caller(requestor))

    @async_call_boundary
    async def get(self, token_or_reference: str) -> TokenInfo:
        """The properties of a token, given the token or its reference (32 hexadecimal digits). Never its PAN.

        Raises TokenNotFoundError.
        """
        return await manage.get(self._open(), arguments.token_or_reference(token_or_reference))

    @async_call_boundary
    async def domain(self, token: str) -> Domain:
        """The token's own domain. Raises TokenNotFoundError."""
        return await manage.domain(self._open(), arguments.token_or_reference(token))

    @async_call_boundary
    async def remaining(self, token: str) -> tuple[Remaining, ...]:
        """What is left of each limit that binds a token in its owner's hands: the program's, the owner's, its own.

        Raises TokenNotFoundError.
        """
        return await manage.remaining(self._open(), arguments.token_or_reference(token))

    @async_call_boundary
    async def search(
        self,
        *,
        requestor: str | None = None,
        customer: str | None = None,
        program: str | None = None,
        status: TokenStatus | None = None,
        last4: str | None = None,
        after: str = "",
        limit: int = search.SEARCH_DEFAULT,
    ) -> list[TokenInfo]:
        """Tokens that have all that is asked for, by an index: a page of them.

        Args:
            requestor: id of the requestor that they were issued to.
            customer: as at issue.
            program: name of their program.
            status: theirs.
            last4: the last four digits of their cards, where `provision` was told so (`find_by_last4`).
            after: the last token of the page before; empty for the first page.
            limit: the most tokens of a page, from 1 to 1,000.

        Returns:
            Tokens in the order of issue; with a customer or last four digits, by token. An empty page is behind the
            last one.

        Raises:
            TokenNotFoundError: there is no token `after`, or it is not the requestor's.
            ConfigurationError: tokens are not found by their last four digits here.
        """
        wanted = arguments.wanted(requestor, customer, program, status, last4)
        most = checks.whole_number("limit", limit, 1, search.SEARCH_MAX)
        return await search.search(self._open(), wanted, after=arguments.after_token(after), limit=most)

    @async_call_boundary
    async def count(
        self,
        *,
        program: str | None = None,
        requestor: str | None = None,
        status: TokenStatus | None = None,
    ) -> int:
        """How many tokens there are, of a program, a requestor, a status, or several of them: by an index."""
        return await search.count(self._open(), arguments.wanted(requestor, None, program, status, None))

    @boundary
    def within(self, connection: object) -> Self:
        """This vault inside a transaction of your own: what it changes is there once you commit, or never was.

        It is used by `with`, or `async with`, and ends before you commit or roll back. It issues (`issue`,
        `issue_from`, `issue_many`), uses and manages tokens by single calls; a token that it changed is locked for
        others until you commit. What is refused or looked for leaves its event at once, whatever becomes of the
        transaction, and so does each card number that is handed out.

        Args:
            connection: to the database of this vault's token store, which is PostgreSQL: psycopg's, or SQLAlchemy's
                connection or session over psycopg. Its transaction is durable (`synchronous_commit`).

        Raises:
            ConfigurationError: the store has no part in such a transaction; or the connection commits by itself, only
                reads, is not durable, or is to another database (NO_TRANSACTION, STORE_NOT_DURABLE).
        """
        return self._anew(
            partial(within.inner_core, self._open(), self._store, connection, store_with_coroutines)
        )

    @async_boundary
    async def close(self) -> None:
        """Write the checkpoint that closes the audit trail, and refuse later calls; the stores stay open. Idempotent.

        Calls under way, in other threads or tasks, are waited for, at most 10 seconds. A forked child does not wait.
        The vault is closed also after an error: its trail then ends as that of a process that was killed.
        """
        await self._close()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with suppress(*(() if error is None else (TokenVaultError,))):  # the error on its way says more
            await self.close()
