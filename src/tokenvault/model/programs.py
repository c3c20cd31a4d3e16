"""Token programs and token requestors: the configuration that a vault is opened with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

import attrs

from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model import checks
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.pan import USUAL_PANS, PanRule
from tokenvault.model.plain_text import plain_field, plain_optional
from tokenvault.model.token_format import TokenFormat
from tokenvault.model.words import Words
from tokenvault.model.zones import zone_of

HEADROOM: Final = 2
"""A program's format has room for this many times the tokens expected, so that random draws find free ones."""

DENSITY: Final = 1_000
"""A program's format has room for this many times the tokens expected, so that a guess misses."""

EXPECTED_TOKENS_MAX: Final = 10**15
_COMMON_PAN_LENGTH: Final = 16
REFUSALS_MAX: Final = 100
"""The most refusals after which a program has a token suspended: they are read with each further one."""


class Making(Words):
    """How a program makes tokens.

    RANDOM: a new random token with each issue.
    CONVERGENT: the same PAN, requestor and program give the same token; where the program says so, the same customer.
    """

    RANDOM = "random"
    CONVERGENT = "convergent"


class Permission(Words):
    """What a requestor may do."""

    ISSUE = "issue"
    DETOKENIZE = "detokenize"
    MANAGE = "manage"


@boundary_init
@attrs.frozen
class TokenProgram:
    """A named kind of token.

    Attributes:
        name: 1 to 64 printable ASCII characters; stands in every record, so it does not change.
        format: what the tokens look like.
        making: RANDOM or CONVERGENT.
        domain: controls that hold for each token of the program.
        expected_tokens: how many tokens the program is planned for. With the format's length, or else with 16
            digits, or what of `pans` is next to that, there must be room for a thousand times as many.
        pans: which numbers it takes for PANs.
        per_customer: whether a convergent token is one for each customer of a card.
        accept_density: whether room for twice the expected tokens will do, though more guesses then hit one.
        suspend_after_refusals: 1 to 100: after so many different uses of a token that were refused within
            `Guard.per`, the vault suspends it as Actor.VAULT; None: never.
        expiry_zone: name of the time zone in which a month of expiry ends; None: the last one of the earth, UTC-12.

    Raises:
        InvalidInputError: a value is of another form, or the format could not hold the program.
    """

    name: str = attrs.field(converter=plain_field)
    format: TokenFormat = attrs.field(kw_only=True)
    making: Making = attrs.field(default=Making.RANDOM, kw_only=True)
    domain: Domain = attrs.field(default=NO_RESTRICTION, kw_only=True)
    expected_tokens: int = attrs.field(default=100_000, kw_only=True)
    pans: PanRule = attrs.field(default=USUAL_PANS, kw_only=True)
    per_customer: bool = attrs.field(default=False, kw_only=True)
    accept_density: bool = attrs.field(default=False, kw_only=True)
    expiry_zone: str | None = attrs.field(default=None, kw_only=True, converter=plain_optional)
    suspend_after_refusals: int | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        checks.text("a program's name", self.name)
        checks.instance("a program's format", self.format, TokenFormat)
        checks.instance("a program's making", self.making, Making)
        checks.instance("a program's domain", self.domain, Domain)
        checks.whole_number("expected_tokens", self.expected_tokens, 1, EXPECTED_TOKENS_MAX)
        checks.instance("a program's pans", self.pans, PanRule)
        checks.true_or_false("per_customer", self.per_customer)
        checks.true_or_false("accept_density", self.accept_density)
        if self.suspend_after_refusals is not None:
            checks.whole_number("suspend_after_refusals", self.suspend_after_refusals, 1, REFUSALS_MAX)
        if self.expiry_zone is not None:
            zone_of(self.expiry_zone)
        if self.per_customer and self.making is not Making.CONVERGENT:
            raise InvalidInputError(
                "per_customer is of a convergent program: a random one makes new tokens anyway"
            )
        self._check_capacity()

    def _check_capacity(self) -> None:
        shortest, longest = self.pans.lengths
        usual = min(max(_COMMON_PAN_LENGTH, shortest), longest)
        capacity = self.format.capacity(self.format.length or usual)
        wanted = (HEADROOM if self.accept_density else DENSITY) * self.expected_tokens
        if capacity < wanted:
            density = "" if self.accept_density else ", or accept_density where guesses may hit one"
            raise InvalidInputError(
                f"the format has {capacity} tokens, but {self.expected_tokens} expected tokens need room for"
                f" {wanted}: use a shorter BIN or a longer length{density}",
                code="PROGRAM_TOO_DENSE",
            )


def _programs(values: Iterable[str]) -> frozenset[str]:
    if isinstance(values, frozenset | set | tuple | list) and not values:
        return frozenset()
    return checks.set_of("a requestor's programs", values, partial(checks.text, "a program's name"))


def _permissions(values: Iterable[Permission]) -> frozenset[Permission]:
    check = partial(checks.instance, "a permission", kind=Permission)
    return checks.set_of("a requestor's permissions", values, check)


@boundary_init
@attrs.frozen
class TokenRequestor:
    """A party that uses the vault.

    Attributes:
        id: token requestor id (EMVCo), 11 digits: 3 of the provider, 8 of the requestor.
        programs: names of the programs that it may issue tokens of.
        permissions: what it may do: ISSUE tokens, DETOKENIZE those whose domain allows it, MANAGE its own.
        domain: controls that hold for each token issued to it.
        disabled: whether it may do nothing now. Its tokens still serve the others that their domains name.

    Raises:
        InvalidInputError: a value is of another form.
    """

    id: str = attrs.field(converter=plain_field)
    programs: frozenset[str] = attrs.field(default=frozenset(), converter=_programs, kw_only=True)
    permissions: frozenset[Permission] = attrs.field(
        default=frozenset(Permission), converter=_permissions, kw_only=True
    )
    domain: Domain = attrs.field(default=NO_RESTRICTION, kw_only=True)
    disabled: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        checks.requestor_id("a requestor's id", self.id)
        checks.instance("a requestor's domain", self.domain, Domain)
        checks.true_or_false("disabled", self.disabled)
