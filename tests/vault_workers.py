"""What other processes do to a vault in the tests: module-level, so that spawn can import it."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import attrs

import tokenvault as tv
from tests import vaults
from tests.measuring import processes_unmeasured
from tokenvault.keys import KeyStore
from tokenvault.model.pan import luhn_check_digit
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.port import TokenStore
from tokenvault.vault.batch import run as batches

PROCESSES = 4
THREADS = 16
WRITER_THREADS = 3
SECONDS_MAX = 120.0
"""No wait of these tests is longer; what takes longer has failed."""

REDEEMED = "redeemed"


def card_number(number: int) -> str:
    """A PAN of its own for each number below 10**9."""
    payload = f"411111{number:09}"
    return payload + luhn_check_digit(payload)


@attrs.frozen
class Place:
    """Where a job runs: one of several processes, with a vault of its own over the database of all."""

    keys: KeyStore
    vault: tv.Vault
    store: TokenStore
    process: int
    together: Barrier

    def threads(self, work: Callable[[int], Any], count: int) -> list[Any]:
        """What each of the threads gets, numbered from 0; all of all processes begin at once."""
        start = threading.Barrier(count, action=self._wait_for_all)

        def begin(thread: int) -> Any:
            start.wait(SECONDS_MAX)
            return work(thread)

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(begin, range(count)))

    def _wait_for_all(self) -> None:
        self.together.wait(SECONDS_MAX)


Job = Callable[[Place, Any], Any]


@attrs.frozen
class Use:
    """One use to be tried, and what came of it: REDEEMED, or the codes of its violations."""

    id: str
    amount: int
    kind: tv.Kind = tv.Kind.PURCHASE
    original: str | None = None
    outcome: str = ""


@attrs.frozen
class LateUse:
    """A token whose use is written after it was suspended; many: by a batch."""

    token: str
    many: bool


@attrs.frozen
class Tries:
    """A token, and the uses that each thread of each process tries, in order."""

    token: str
    uses: list[list[list[Use]]]


def redeem(place: Place, tries: Tries) -> list[Use]:
    """Every thread tries its uses; what is neither the card nor a refusal by the domain fails the job."""

    def each(thread: int) -> list[Use]:
        return [one(use) for use in tries.uses[place.process][thread]]

    def one(use: Use) -> Use:
        amount = tv.Money(use.amount, "EUR")
        transaction = vaults.use(use.id, amount=amount, kind=use.kind, original=use.original)
        try:
            card = place.vault.detokenize(tries.token, transaction)
        except tv.DomainRestrictionError as refused:
            return attrs.evolve(use, outcome=" ".join(violation.code for violation in refused.violations))
        assert card.pan.reveal() == vaults.VISA
        return attrs.evolve(use, outcome=REDEEMED)

    return [use for uses in place.threads(each, THREADS) for use in uses]


GUESSING_THREADS = 2


def guess_tokens(place: Place, count: int) -> dict[str, int]:
    """Ask for so many tokens that there are not, each process and thread for others; what came of it, by code."""

    def each(thread: int) -> Counter[str]:
        found = Counter[str]()
        share = count // GUESSING_THREADS
        first = 9999990000000000 + count * place.process + share * thread
        for number in range(share):
            try:
                place.vault.detokenize(f"{first + number}", vaults.use(number))
            except tv.TokenVaultError as error:
                found[error.code] += 1
        return found

    return dict(sum(place.threads(each, GUESSING_THREADS), Counter[str]()))


def converge(place: Place, count: int) -> dict[int, str]:
    """Every process issues the same cards, in an order of its own, divided among four threads."""
    order = list(range(count))
    random.Random(place.process).shuffle(order)

    def each(thread: int) -> dict[int, str]:
        return {
            number: vaults.issue(place.vault, card_number(number), program="card-on-file").token
            for number in order[thread::4]
        }

    return {number: token for issued in place.threads(each, 4) for number, token in issued.items()}


def reveal(place: Place, request: str) -> list[str]:
    """Every thread reveals the card of one approved request, as the person who asked for it."""

    def each(_thread: int) -> str:
        try:
            return place.vault.reveal(request, operator="alice").pan.reveal()
        except tv.PermissionDeniedError as refused:
            return refused.code

    return place.threads(each, THREADS)


def use_beside_suspension(place: Place, uses: LateUse) -> str:
    """One process decides on a use; another one suspends the token; then the first one writes the use's event."""
    token, many = uses.token, uses.many
    if place.process > 0:
        place.together.wait(SECONDS_MAX)
        if place.process == 1:
            place.vault.suspend(token, by=tv.Actor.ISSUER)
        place.together.wait(SECONDS_MAX)
        return ""
    decided: list[str] = []

    class Late(Forwarding):
        write_limits = place.store.write_limits

        def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "append" and not decided:
                decided.append(name)
                place.together.wait(SECONDS_MAX)
                place.together.wait(SECONDS_MAX)
            return getattr(place.store, name)(*args, **kwargs)

    with vaults.open_vault(place.keys, Late()) as late:
        if many:
            cards = late.detokenize_many([(token, vaults.use())])
            return REDEEMED if not list(cards.errors) else "refused"
        try:
            late.detokenize(token, vaults.use())
        except tv.DomainRestrictionError:
            return "refused"
        return REDEEMED


