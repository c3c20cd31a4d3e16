"""A risk control: asked once a use is allowed, and whatever it does, no card leaves against its answer."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

import tokenvault as tv
from tests.faces import open_face
from tests.interrupts import SoftLimitError, thread_starts_struck
from tests.strategies import NOW_MS
from tests.test_leaks import NEEDLES, assert_silent
from tests.vaults import PROGRAMS, REQUESTORS, SHOP, VISA, issue, use
from tokenvault.keys import KeyStore
from tokenvault.runtime import ASKED_MAX
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.vault.risk import CHUNK_DEADLINES

ALLOW, AUTHENTICATE, REFUSE = tv.RiskDecision
SOON = timedelta(milliseconds=50)
LIMITED = tv.Domain(limits=(tv.Limit(uses=3),))


@attrs.define
class Judge:
    """Answers as it is told, and keeps what it was asked."""

    answer: Callable[[tv.RiskRequest], Any] = lambda _: tv.RiskAnswer(ALLOW, 7)
    asked: list[tv.RiskRequest] = attrs.field(factory=list)

    def assess(self, request: tv.RiskRequest) -> Any:
        self.asked.append(request)
        return self.answer(request)


@attrs.define
class AsyncJudge(Judge):
    async def assess(self, request: tv.RiskRequest) -> Any:
        return super().assess(request)


def judged(keys: KeyStore, store: TokenStore, judge: Judge, **policy: Any) -> tv.Vault:
    on_a_loop = getattr(store, "run", None) is not None
    control = AsyncJudge(judge.answer, judge.asked) if on_a_loop else judge
    return open_face(
        keys,
        store,
        programs=PROGRAMS,
        requestors=REQUESTORS,
        clock=ManualClock(NOW_MS),
        risk=tv.RiskPolicy(control, **policy),
    )


def codes(call: Callable[..., object], *given: object) -> tuple[str, ...]:
    """Of the controls that refuse a use, however it is asked."""
    try:
        answer = call(*given)
    except tv.DomainRestrictionError as refused:
        answer = refused
    if isinstance(answer, tv.BatchResult):
        (answer,) = answer
    if isinstance(answer, tv.DomainRestrictionError | tv.Decision):
        return tuple(violation.code for violation in answer.violations)
    assert isinstance(answer, tv.Card)
    return ()


def ways(vault: tv.Vault, token: str) -> dict[str, Callable[[tv.Transaction], object]]:
    return {
        "detokenize": lambda transaction: vault.detokenize(token, transaction),
        "check": lambda transaction: vault.check(token, transaction),
        "detokenize_many": lambda transaction: vault.detokenize_many([(token, transaction)]),
        "check_many": lambda transaction: vault.check_many([(token, transaction)]),
    }


def test_its_answer_holds_by_every_call_of_every_face(keys: KeyStore, store: TokenStore) -> None:
    strong = tv.Authentication(
        factors={tv.Factor.POSSESSION, tv.Factor.INHERENCE},
        at=datetime.fromtimestamp(NOW_MS / 1_000, UTC) - timedelta(minutes=1),
    )
    old = attrs.evolve(strong, at=strong.at - timedelta(minutes=15))
    answers: dict[tv.RiskDecision, list[tuple[tuple[str, ...], tv.Authentication | None]]] = {
        ALLOW: [((), None), ((), strong)],
        AUTHENTICATE: [
            (("STRONG_AUTHENTICATION_REQUIRED",), None),
            (("STRONG_AUTHENTICATION_REQUIRED",), old),
            ((), strong),
        ],
        REFUSE: [(("RISK_REFUSED",), None), (("RISK_REFUSED",), strong)],
    }
    decision = ALLOW
    judge = Judge(lambda _: tv.RiskAnswer(decision, 42))
    with judged(keys, store, judge, deadline=timedelta(seconds=20)) as vault:
        for domain in (None, tv.Domain(limits=(tv.Limit(uses=100),))):
            token = issue(vault, domain=domain).token
            for decision, expected in answers.items():
                for number, (refused, authentication) in enumerate(expected):
                    for name, way in ways(vault, token).items():
                        transaction = use(f"{name}-{decision.value}-{number}", authentication=authentication)
                        assert codes(way, transaction) == refused
            assert {event.score for event in vault.history(token) if event.action.name == "DETOKENIZE"} == {
                42
            }
    assert {request.checking for request in judge.asked} == {True, False}


def test_it_sees_the_use_and_the_token_and_never_the_card(local_keys: KeyStore) -> None:
    judge = Judge()
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with judged(local_keys, store, judge) as vault:
            info = issue(vault, metadata={"a": "b"})
            vault.detokenize(info.token, use(1, merchant="M-1"))
            vault.detokenize_many([(info.reference, use(2))])
            with pytest.raises(tv.InvalidInputError):  # the card number stands in the use
                vault.detokenize(info.token, use(f"x{VISA}"))
        first, second = judge.asked
        assert (first.transaction.merchant, second.transaction.id) == ("M-1", "tx-2")
        assert {each.token.reference for each in judge.asked} == {info.reference}
        for request in judge.asked:
            shown = f"{request!r} {attrs.asdict(request.token)} {request.token.last4}"
            assert not any(needle in shown for needle in NEEDLES)
            assert not any(VISA in str(getattr(request.token, name)) for name in dir(request.token))


def test_it_is_asked_once_about_a_use_that_the_domain_allows_and_not_about_a_retry(
    local_keys: KeyStore,
) -> None:
    judge = Judge()
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with judged(local_keys, store, judge) as vault:
            token = issue(vault, domain=tv.Domain(merchants={"M-1"})).token
            for way in ways(vault, token).values():
                assert codes(way, use(1)) == ("MERCHANT_NOT_ALLOWED",)
            assert judge.asked == []
            vault.detokenize(token, use(1, merchant="M-1"))
            judge.answer = lambda _: tv.RiskAnswer(REFUSE)
            for way in ways(vault, token).values():
                assert codes(way, use(1, merchant="M-1")) == ()
            assert len(judge.asked) == 1


def test_a_use_that_it_refuses_counts_in_no_limit(local_keys: KeyStore) -> None:
    judge = Judge(lambda request: tv.RiskAnswer(REFUSE if request.transaction.amount is None else ALLOW))
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with judged(local_keys, store, judge) as vault:
            token = issue(vault, domain=LIMITED).token
            for number in range(10):
                assert codes(vault.detokenize, token, use(number)) == ("RISK_REFUSED",)
                assert codes(vault.detokenize_many, [(token, use(f"m{number}"))]) == ("RISK_REFUSED",)
            assert vault.remaining(token)[0].used == 0
            paid = [use(f"paid-{number}", amount=tv.Money(1, "EUR")) for number in range(3)]
            assert not vault.detokenize_many([(token, each) for each in paid]).failed
            assert vault.remaining(token)[0].left == 0
        assert not tv.verify_audit(store, keys=local_keys).findings


def fails(_: object) -> None:
    raise ValueError(f"the card {VISA} is bad")


def exits(_: object) -> None:
    sys.exit(f"{VISA}")


def hangs(_: object) -> None:
    time.sleep(3)


WRONG: dict[str, Callable[[object], object]] = {
    "raises": fails,
    "exits": exits,
    "hangs": hangs,
    "None": lambda _: None,
    "bool": lambda _: True,
    "decision": lambda _: ALLOW,
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("otherwise", tv.RiskDecision)
def test_where_it_gives_no_answer_the_declared_one_holds_in_time(
    name: str,
    otherwise: tv.RiskDecision,
    local_keys: KeyStore,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = {
        ALLOW: (),
        AUTHENTICATE: ("STRONG_AUTHENTICATION_REQUIRED",),
        REFUSE: ("RISK_UNANSWERED",),
    }[otherwise]
    caplog.set_level(logging.DEBUG)
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with judged(local_keys, store, Judge(WRONG[name]), deadline=SOON, otherwise=otherwise) as vault:
            token = issue(vault).token
            for number, (way, call) in enumerate(ways(vault, token).items()):
                begun = time.monotonic()
                assert codes(call, use(number)) == expected, way
                assert time.monotonic() - begun < 1
            told = [event.codes for event in vault.history(token) if event.action.name == "DETOKENIZE"]
            assert told == [expected or ("RISK_UNANSWERED",)] * 2
    assert VISA not in caplog.text
    assert VISA not in "".join(capfd.readouterr())


def test_an_error_of_its_own_never_reaches_the_caller(local_keys: KeyStore) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with judged(local_keys, store, Judge(fails)) as vault:
            token = issue(vault).token
            with pytest.raises(tv.DomainRestrictionError) as refused:
                vault.detokenize(token, use())
    assert_silent(refused.value)
    assert refused.value.__cause__ is refused.value.__context__ is None


def test_a_batch_does_not_wait_for_each_answer_that_does_not_come(local_keys: KeyStore) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        let_go = threading.Event()
        judge = Judge(lambda _: let_go.wait(20))
        with judged(local_keys, store, judge, deadline=SOON) as vault:
            token = issue(vault).token
            begun = time.monotonic()
            results = vault.detokenize_many([(token, use(number)) for number in range(200)])
            assert time.monotonic() - begun < 2 * CHUNK_DEADLINES * SOON.total_seconds() + 1
            assert {error.code for error in results.errors.values()} == {"RISK_UNANSWERED"}
            assert len(judge.asked) <= CHUNK_DEADLINES + 1
        let_go.set()


def test_calls_that_hang_are_bounded(local_keys: KeyStore) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        let_go = threading.Event()
        judge = Judge(lambda _: let_go.wait(600))
        with judged(local_keys, store, judge, deadline=timedelta(milliseconds=1)) as vault:
            token = issue(vault).token
            for number in range(ASKED_MAX + 20):
                assert codes(vault.detokenize, token, use(number)) == ("RISK_UNANSWERED",)
            assert len(judge.asked) <= ASKED_MAX
            let_go.set()
            judge.answer = lambda _: tv.RiskAnswer(ALLOW)
            until = time.monotonic() + 10
            while any(thread.name == "tokenvault-ask" for thread in threading.enumerate()):
                assert time.monotonic() < until
                time.sleep(0.01)
        with judged(local_keys, store, judge) as vault:
            assert codes(vault.detokenize, token, use("after")) == ()


def test_a_time_limit_that_is_a_runtime_error_is_not_taken_for_a_thread_that_is_not_to_be_had(
    local_keys: KeyStore,
) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with judged(local_keys, store, Judge()) as vault:
            token = issue(vault).token
            with thread_starts_struck(), pytest.raises(SoftLimitError):
                vault.detokenize(token, use())
            assert codes(vault.detokenize, token, use(2)) == ()


def test_a_suspension_while_it_is_asked_holds(local_keys: KeyStore) -> None:
    """It is asked between reading and writing, and no lock is held meanwhile."""
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        other = open_face(
            local_keys, store, programs=PROGRAMS, requestors=REQUESTORS, clock=ManualClock(NOW_MS)
        )

        def suspend(request: tv.RiskRequest) -> tv.RiskAnswer:
            if request.token.status is tv.TokenStatus.ACTIVE:
                other.suspend(request.token.token, by=tv.Actor.ISSUER)
            return tv.RiskAnswer(ALLOW)

        with judged(local_keys, store, Judge(suspend), deadline=timedelta(seconds=20)) as vault:
            for domain in (None, LIMITED):
                for way in ("detokenize", "detokenize_many"):
                    token = issue(vault, domain=domain).token
                    call = ways(vault, token)[way]
                    assert codes(call, use()) == ("TOKEN_SUSPENDED",)


def test_a_use_that_needs_strong_authentication_is_no_failure(local_keys: KeyStore) -> None:
    """Neither the guard nor the token's program counts it: the cardholder comes back with more."""
    judge = Judge(lambda _: tv.RiskAnswer(AUTHENTICATE))
    program = tv.TokenProgram("p", format=tv.TokenFormat(bin="999917"), suspend_after_refusals=1)
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        parts: dict[str, Any] = {
            "programs": [program],
            "requestors": [tv.TokenRequestor(SHOP, programs={"p"})],
            "guard": tv.Guard(refusals=2),
            "risk": tv.RiskPolicy(judge),
        }
        with tv.Vault(local_keys, store, **parts) as vault:
            token = issue(vault, program="p").token
            for number in range(5):
                assert codes(vault.detokenize, token, use(number)) == ("STRONG_AUTHENTICATION_REQUIRED",)
            assert vault.get(token).status is tv.TokenStatus.ACTIVE


