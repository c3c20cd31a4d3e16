"""Programs and requestors in the database: authenticated, versioned, and never changed in place.

Each version is a named value of its own, and the first to write one wins: so two changes at once can not both be the
next, on any store. docs/formats.md has the bytes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple, TypeVar

import attrs

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.macs import AuditKeys
from tokenvault.audit.trail import Trail
from tokenvault.crypto.cmac import TAG_BYTES
from tokenvault.errors import ConfigurationError, ConflictError, IntegrityError, InvalidInputError
from tokenvault.model import party_document
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.runtime import Clock, Runtime
from tokenvault.stores.port import META_VALUE_BYTES_MAX, AsyncTokenStore
from tokenvault.vault.documents import Documents
from tokenvault.vault.parties import Parties, Read

P = TypeVar("P", TokenProgram, TokenRequestor)

CONFLICTS_MAX: Final = 64
"""How often a change starts over because another one of the same program or requestor came first."""

VERSIONS_MAX: Final = 2**31

_LOOK_AHEAD_MAX: Final = 100
"""How far behind the newest version a change looks for others, in case some between were taken out."""

_LABEL: Final = b"tokenvault: program or requestor\0"
_PROGRAM: Final = "program"
_REQUESTOR: Final = "requestor"
_LIST: Final = "programs"


class StoredParties:
    """The programs and requestors that a database has."""

    def __init__(
        self, store: AsyncTokenStore, runtime: Runtime, keys: AuditKeys, documents: Documents
    ) -> None:
        self._store: Final = store
        self._runtime: Final = runtime
        self._keys: Final = keys
        self._documents: Final = documents

    async def program(self, name: str, known: Read[TokenProgram] | None) -> Read[TokenProgram]:
        """As in `parties.Source`."""
        return await self._read(TokenProgram, _PROGRAM, name, known)

    async def requestor(
        self,
        id: str,  # noqa: A002 # the field's word
        known: Read[TokenRequestor] | None,
    ) -> Read[TokenRequestor]:
        """As in `parties.Source`."""
        return await self._read(TokenRequestor, _REQUESTOR, id, known)

    async def programs(self) -> Mapping[str, Read[TokenProgram]]:
        """As in `parties.Source`. A row that no vault wrote is passed over: it keeps nobody from the others."""
        found = {}
        for place in range(1, VERSIONS_MAX):
            with suppress(IntegrityError):
                name = await self._value(f"{_LIST}:{place}")
                if name is None:
                    break
                found[name] = await self.program(name, None)
        return found

    async def next_version(self, kind: type[P], name: str, known: int) -> int:
        """The version that a change of a program or requestor gets: above all that a vault could act on.

        Where somebody took versions out, those behind them are not seen from the first one on, and are by a vault
        that knows one of them. So it is looked behind a gap too, and from the one that this vault knows.
        """
        what = _kind_of(kind)
        newest = max(await self._latest(what, name, 0), await self._latest(what, name, known))
        for version in range(newest + 2, newest + 2 + _LOOK_AHEAD_MAX):
            if await self._store.get_meta(_row(what, name, version)):
                newest = version
        return newest + 1

    async def put(self, kind: type[P], name: str, version: int, document: str) -> bool:
        """Write a version of a program or requestor. Returns whether it was the first to be this version."""
        what = _kind_of(kind)
        if kind is TokenProgram and version == 1:
            await self._list(name)
        return await self._put(_row(what, name, version), document)

    def check_length(self, document: str) -> None:
        """Raise InvalidInputError for a document that a named value can not hold."""
        if len(document) > META_VALUE_BYTES_MAX - TAG_BYTES:
            raise InvalidInputError(
                f"a program or requestor takes at most {META_VALUE_BYTES_MAX - TAG_BYTES} characters as JSON:"
                " it names too many programs",
                code="PARTY_TOO_LONG",
            )

    async def _list(self, name: str) -> None:
        """Append a program's name to the list of all, unless it is there."""
        for place in range(1, VERSIONS_MAX):
            row = f"{_LIST}:{place}"
            with suppress(IntegrityError):  # a row that no vault wrote: the next one
                if await self._put(row, name) or await self._value(row) == name:
                    return

    async def _read(self, kind: type[P], what: str, name: str, known: Read[P] | None) -> Read[P]:
        before = 0 if known is None else known.version
        version = await self._latest(what, name, before)
        if version == 0:
            return Read(None)
        if known is not None and version == before:
            return known
        document = await self._value(_row(what, name, version))
        if document is None:
            raise IntegrityError("a version of a program or requestor was removed from the database")
        domain = await self._documents.get(party_document.domain_of(document))
        return Read(party_document.decode(kind, document, domain), version)

    async def _latest(self, what: str, name: str, known: int) -> int:
        """The number of the newest version from `known` on, 0 where there is none: in a few reads, however many."""
        low, step = known, 1
        while low + step < VERSIONS_MAX and await self._store.get_meta(_row(what, name, low + step)):
            low, step = low + step, 2 * step
        while step > 1:
            step //= 2
            if await self._store.get_meta(_row(what, name, low + step)):
                low += step
        return low

    async def _value(self, row: str) -> str | None:
        """What stands in a row, authenticated. Raises IntegrityError."""
        value = await self._store.get_meta(row)
        if value is None:
            return None
        tag, content = value[:TAG_BYTES], value[TAG_BYTES:]
        if not await self._runtime.call(self._keys.is_genuine, _leaf(row, content), tag):
            raise IntegrityError("a program or requestor in the database is not what a vault wrote")
        return content.decode("ascii")

    async def _put(self, row: str, text: str) -> bool:
        """Write a row that there is not yet. Returns whether it is this one that stands there now."""
        content = text.encode("ascii")
        if (before := await self._store.get_meta(row)) is None:
            value = await self._runtime.call(self._keys.tag, _leaf(row, content)) + content
            before = await self._store.put_meta(row, value)
            return before == value
        return False


