"""The programs and requestors of a vault, kept in memory for as long as its directory says that an answer holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from inspect import isawaitable, iscoroutinefunction
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import attrs

from tokenvault.errors import ConfigurationError, TokenStoreError, TokenVaultError, asked
from tokenvault.interrupts import is_interrupt
from tokenvault.model import checks
from tokenvault.model.clear_ids import Numbers
from tokenvault.model.pan import USUAL_PANS, PanRule
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.runtime import Runtime
from tokenvault.vault.directory import AGE_SECONDS, CONFIGURED_MAX, Directory, StaticDirectory, checked_age

P = TypeVar("P", TokenProgram, TokenRequestor)

PARTIES_CACHED_MAX: Final = 10_000
"""Requestors, and programs, that are kept in memory, of a directory that can be asked again."""

PUT_AT_ONCE_MAX: Final = 1_000
"""How often what is known is made again because other threads put programs at the same moment."""


class Read(NamedTuple, Generic[P]):
    """What a directory has under a name now.

    Attributes:
        party: the program or requestor; None where there is none.
        version: greater with each change; 0 where the directory counts none.
    """

    party: P | None
    version: int = 0


class Source(Protocol):
    """Where programs and requestors are read."""

    async def program(self, name: str, known: Read[TokenProgram] | None) -> Read[TokenProgram]:
        """The program of a name; `known` is what was read last. Raises TokenStoreError."""
        ...

    async def requestor(
        self,
        id: str,  # noqa: A002 # the field's word
        known: Read[TokenRequestor] | None,
    ) -> Read[TokenRequestor]:
        """The requestor of an id. Raises TokenStoreError."""
        ...

    async def programs(self) -> Mapping[str, Read[TokenProgram]] | None:
        """All programs, by name; None where the source can not list them. Raises TokenStoreError."""
        ...


class _Held(NamedTuple, Generic[P]):
    read: Read[P]
    until: float  # by time.monotonic


@attrs.frozen
class Programs:
    """The programs that are known, and what follows from all of them.

    Attributes:
        by_name: all, where the directory can list them.
        token_bins: their token BINs.
        any_pan: which numbers any of them takes for PANs.
        numbers: by which ids are told that could hold a token or a PAN.
    """

    by_name: Mapping[str, TokenProgram]
    token_bins: tuple[str, ...] = attrs.field(init=False)
    any_pan: PanRule = attrs.field(init=False)
    numbers: Numbers = attrs.field(init=False)

    @token_bins.default
    def _bins(self) -> tuple[str, ...]:
        return tuple(program.format.bin for program in self.by_name.values())

    @any_pan.default
    def _rule_of_any_program(self) -> PanRule:
        rules = [program.pans for program in self.by_name.values()] or [USUAL_PANS]
        fewest, most = zip(*(rule.lengths for rule in rules), strict=True)
        return PanRule(lengths=(min(fewest), max(most)), luhn=all(rule.luhn for rule in rules))

    @numbers.default
    def _numbers_of_all(self) -> Numbers:
        return Numbers.of(self.by_name.values())


class _Kept(Generic[P]):
    """What was read of programs, or of requestors."""

    def __init__(self) -> None:
        self._held: dict[str, _Held[P]] = {}

    def get(self, name: str) -> _Held[P] | None:
        return self._held.get(name)

    def has_later(self, name: str, read: Read[P]) -> bool:
        """Whether another thread has read a later version meanwhile."""
        held = self._held.get(name)
        return held is not None and held.read.version > read.version

    def put(self, name: str, read: Read[P], until: float) -> None:
        if self.has_later(name, read):
            return
        if name not in self._held and len(self._held) >= PARTIES_CACHED_MAX:
            self._held = {}
        self._held[name] = _Held(read, until)


class Parties:
    """The programs and requestors of one vault. Safe to share between threads: each change is one assignment.

    Attributes:
        known: the programs of the directory's list, and those that were asked for.
    """

    def __init__(self, source: Source, max_age_seconds: float) -> None:
        self._source: Final = source
        self._age: Final = max_age_seconds
        self._programs: Final = _Kept[TokenProgram]()
        self._requestors: Final = _Kept[TokenRequestor]()
        self._all: Final[dict[str, TokenProgram]] = {}  # what `known` is made of
        self._listed_until = 0.0
        self.known = Programs({})

    async def refresh(self, program: str | None = None) -> None:
        """Know all programs, and this one, as they were within the age of an answer. Raises TokenStoreError."""
        asked = time.monotonic()
        if asked >= self._listed_until:
            listed = await self._source.programs()
            self._put_programs({} if listed is None else listed, asked)
            self._listed_until = asked + self._age
        if program is not None:
            await self.program(program)

    async def program(self, name: str) -> TokenProgram | None:
        """The program of a name. Raises TokenStoreError."""
        held, asked = self._programs.get(name), time.monotonic()
        if held is not None and asked < held.until:
            return held.read.party
        read = await self._source.program(name, None if held is None else held.read)
        self.put_program(name, read, asked)
        return read.party

    async def requestor(self, id: str) -> TokenRequestor | None:  # noqa: A002 # the field's word
        """The requestor of an id. Raises TokenStoreError."""
        held, asked = self._requestors.get(id), time.monotonic()
        if held is not None and asked < held.until:
            return held.read.party
        read = await self._source.requestor(id, None if held is None else held.read)
        self.put_requestor(id, read, asked)
        return read.party

    def version(self, kind: type[TokenProgram] | type[TokenRequestor], name: str) -> int:
        """The version that this process knows of a program or requestor; 0 where it knows none."""
        held = self._programs.get(name) if kind is TokenProgram else self._requestors.get(name)
        return 0 if held is None else held.read.version

    def put_program(self, name: str, read: Read[TokenProgram], asked: float) -> None:
        """Note what a program is, as read after an instant of time.monotonic."""
        self._put_programs({name: read}, asked)

    def _put_programs(self, reads: Mapping[str, Read[TokenProgram]], asked: float) -> None:
        taken = {name: read for name, read in reads.items() if not self._programs.has_later(name, read)}
        for name, read in taken.items():
            if read.party is None:
                self._all.pop(name, None)
            elif self._all.get(name) != read.party:  # what stays is compared by identity below
                self._all[name] = read.party
        for _ in range(PUT_AT_ONCE_MAX):
            programs = self._all.copy()
            if self.known.by_name == programs:
                break
            self.known = Programs(programs)  # and look again: others may have put one meanwhile
        else:
            return  # nothing is held: the next call reads them again
        # Last: if an exception comes before, they are read again, and known then.
        for name, read in taken.items():
            self._programs.put(name, read, asked + self._age)

    def put_requestor(self, id: str, read: Read[TokenRequestor], asked: float) -> None:  # noqa: A002 # the field's word
        """Note what a requestor is, as read after an instant of time.monotonic."""
        self._requestors.put(id, read, asked + self._age)


class DirectorySource:
    """The programs and requestors of a directory that the host gave."""

    def __init__(self, directory: Directory, runtime: Runtime) -> None:
        self._directory: Final = directory
        self._runtime: Final = runtime

    async def program(self, name: str, known: Read[TokenProgram] | None) -> Read[TokenProgram]:
        """As in Source."""
        found = await self._asked(self._directory.program, name)
        return Read(_checked(found, TokenProgram, lambda program: program.name == name))

    async def requestor(
        self,
        id: str,  # noqa: A002 # the field's word
        known: Read[TokenRequestor] | None,
    ) -> Read[TokenRequestor]:
        """As in Source."""
        found = await self._asked(self._directory.requestor, id)
        return Read(_checked(found, TokenRequestor, lambda requestor: requestor.id == id))

    async def programs(self) -> Mapping[str, Read[TokenProgram]] | None:
        """As in Source."""
        listing = getattr(self._directory, "programs", None)
        if not callable(listing):
            return None
        found = await self._asked(listing)
        values = found
        if isinstance(found, Mapping):
            values = asked("the mapping of a directory's programs failed", found.values)
        programs = [
            checks.instance("each of a directory's programs", each, TokenProgram)
            for each in checks.listed("a directory's programs", values, CONFIGURED_MAX)
        ]
        return {program.name: Read(program) for program in programs}

    async def _asked(self, method: Callable[..., Any], *names: str) -> object:
        """The answer of a directory. Raises TokenStoreError."""
        try:
            if isinstance(self._directory, StaticDirectory):
                return method(*names)
            if iscoroutinefunction(method):
                return await method(*names)
            found = await self._runtime.block(method, *names)
            return await found if isawaitable(found) else found
        except TokenVaultError:
            raise
        except Exception as error:
            if is_interrupt(error):
                raise
            raise TokenStoreError("the directory failed", code="DIRECTORY_FAILED") from None


def _checked(found: object, kind: type[P], fits: Callable[[P], bool]) -> P | None:
    """What a directory answered. Raises ConfigurationError where it is not what was asked for."""
    if found is None:
        return None
    if type(found) is not kind or not fits(found):
        raise ConfigurationError(
            f"the directory answered with something else than the {kind.__name__} that it was asked for",
            code="DIRECTORY_WRONG",
        )
    return found


def age_of(directory: Directory) -> float:
    """For how many seconds an answer of a directory holds. Raises InvalidInputError."""
    return checked_age(getattr(directory, "max_age_seconds", AGE_SECONDS))
