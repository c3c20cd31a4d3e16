"""What calls are given and give back: domains, limits, transactions, programs, cards, decisions, events."""

from datetime import datetime, timedelta
from typing import assert_type

import tokenvault as tv


def domains(now: datetime) -> None:
    domain = tv.Domain(
        requestors={"40012345678"},
        merchants=["M-1001"],
        merchant_categories=("5411",),
        channels={tv.Channel.ECOMMERCE},
        countries=frozenset({"DE"}),
        currencies={"EUR"},
        devices={"phone-1"},
        valid_from=now,
        valid_until=now + timedelta(days=365),
        max_amount=tv.Money(250_00, "EUR"),
        limits=[tv.Limit(uses=10, per=timedelta(days=1)), tv.Limit(amount=tv.Money(1000_00, "EUR"))],
        cryptogram=tv.CryptogramRule.REQUIRED,
        assurances={"02", "12"},
        kinds=tv.AllBut({tv.Kind.CASH}),
        references={"order-1"},
        agents=tv.AllBut(["agent-1"]),
        min_amount=tv.Money(1, "EUR"),
        min_interval=timedelta(hours=1),
        strong_above=tv.Money(50_00, "EUR"),
        strong_factors=3,
        strong_max_age=timedelta(minutes=5),
        follow_ups_without_original=True,
    )
    assert_type(domain.requestors, frozenset[str] | tv.AllBut[str] | None)
    assert_type(domain.merchants, frozenset[str] | tv.AllBut[str] | None)
    assert_type(domain.channels, frozenset[tv.Channel] | tv.AllBut[tv.Channel] | None)
    assert_type(domain.valid_until, datetime | None)
    assert_type(domain.max_amount, tv.Money | None)
    assert_type(domain.limits, tuple[tv.Limit, ...])
    assert_type(domain.to_json(), str)
    assert_type(tv.Domain.from_json(b"{}"), tv.Domain)
    tv.Domain(channels={"ecommerce"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tv.Domain(max_amount=250)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    domain.max_amount = None  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def limits() -> None:
    limit = tv.Limit(uses=10)
    assert_type(limit.uses, int | None)
    assert_type(limit.amount, tv.Money | None)
    assert_type(limit.per, timedelta | tv.Period | None)
    tv.Limit(uses=1, per=tv.Period.DAY, zone="Asia/Shanghai", channels=tv.AllBut({tv.Channel.ATM}))
    assert_type(tv.Money(1, "EUR").amount, int)
    assert_type(tv.Money(1, "EUR").currency, str)
    tv.Limit(10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tv.Limit(uses=10, per=86_400)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def transactions() -> None:
    use = tv.Transaction(
        id="tx-1",
        requestor="40012345678",
        merchant="M-1001",
        merchant_category="5411",
        channel=tv.Channel.ECOMMERCE,
        country="DE",
        device="phone-1",
        amount=tv.Money(42_00, "EUR"),
        cryptogram_counter=7,
    )
    assert_type(use.id, str)
    assert_type(use.amount, tv.Money | None)
    assert_type(use.channel, tv.Channel | None)
    tv.Transaction("tx-1", "40012345678")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def programs() -> None:
    program = tv.TokenProgram(
        "shop",
        format=tv.TokenFormat(bin="999912", keep_last4=True, length=16, luhn=True),
        making=tv.Making.CONVERGENT,
        domain=tv.Domain(),
        expected_tokens=1_000_000,
    )
    assert_type(program.making, tv.Making)
    shop = tv.TokenRequestor(
        "40012345678", programs={"shop"}, permissions=[tv.Permission.ISSUE], domain=tv.Domain()
    )
    assert_type(shop.programs, frozenset[str])
    assert_type(shop.permissions, frozenset[tv.Permission])
    tv.TokenProgram("shop")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def tokens_and_cards(info: tv.TokenInfo, card: tv.Card) -> None:
    assert_type(info.token, str)
    assert_type(info.reference, str)
    assert_type(info.status, tv.TokenStatus)
    assert_type(info.suspended_by, frozenset[tv.Actor])
    assert_type(info.token_expiry, tv.CardExpiry | None)
    assert_type(info.last4, str | None)
    assert_type(info.created, datetime)
    assert_type(info.revision, int)
    assert_type(card.pan, tv.Pan)
    assert_type(card.expiry, tv.CardExpiry | None)
    assert_type(card.pan.reveal(), str)
    assert_type(card.pan.last4, str)
    assert_type(tv.Pan.parse("4111111111111111"), tv.Pan)
    assert_type(tv.CardExpiry.parse("2039-12"), tv.CardExpiry)
    info.token = ""  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def decisions(decision: tv.Decision) -> None:
    assert_type(decision.allowed, bool)
    assert_type(decision.violations, tuple[tv.Violation, ...])
    for violation in decision.violations:
        assert_type(violation.control, str)
        assert_type(violation.code, str)
        assert_type(violation.message, str)
        assert_type(violation.response_code, str)


def events(event: tv.AuditEvent, finding: tv.AuditFinding) -> None:
    assert_type(event.time, datetime)
    assert_type(event.requestor, str | None)
    assert_type(event.reference, str | None)
    assert_type(event.codes, tuple[str, ...])
    assert_type(event.number, int)
    assert_type(finding.kind, tv.FindingKind)
    assert_type(finding.message, str)