class DirectoryChange(NamedTuple):
    """A change of a program or requestor.

    Attributes:
        action: what is done.
        party: the program or requestor as it is to be.
        operator: the person behind it.
    """

    action: Action
    party: TokenProgram | TokenRequestor
    operator: str | None


@attrs.frozen
class Registry:
    """Changes the programs and requestors of a vault's database, each change with an event before it."""

    stored: StoredParties
    parties: Parties
    trail: Trail
    documents: Documents
    clock: Clock

    async def put(self, change: DirectoryChange) -> None:
        """Write a program or requestor as it is to be. Raises ConflictError, TokenStoreError."""
        party = change.party
        document = party_document.encode(party)
        self.stored.check_length(document)
        if isinstance(party, TokenRequestor):
            for name in sorted(party.programs):
                if await self.parties.program(name) is None:
                    raise InvalidInputError(
                        "a requestor may issue tokens of a program that this directory does not have",
                        code="PROGRAM_UNKNOWN",
                    )
        await self.documents.put(party.domain)
        if isinstance(party, TokenProgram):
            version = await self._put(TokenProgram, party.name, document, change)
            self.parties.put_program(party.name, Read(party, version), time.monotonic())
        else:
            version = await self._put(TokenRequestor, party.id, document, change)
            self.parties.put_requestor(party.id, Read(party, version), time.monotonic())

    async def disable(self, id: str, operator: str | None) -> None:  # noqa: A002 # the field's word
        """Let a requestor do nothing from now on. Raises InvalidInputError where there is none."""
        # Where its first version was taken out, only a vault that knows a later one acts on it, and disables it.
        found = (await self.stored.requestor(id, None)).party or await self.parties.requestor(id)
        if found is None:
            raise InvalidInputError("there is no such requestor", code="REQUESTOR_UNKNOWN")
        await self.put(
            DirectoryChange(Action.DISABLE_REQUESTOR, attrs.evolve(found, disabled=True), operator)
        )

    async def _put(self, kind: type[P], name: str, document: str, change: DirectoryChange) -> int:
        for _ in range(CONFLICTS_MAX):
            version = await self.stored.next_version(kind, name, self.parties.version(kind, name))
            await self.trail.note(
                Event(
                    time_ms=self.clock.now_ms(),
                    action=change.action,
                    outcome=Outcome.DONE,
                    operator=change.operator,
                    codes=(name, f"VERSION_{version}"),
                )
            )
            if await self.stored.put(kind, name, version, document):
                return version
        raise ConflictError("others keep changing this program or requestor; retry later")


def not_stored() -> ConfigurationError:
    """The error of a change where programs and requestors are not in the database."""
    return ConfigurationError(
        "programs and requestors are changed where the vault has a StoredDirectory: give it one as directory=",
        code="DIRECTORY_NOT_STORED",
    )


def _kind_of(kind: type[P]) -> str:
    return _PROGRAM if kind is TokenProgram else _REQUESTOR


def _row(what: str, name: str, version: int) -> str:
    """The name of the row of a version: at most 64 characters, whatever the name of the program."""
    digest = hashlib.sha256(name.encode("ascii")).hexdigest()[:32]
    return f"{what}:{digest}:{version}"


def _leaf(row: str, content: bytes) -> bytes:
    """What the MAC of a row is of: a SHA-256 that is of nothing else."""
    return hashlib.sha256(_LABEL + row.encode("ascii") + b"\0" + content).digest()
