"""Token programs and token requestors: the configuration that a vault is opened with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

import attrs

from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model import checks
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.token_format import TokenFormat
from tokenvault.model.words import Words

HEADROOM: Final = 2
"""A program's format has room for this many times the tokens expected, so that random draws find free ones."""

EXPECTED_TOKENS_MAX: Final = 10**15
_COMMON_PAN_LENGTH: Final = 16


class Making(Words):
    """How a program makes tokens.

    RANDOM: a new random token with each issue.
    CONVERGENT: the same PAN, requestor and program give the same token.
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
            digits, there must be room for twice as many.

    Raises:
        InvalidInputError: a value is of another form, or the format could not hold the program.
    """

    name: str
    format: TokenFormat = attrs.field(kw_only=True)
    making: Making = attrs.field(default=Making.RANDOM, kw_only=True)
    domain: Domain = attrs.field(default=NO_RESTRICTION, kw_only=True)
    expected_tokens: int = attrs.field(default=100_000, kw_only=True)

    def __attrs_post_init__(self) -> None:
        checks.text("a program's name", self.name)
        checks.instance("a program's format", self.format, TokenFormat)
        checks.instance("a program's making", self.making, Making)
        checks.instance("a program's domain", self.domain, Domain)
        checks.whole_number("expected_tokens", self.expected_tokens, 1, EXPECTED_TOKENS_MAX)
        capacity = self.format.capacity(self.format.length or _COMMON_PAN_LENGTH)
        if capacity < HEADROOM * self.expected_tokens:
            raise InvalidInputError(
                f"the format has {capacity} tokens, but {self.expected_tokens} expected tokens need room for"
                f" {HEADROOM * self.expected_tokens}: use a shorter BIN or a longer length"
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

    Raises:
        InvalidInputError: a value is of another form.
    """

    id: str
    programs: frozenset[str] = attrs.field(default=frozenset(), converter=_programs, kw_only=True)
    permissions: frozenset[Permission] = attrs.field(
        default=frozenset(Permission), converter=_permissions, kw_only=True
    )
    domain: Domain = attrs.field(default=NO_RESTRICTION, kw_only=True)

    def __attrs_post_init__(self) -> None:
        checks.requestor_id("a requestor's id", self.id)
        checks.instance("a requestor's domain", self.domain, Domain)