def work(uri: str, process: int, together: Barrier, orders: Connection) -> None:
    """Open the keys once, then do one job after the other, until there is no more."""
    with closing(tv.open_key_store(uri)) as keys:
        orders.send(None)
        while (order := orders.recv()) is not None:
            url, job, argument = order
            try:
                with closing(tv.open_token_store(url)) as store, vaults.open_vault(keys, store) as vault:
                    answer = job(Place(keys, vault, store, process, together), argument)
            except BaseException:  # noqa: BLE001 # told to the parent, which fails
                orders.send((False, traceback.format_exc()))
                together.abort()
            else:
                orders.send((True, answer))


class Crew:
    """Processes that do the same job at the same time."""

    def __init__(self, uri: str) -> None:
        context = multiprocessing.get_context("spawn")
        together = context.Barrier(PROCESSES)
        self._orders: list[Connection] = []
        self._processes = []
        for number in range(PROCESSES):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(uri, number, together, theirs))
            process.start()
            theirs.close()
            self._orders.append(ours)
            self._processes.append(process)
        for orders in self._orders:
            _received(orders)

    def run(self, url: str, job: Job, argument: object) -> list[Any]:
        """What each process answers."""
        for orders in self._orders:
            orders.send((url, job, argument))
        answers = [_received(orders) for orders in self._orders]
        failures = [answer for well, answer in answers if not well]
        assert not failures, "\n".join(failures)
        return [answer for _, answer in answers]

    def dismiss(self) -> None:
        for orders in self._orders:
            with suppress(OSError):
                orders.send(None)
        for process in self._processes:
            process.join(SECONDS_MAX)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _received(orders: Connection) -> Any:
    assert orders.poll(SECONDS_MAX), "a worker does not answer"
    return orders.recv()


@contextmanager
def crew(uri: str) -> Iterator[Crew]:
    with processes_unmeasured():
        working = Crew(uri)
    try:
        yield working
    finally:
        working.dismiss()


def issue_for_ever(uri: str, url: str, first: int, told: Connection) -> None:
    """Issue tokens in several threads, and tell of each once it is returned: card and token, in one write."""
    with closing(tv.open_token_store(url)) as store:
        vault = vaults.open_vault(tv.open_key_store(uri), store)

        def each(thread: int) -> None:
            number = first + thread
            while True:
                token = vaults.issue(
                    vault, card_number(number), program=("one-time", "card-on-file")[number % 2]
                )
                os.write(told.fileno(), f"{number} {token.token}\n".encode())  # short, so in one piece
                number += WRITER_THREADS

        with ThreadPoolExecutor(WRITER_THREADS) as pool:
            list(pool.map(each, range(WRITER_THREADS)))


def issue_batches(uri: str, url: str, chunk_items: int, number: int, program: str) -> None:
    """Issue tokens for so many cards in one batch."""
    with closing(tv.open_key_store(uri)) as keys, closing(tv.open_token_store(url)) as store:
        batches.CHUNK_USES = chunk_items  # type: ignore[misc] # likewise
        batches.CHUNK_ITEMS = chunk_items  # type: ignore[misc] # many chunks, so that a kill finds one under way
        vault = vaults.open_vault(keys, store)
        vault.issue_many(map(card_number, range(number)), requestor=vaults.SHOP, program=program)


def issue_with_keys(uri: str, url: str, number: int) -> None:
    """Issue a token for each of so many cards, each under an idempotency key of its own."""
    with closing(tv.open_key_store(uri)) as keys, closing(tv.open_token_store(url)) as store:
        vault = vaults.open_vault(keys, store)
        for card in range(number):
            vaults.issue(vault, card_number(card), idempotency_key=str(card))
