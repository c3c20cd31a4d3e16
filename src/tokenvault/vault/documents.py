"""Domain documents: read from the database, authenticated, and kept in memory."""

from __future__ import annotations

from typing import Final, NamedTuple

from tokenvault.errors import ConfigurationError, IntegrityError, InvalidInputError
from tokenvault.model.decision import Restrictions
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.records.record import TokenRecord
from tokenvault.stores.port import AsyncTokenStore, digest_of
from tokenvault.stores.write_limits import DOCUMENT_BESIDE_BYTES_MAX
from tokenvault.vault.parties import Parties

DOMAINS_CACHED_MAX: Final = 10_000
DOCUMENT_BYTES_CACHED_MAX: Final = 8 * 2**20
"""Of the documents of all cached domains together; in memory a domain takes some four times its document."""


class _Kept(NamedTuple):
    """What applies to a token, and what that was found from."""

    program: TokenProgram
    owner: TokenRequestor
    other: TokenRequestor | None
    restrictions: Restrictions


class Documents:
    """Domain documents by their SHA-256. They are immutable, so a cached one stays right.

    The cache is bounded by their number and by their bytes: whoever issues tokens chooses how large they are.
    """

    def __init__(self, store: AsyncTokenStore) -> None:
        self._store = store
        self._domains: dict[bytes, Domain] = {NO_RESTRICTION.digest: NO_RESTRICTION}
        self._restrictions: dict[tuple[str, str, bytes, str], _Kept] = {}
        self._document_bytes = 0

    async def get(self, digest: bytes) -> Domain:
        """The domain kept under a digest. Raises IntegrityError, TokenStoreError."""
        cached = self._domains.get(digest)
        if cached is not None:
            return cached
        document = await self._store.get_domain(digest)
        if document is None or digest_of(document) != digest:
            raise IntegrityError("a domain document is missing from the database or was changed")
        try:
            domain = Domain.from_json(document)
        except InvalidInputError:
            raise IntegrityError(
                "a domain document was written by a newer version of the library",
                code="WRITTEN_BY_NEWER_VERSION",
            ) from None
        self.written(domain)
        return domain

    def unwritten(self, domain: Domain) -> bytes | None:
        """The document of a domain; None if it is known to be in the database."""
        return None if domain.digest in self._domains else domain.document

    async def beside(self, domain: Domain) -> bytes | None:
        """The document of a domain, to be written with a record; None if it is there, or was too large and is now."""
        document = self.unwritten(domain)
        if document is None or len(document) <= DOCUMENT_BESIDE_BYTES_MAX:
            return document
        await self.put(domain)
        return None

    async def put(self, domain: Domain) -> None:
        """Keep a domain in the database. Raises TokenStoreError."""
        document = self.unwritten(domain)
        if document is not None:
            await self._store.put_domain(domain.digest, document)
            self.written(domain)

    def written(self, domain: Domain) -> None:
        """Note that a domain is in the database."""
        if domain.digest in self._domains:
            return
        size = len(domain.document)
        if (
            len(self._domains) >= DOMAINS_CACHED_MAX
            or self._document_bytes + size > DOCUMENT_BYTES_CACHED_MAX
        ):
            # Each in one step, as other threads read meanwhile: the empty domain stands in no database.
            self._domains = {NO_RESTRICTION.digest: NO_RESTRICTION}
            self._restrictions = {}  # which hold domains too
            self._document_bytes = 0
        self._domains[domain.digest] = domain
        self._document_bytes += size

    async def restrictions(self, parties: Parties, record: TokenRecord, acting: str) -> Restrictions:
        """The documents that apply to a token in the hands of a requestor.

        Raises ConfigurationError, IntegrityError, TokenStoreError.
        """
        program, owner = await parties.program(record.program), await parties.requestor(record.requestor)
        if program is None or owner is None:
            missing = "program" if program is None else "requestor"
            raise ConfigurationError(
                f"the token's {missing} is not among the {missing}s of this vault: add it",
                code="PROGRAM_OR_REQUESTOR_MISSING",
            )
        other = None if acting == record.requestor else await parties.requestor(acting)
        key = record.program, record.requestor, record.domain, acting
        kept = self._restrictions.get(key)
        if kept is not None and kept.program is program and kept.owner is owner and kept.other is other:
            return kept.restrictions
        restrictions = Restrictions(
            program=program.domain,
            requestor=owner.domain,
            token=await self.get(record.domain),
            acting=None if other is None else other.domain,
            acting_id="" if other is None else other.id,
            expiry_zone=program.expiry_zone,
        )
        if len(self._restrictions) >= DOMAINS_CACHED_MAX:
            self._restrictions = {}
        self._restrictions[key] = _Kept(program, owner, other, restrictions)
        return restrictions