def test_a_coroutine_that_hangs_or_fails_is_cancelled_and_tells_nothing(
    local_keys: KeyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = []
    running: list[int] = [0]

    @attrs.frozen
    class Slow:
        async def assess(self, request: tv.RiskRequest) -> tv.RiskAnswer:
            running.append(running[-1] + 1)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                running.append(running[-1] - 1)
                cancelled.append(request)
                raise ValueError(VISA) from None
            raise AssertionError

    async def main() -> None:
        store = tv.open_async_token_store(f"sqlite:///{tmp_path}/vault.db")
        await tv.provision_async(local_keys, store)
        risk = tv.RiskPolicy(Slow(), deadline=SOON)
        async with tv.AsyncVault(
            local_keys, store, programs=PROGRAMS, requestors=REQUESTORS, risk=risk
        ) as vault:
            info = await vault.issue(VISA, expiry="2039-12", requestor=SHOP, program="one-time")
            calls = [vault.detokenize(info.token, use(number)) for number in range(2 * ASKED_MAX)]
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert {getattr(each, "code", None) for each in found} == {"RISK_UNANSWERED"}
        await asyncio.sleep(0.05)
        assert len(cancelled) >= 1
        assert (max(running), running[-1]) <= (ASKED_MAX, 0)
        await store.close()

    caplog.set_level(logging.DEBUG)
    asyncio.run(main())
    assert VISA not in caplog.text


def test_a_policy_s_values_are_checked(local_keys: KeyStore) -> None:
    judge = Judge()
    wrongs: tuple[dict[str, Any], ...] = (
        {"control": object()},
        {"deadline": timedelta(0)},
        {"deadline": timedelta(seconds=31)},
        {"deadline": 1},
        {"otherwise": "refuse"},
    )
    for wrong in wrongs:
        with pytest.raises(tv.InvalidInputError):
            tv.RiskPolicy(**{"control": judge, **wrong})
    scores: tuple[Any, ...] = (-1, 1_000, True, "7")
    for score in scores:
        with pytest.raises(tv.InvalidInputError):
            tv.RiskAnswer(ALLOW, score)
    with pytest.raises(tv.InvalidInputError):
        tv.RiskAnswer("allow")  # type: ignore[arg-type]
    for score in (0, 999, None):
        assert tv.RiskAnswer(ALLOW, score).score == score
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        for risk in (judge, tv.RiskPolicy(AsyncJudge())):
            with pytest.raises(tv.InvalidInputError):
                tv.Vault(local_keys, store, risk=risk)  # type: ignore[arg-type]
