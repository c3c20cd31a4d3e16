"""Programs and requestors at run time: in the database, and in a directory of the host's own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests.interrupts import TimeLimitError
from tests.vaults import SHOP
from tests.vaults import VISA as PAN
from tokenvault.model import party_document
from tokenvault.runtime import run
from tokenvault.stores import ThreadedTokenStore
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.vault import directory as directories
from tokenvault.vault import parties as vault_parties
from tokenvault.vault import stored_parties
from tokenvault.vault.directory import StoredDirectory
from tokenvault.vault.parties import PARTIES_CACHED_MAX, Read

AGENT = "40087654321"
PROGRAM = tv.TokenProgram("p", format=tv.TokenFormat(bin="999912"))
OTHER = tv.TokenProgram("q", format=tv.TokenFormat(bin="999913", length=19), accept_density=True)
FOR_BOTH = tv.Domain(requestors={SHOP, AGENT})


def a_use(number: int = 1, requestor: str = SHOP) -> tv.Transaction:
    return tv.Transaction(id=f"t-{number}", requestor=requestor)


def changes(store: tv.TokenStore, keys: tv.KeyStore) -> list[tuple[str, str | None, str, int]]:
    """Action, operator, name and version of each event about a program or requestor."""
    events = map(json.loads, tv.export_audit(store, keys=keys))
    return [
        (
            each["action"],
            each.get("operator"),
            each["codes"][0],
            int(each["codes"][1].removeprefix("VERSION_")),
        )
        for each in events
        if "REQUESTOR" in each["action"] or "PROGRAM" in each["action"]
    ]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, local_keys: tv.KeyStore) -> Iterator[tv.TokenStore]:
    address = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/vault.db"
    opened = tv.open_token_store(address)
    tv.provision(local_keys, opened)
    yield opened
    opened.close()


def open_stored(keys: tv.KeyStore, store: tv.TokenStore, seconds: float = 0.05) -> tv.Vault:
    return tv.Vault(keys, store, directory=tv.StoredDirectory(max_age_seconds=seconds))


def filled(keys: tv.KeyStore, store: tv.TokenStore, seconds: float = 0.05) -> tv.Vault:
    vault = open_stored(keys, store, seconds)
    vault.put_program(PROGRAM, operator="ada")
    vault.put_requestor(tv.TokenRequestor(SHOP, programs={"p"}), operator="ada")
    return vault


def test_a_vault_begins_empty_and_works_with_what_is_put(
    local_keys: tv.KeyStore, store: tv.TokenStore
) -> None:
    with open_stored(local_keys, store) as vault, pytest.raises(tv.PermissionDeniedError):
        vault.issue(PAN, requestor=SHOP, program="p")
    with filled(local_keys, store) as vault:
        token = vault.issue(PAN, requestor=SHOP, program="p").token
        assert vault.detokenize(token, a_use()).pan.reveal() == PAN
    with open_stored(local_keys, store) as again:
        assert again.detokenize(token, a_use()).pan.reveal() == PAN
        with pytest.raises(tv.InvalidInputError) as refused:
            again.issue(token, requestor=SHOP, program="p")
        assert refused.value.code == "PAN_IS_TOKEN"  # all programs are known when a vault opens


def test_a_change_is_seen_by_the_other_vault_within_the_stated_time(
    local_keys: tv.KeyStore, store: tv.TokenStore
) -> None:
    with filled(local_keys, store, 60) as acting, open_stored(local_keys, store, 0.05) as other:
        token = acting.issue(PAN, requestor=SHOP, program="p", domain=FOR_BOTH).token
        assert other.detokenize(token, a_use()).expiry is None
        acting.put_requestor(
            tv.TokenRequestor(SHOP, programs={"p"}, domain=tv.Domain(merchants={"M-1"})), operator="ada"
        )
        assert not acting.check(token, a_use(2)).allowed  # its own vault at once
        time.sleep(0.06)
        assert not other.check(token, a_use(2)).allowed
        acting.put_program(OTHER)
        acting.put_requestor(tv.TokenRequestor(SHOP, programs={"p", "q"}))
        time.sleep(0.06)
        assert len(other.issue(PAN, requestor=SHOP, program="q").token) == 19


def test_a_disabled_requestor_does_nothing_and_its_tokens_serve_those_whom_they_name(
    local_keys: tv.KeyStore, store: tv.TokenStore
) -> None:
    with filled(local_keys, store) as vault:
        vault.put_requestor(tv.TokenRequestor(AGENT))
        token = vault.issue(PAN, requestor=SHOP, program="p", domain=FOR_BOTH).token
        vault.disable_requestor(SHOP, operator="grace")
        for refused in (
            lambda: vault.issue(PAN, requestor=SHOP, program="p"),
            lambda: vault.detokenize(token, a_use()),
            lambda: vault.check(token, a_use()),
            lambda: vault.delete(token, requestor=SHOP),
        ):
            with pytest.raises(tv.PermissionDeniedError) as denied:
                refused()
            assert denied.value.code == "REQUESTOR_DISABLED"
        assert vault.detokenize(token, a_use(2, AGENT)).pan.reveal() == PAN
        many = vault.detokenize_many([(token, a_use(3)), (token, a_use(4, AGENT))])
        assert isinstance(many[0], tv.PermissionDeniedError)
        assert isinstance(many[1], tv.Card)
        vault.put_requestor(tv.TokenRequestor(SHOP, programs={"p"}))
        assert vault.detokenize(token, a_use(5)).pan.reveal() == PAN


def test_programs_and_a_requestor_are_read_as_the_vault_acts_on_them(
    local_keys: tv.KeyStore, store: tv.TokenStore
) -> None:
    with filled(local_keys, store) as vault:
        assert [program.name for program in vault.programs()] == ["p"]
        assert vault.requestor(SHOP).programs == {"p"}
        vault.disable_requestor(SHOP)
        assert vault.requestor(SHOP).disabled
        with pytest.raises(tv.InvalidInputError) as nobody:
            vault.requestor(AGENT)
        assert nobody.value.code == "REQUESTOR_UNKNOWN"


def test_each_change_leaves_an_event_and_the_trail_verifies(
    local_keys: tv.KeyStore, store: tv.TokenStore
) -> None:
    with filled(local_keys, store) as vault:
        vault.put_requestor(tv.TokenRequestor(SHOP, programs={"p"}, permissions={tv.Permission.ISSUE}))
        vault.disable_requestor(SHOP, operator="grace")
    assert changes(store, local_keys) == [
        ("PUT_PROGRAM", "ada", "p", 1),
        ("PUT_REQUESTOR", "ada", SHOP, 1),
        ("PUT_REQUESTOR", None, SHOP, 2),
        ("DISABLE_REQUESTOR", "grace", SHOP, 3),
    ]
    assert tv.verify_audit(store, keys=local_keys).intact


def test_an_async_vault_changes_programs_and_requestors_and_tells_of_them(local_keys: tv.KeyStore) -> None:
    async def work(store: tv.TokenStore) -> None:
        parts: Any = {"directory": tv.StoredDirectory(max_age_seconds=0.05)}
        async with tv.AsyncVault(local_keys, ThreadedTokenStore(store), **parts) as vault:
            await vault.put_program(PROGRAM, operator="ada")
            await vault.put_requestor(tv.TokenRequestor(SHOP, programs={"p"}), operator="ada")
            assert await vault.programs() == [PROGRAM]
            assert await vault.requestor(SHOP) == tv.TokenRequestor(SHOP, programs={"p"})
            token = (await vault.issue(PAN, requestor=SHOP, program="p")).token
            await vault.disable_requestor(SHOP, operator="grace")
            assert (await vault.requestor(SHOP)).disabled
            with pytest.raises(tv.PermissionDeniedError) as denied:
                await vault.detokenize(token, a_use())
            assert denied.value.code == "REQUESTOR_DISABLED"
            with pytest.raises(tv.InvalidInputError) as nobody:
                await vault.requestor(AGENT)
            assert nobody.value.code == "REQUESTOR_UNKNOWN"

    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    asyncio.run(work(store))
    assert changes(store, local_keys) == [
        ("PUT_PROGRAM", "ada", "p", 1),
        ("PUT_REQUESTOR", "ada", SHOP, 1),
        ("DISABLE_REQUESTOR", "grace", SHOP, 2),
    ]


class OfRequestors(Forwarding):
    """A store in which a row of a requestor is changed just after it is read, or before it is written."""

    def __init__(self, store: MemoryTokenStore) -> None:
        self.store = store
        self.write_limits = store.write_limits
        self.taken_out, self.taken, self.tried = False, False, 0

    def _forward(self, name: str, *args: Any, **named: Any) -> Any:
        of_requestor = name.endswith("_meta") and args[0].startswith("requestor:")
        if of_requestor and name == "put_meta" and self.taken:
            self.tried += 1
            self.store.put_meta(args[0], b"another's, of which there are more and more")
        found = getattr(self.store, name)(*args, **named)
        if of_requestor and name == "get_meta" and self.taken_out:
            self.store._meta.pop(args[0], None)
        return found


@pytest.fixture
def of_requestors(local_keys: tv.KeyStore) -> OfRequestors:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    filled(local_keys, store).close()
    return OfRequestors(store)


def test_a_version_that_is_taken_out_as_it_is_read_is_no_requestor_that_was_never_there(
    local_keys: tv.KeyStore, of_requestors: OfRequestors
) -> None:
    with open_stored(local_keys, of_requestors) as vault:
        of_requestors.taken_out = True
        with pytest.raises(tv.IntegrityError, match="was removed from the database") as removed:
            vault.issue(PAN, requestor=SHOP, program="p")
        assert removed.value.code == "INTEGRITY"


def test_a_change_of_a_requestor_gives_up_after_so_many_others_each_tried_and_told(
    local_keys: tv.KeyStore, of_requestors: OfRequestors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_parties, "CONFLICTS_MAX", 3)
    with open_stored(local_keys, of_requestors) as vault:
        of_requestors.taken = True
        with pytest.raises(tv.ConflictError, match="others keep changing") as lost:
            vault.put_requestor(tv.TokenRequestor(SHOP), operator="grace")
        assert lost.value.code == "CONFLICT"
    assert of_requestors.tried == 3
    told = [change for change in changes(of_requestors.store, local_keys) if change[1] == "grace"]
    assert told == [("PUT_REQUESTOR", "grace", SHOP, version) for version in (2, 3, 4)]


def test_what_a_database_writer_changes_is_refused(
    local_keys: tv.KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row edited, or moved to another name."""
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    filled(local_keys, store).close()
    names = [name for name in store._meta if name.startswith("requestor:")]  # type: ignore[attr-defined] # the adapter's own dictionary
    (name,) = names
    right = store._meta[name]  # type: ignore[attr-defined] # as above
    for wrong in (right[:-3] + b"xyz", right[:16] + right[16:].replace(b"false", b"true"), b"", right[:15]):
        store._meta[name] = wrong  # type: ignore[attr-defined] # as above
        with (
            open_stored(local_keys, store) as vault,
            pytest.raises((tv.IntegrityError, tv.PermissionDeniedError)),
        ):
            vault.issue(PAN, requestor=SHOP, program="p")
    store._meta[name] = right  # type: ignore[attr-defined] # as above
    moved = f"requestor:{party_row(AGENT)}:1"
    store._meta[moved] = right  # type: ignore[attr-defined] # as above
    with open_stored(local_keys, store) as vault:
        assert vault.issue(PAN, requestor=SHOP, program="p").token
        with pytest.raises(tv.IntegrityError):
            vault.issue(PAN, requestor=AGENT, program="p")


def test_a_row_that_no_vault_wrote_keeps_no_vault_from_opening_or_from_other_programs(
    local_keys: tv.KeyStore,
) -> None:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    filled(local_keys, store).close()
    store.put_meta("programs:2", b"garbage")
    store.put_meta(f"program:{party_row('q')}:1", b"garbage")
    other = tv.TokenProgram("other", format=tv.TokenFormat(bin="999913"))
    with open_stored(local_keys, store) as vault:
        vault.put_program(other)
        assert {each.name for each in vault.programs()} == {"p", "other"}
        assert vault.issue(PAN, requestor=SHOP, program="p").token
    with open_stored(local_keys, store) as vault:
        assert {each.name for each in vault.programs()} == {"p", "other"}


def party_row(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def test_many_versions_are_found_in_few_reads(
    local_keys: tv.KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with filled(local_keys, store) as vault:
        for number in range(200):
            limits = (tv.Limit(uses=number + 1),)
            vault.put_requestor(
                tv.TokenRequestor(SHOP, programs={"p"}, domain=tv.Domain(limits=limits)), operator="ada"
            )
    asked: list[str] = []
    get_meta = type(store).get_meta

    def counting(store: tv.TokenStore, name: str) -> bytes | None:
        asked.append(name)
        return get_meta(store, name)

    with open_stored(local_keys, store) as vault:
        monkeypatch.setattr(type(store), "get_meta", counting)
        token = vault.issue(PAN, requestor=SHOP, program="p").token
        assert vault.remaining(token)[0].left == 200
        assert len(asked) < 30


@pytest.mark.parametrize("removed", [{3}, {3, 4}, {2, 3, 4, 5, 6, 7}, {2, 4, 6}, {1, 2, 3}, set(range(1, 8))])
def test_a_requestor_that_is_disabled_does_nothing_also_where_former_versions_were_taken_out(
    local_keys: tv.KeyStore, removed: set[int]
) -> None:
    """Neither in the vault that does it, nor in one that runs, nor in the next one."""
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    vault = filled(local_keys, store, 0.001)
    for number in range(7):
        domain = tv.Domain(merchants={f"M-{number}"})
        vault.put_requestor(tv.TokenRequestor(SHOP, programs={"p"}, domain=domain))
    running = open_stored(local_keys, store, 0.001)
    assert running.requestor(SHOP) is not None
    for version in removed:
        del store._meta[f"requestor:{party_row(SHOP)}:{version}"]  # type: ignore[attr-defined] # the adapter's own dictionary
    acting = vault if 1 in removed else open_stored(local_keys, store, 0.001)
    acting.disable_requestor(SHOP, operator="grace")
    time.sleep(0.01)
    for each in (acting, vault, running):
        found = each.requestor(SHOP)
        assert found is not None
        assert found.disabled
        with pytest.raises(tv.PermissionDeniedError):
            each.issue(PAN, requestor=SHOP, program="p")


def test_contenders_for_one_requestor_each_get_a_version(
    local_keys: tv.KeyStore, store: tv.TokenStore
) -> None:
    vaults = [filled(local_keys, store) if n == 0 else open_stored(local_keys, store) for n in range(3)]

    def put(vault: tv.Vault, merchant: str) -> None:
        domain = tv.Domain(merchants={merchant})
        vault.put_requestor(tv.TokenRequestor(SHOP, programs={"p"}, domain=domain))

    threads = [threading.Thread(target=put, args=(vaults[n % 3], f"M-{n}")) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = {version for action, _, _, version in changes(store, local_keys) if action == "PUT_REQUESTOR"}
    assert written == set(range(1, 14))
    for vault in vaults:
        vault.close()
    assert tv.verify_audit(store, keys=local_keys).intact


def look_ups_beside_changes(keys: tv.KeyStore, steps: int, age: float) -> None:

    store = tv.open_token_store("memory:")
    tv.provision(keys, store)
    vaults = [filled(keys, store, age) if n == 0 else open_stored(keys, store, age) for n in range(4)]
    ids = [f"400{number:08}" for number in range(8)]
    acknowledged: dict[str, list[tuple[float, int]]] = {each: [] for each in ids}
    changing = {each: threading.Lock() for each in ids}
    wrong: list[str] = []

    def work(number: int) -> None:
        chance, vault = random.Random(number), vaults[number % 4]
        for _ in range(steps):
            named = chance.choice(ids)
            if chance.random() < 0.02:
                with changing[named]:
                    count = len(acknowledged[named]) + 1
                    domain = tv.Domain(limits=(tv.Limit(uses=count),))
                    vault.put_requestor(tv.TokenRequestor(named, programs={"p"}, domain=domain))
                    acknowledged[named].append((time.monotonic(), count))
            else:
                begun = time.monotonic()
                found = run(vault._open().parties.requestor(named))
                least = max(
                    (count for at, count in tuple(acknowledged[named]) if at <= begun - age), default=0
                )
                seen = 0 if found is None else found.domain.limits[0].uses or 0
                if seen < least:
                    wrong.append(f"{named}: {seen} < {least}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for vault in vaults:
        vault.close()
    assert tv.verify_audit(store, keys=keys).intact


def test_nobody_acts_on_a_party_older_than_the_stated_time(local_keys: tv.KeyStore) -> None:
    look_ups_beside_changes(local_keys, 800, 0.02)


@pytest.mark.nightly
def test_nobody_acts_on_a_party_older_than_the_stated_time_in_a_million_steps(
    local_keys: tv.KeyStore,
) -> None:
    look_ups_beside_changes(local_keys, 62_500, 0.05)


def test_requestors_take_memory_only_as_they_are_used(
    local_keys: tv.KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_parties, "PARTIES_CACHED_MAX", 50)
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with filled(local_keys, store, 60) as vault:
        for number in range(200):
            vault.put_requestor(tv.TokenRequestor(f"401{number:08}"))
        core = vault._open()
        assert len(core.parties._requestors._held) <= 50
    assert PARTIES_CACHED_MAX == 10_000


def test_programs_that_threads_put_at_once_are_all_known(
    local_keys: tv.KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is put whole while the first one is; so it goes at each place where something is derived."""
    for at in range(2):
        store = tv.open_token_store("memory:")
        tv.provision(local_keys, store)
        parties = tv.Vault(local_keys, store, directory=tv.StoredDirectory())._open().parties
        derive, derived = vault_parties.Programs, 0

        def interleaved(by_name: Any, at: int = at, parties: Any = parties, derive: Any = derive) -> Any:
            nonlocal derived
            derived += 1
            made = derive(by_name) if at == 1 else None
            if derived == 1:
                parties.put_program("q", Read(OTHER, 1), 0.0)
            return made or derive(by_name)

        monkeypatch.setattr(vault_parties, "Programs", interleaved)
        parties.put_program("p", Read(PROGRAM, 1), 0.0)
        monkeypatch.undo()
        assert parties.known.by_name == {"p": PROGRAM, "q": OTHER}


def test_a_program_that_could_not_be_known_beside_so_many_others_is_read_again(
    local_keys: tv.KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    parties = tv.Vault(local_keys, store, directory=tv.StoredDirectory())._open().parties
    with monkeypatch.context() as patched:
        patched.setattr(vault_parties, "PUT_AT_ONCE_MAX", 0)
        parties.put_program("p", Read(PROGRAM, 1), 0.0)
    assert parties._programs.get("p") is None
    parties.put_program("p", Read(PROGRAM, 1), 0.0)
    assert parties.known.by_name == {"p": PROGRAM}
    assert parties._programs.get("p") is not None


def test_a_program_that_was_read_before_a_later_version_is_not_known_again(local_keys: tv.KeyStore) -> None:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    parties = tv.Vault(local_keys, store, directory=tv.StoredDirectory())._open().parties
    later = attrs.evolve(PROGRAM, suspend_after_refusals=3)
    parties.put_program("p", Read(later, 2), 0.0)
    parties.put_program("p", Read(PROGRAM, 1), 0.0)
    assert parties.known.by_name == {"p": later}


class Table:
    """A host's own directory."""

    max_age_seconds = 0.0

    def __init__(self) -> None:
        self.requestors = {SHOP: tv.TokenRequestor(SHOP, programs={"p"})}
        self.asked = 0

    def program(self, name: str, /) -> tv.TokenProgram | None:
        return PROGRAM if name == "p" else None

    def requestor(self, name: str, /) -> tv.TokenRequestor | None:
        self.asked += 1
        return self.requestors.get(name)


class AwaitedTable(Table):
    async def program(self, name: str, /) -> tv.TokenProgram | None:  # type: ignore[override] # as of AsyncVault
        await asyncio.sleep(0)
        return super().program(name)

    async def requestor(self, name: str, /) -> tv.TokenRequestor | None:  # type: ignore[override] # as above
        await asyncio.sleep(0)
        return super().requestor(name)


def test_a_host_looks_parties_up_in_its_own_tables(local_keys: tv.KeyStore, store: tv.TokenStore) -> None:
    table = Table()
    with tv.Vault(local_keys, store, directory=table) as vault:
        token = vault.issue(PAN, requestor=SHOP, program="p").token
        assert vault.detokenize(token, a_use()).pan.reveal() == PAN
        before, table.max_age_seconds = table.asked, 60
        table.requestors.clear()
        with pytest.raises(
            tv.PermissionDeniedError
        ):  # its age was read when the vault opened: it is asked each time
            vault.detokenize(token, a_use(2))
        assert table.asked > before
        with pytest.raises(tv.ConfigurationError) as refused:
            vault.put_program(PROGRAM)
        assert refused.value.code == "DIRECTORY_NOT_STORED"


@pytest.mark.parametrize("table", [Table(), AwaitedTable()])
def test_an_async_vault_takes_directories_with_coroutines_and_without(
    local_keys: tv.KeyStore, table: Table
) -> None:
    async def work() -> None:
        store = tv.open_async_token_store("memory:")
        await tv.provision_async(local_keys, store)
        async with tv.AsyncVault(local_keys, store, directory=table) as vault:
            token = (await vault.issue(PAN, requestor=SHOP, program="p")).token
            assert (await vault.detokenize(token, a_use())).pan.reveal() == PAN
        await store.close()

    asyncio.run(work())


def test_a_directory_that_fails_or_answers_wrong_ends_the_call_with_a_code(
    local_keys: tv.KeyStore, store: tv.TokenStore
) -> None:
    table = Table()
    with tv.Vault(local_keys, store, directory=table) as vault:
        table.requestors = {SHOP: tv.TokenRequestor(AGENT)}
        with pytest.raises(tv.ConfigurationError) as wrong:
            vault.issue(PAN, requestor=SHOP, program="p")
        assert wrong.value.code == "DIRECTORY_WRONG"
        table.requestors = None  # type: ignore[assignment] # so that it fails
        with pytest.raises(tv.TokenStoreError) as failed:
            vault.issue(PAN, requestor=SHOP, program="p")
        assert failed.value.code == "DIRECTORY_FAILED"
        assert failed.value.__cause__ is None


@pytest.mark.usefixtures("limit")
def test_an_error_of_the_library_and_a_time_limit_come_out_of_a_directory_as_they_are(
    local_keys: tv.KeyStore, store: tv.TokenStore
) -> None:
    told = tv.TokenStoreError("the directory's own database is down", code="STORE_CLOSED")

    class Failing(Table):
        struck = False

        def requestor(self, _name: str, /) -> tv.TokenRequestor | None:
            if self.struck:
                signal.raise_signal(signal.SIGUSR1)
            raise told

    table = Failing()
    with tv.Vault(local_keys, store, directory=table) as vault:
        with pytest.raises(tv.TokenStoreError) as failed:
            vault.issue(PAN, requestor=SHOP, program="p")
        assert failed.value is told
        table.struck = True
        with pytest.raises(TimeLimitError):
            vault.issue(PAN, requestor=SHOP, program="p")


def test_a_static_directory_tells_its_requestors_and_takes_so_many_of_each_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop, agent = tv.TokenRequestor(SHOP, programs={"p"}), tv.TokenRequestor(AGENT)
    monkeypatch.setattr(directories, "CONFIGURED_MAX", 2)
    full = tv.StaticDirectory([PROGRAM, OTHER], [shop, agent])
    assert full.requestors() == {SHOP: shop, AGENT: agent}
    assert full.programs() == {"p": PROGRAM, "q": OTHER}
    third = tv.TokenProgram("r", format=tv.TokenFormat(bin="999914"))
    for kind, many in (
        ("programs", {"programs": [PROGRAM, OTHER, third]}),
        (
            "requestors",
            {"requestors": [agent, tv.TokenRequestor("40087654322"), tv.TokenRequestor("40087654323")]},
        ),
    ):
        with pytest.raises(tv.ConfigurationError, match=f"at most 2 {kind}") as refused:
            tv.StaticDirectory(**many)
        assert refused.value.code == "TOO_MANY_CONFIGURED"


def test_a_vault_has_a_directory_or_parties_and_not_both(
    local_keys: tv.KeyStore, store: tv.TokenStore
) -> None:
    with pytest.raises(tv.ConfigurationError) as both:
        tv.Vault(local_keys, store, programs=[PROGRAM], directory=tv.StaticDirectory([PROGRAM]))
    assert both.value.code == "DIRECTORY_AND_PARTIES"
    with pytest.raises(tv.InvalidInputError):
        tv.Vault(local_keys, store, directory=object())  # type: ignore[arg-type] # no directory
    with filled(local_keys, store) as vault:
        with pytest.raises(tv.InvalidInputError) as unknown:
            vault.put_requestor(tv.TokenRequestor(AGENT, programs={"nowhere"}))
        assert unknown.value.code == "PROGRAM_UNKNOWN"
        with pytest.raises(tv.InvalidInputError) as nobody:
            vault.disable_requestor(AGENT)
        assert nobody.value.code == "REQUESTOR_UNKNOWN"
        names = {f"{number:064}" for number in range(80)}
        with pytest.raises(tv.InvalidInputError) as long:
            vault.put_requestor(tv.TokenRequestor(AGENT, programs=names))
        assert long.value.code == "PARTY_TOO_LONG"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 100_000, True, "5"])
def test_the_age_of_an_answer_is_bounded(seconds: object) -> None:
    with pytest.raises(tv.InvalidInputError):
        StoredDirectory(max_age_seconds=seconds)  # type: ignore[arg-type] # that is the point


programs = st.builds(
    tv.TokenProgram,
    st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True),
    format=st.builds(tv.TokenFormat, bin=st.from_regex(r"[0-9]{1,6}", fullmatch=True), luhn=st.booleans()),
    making=st.sampled_from(tv.Making),
    domain=st.just(tv.Domain(merchants={"M-1"})),
    expected_tokens=st.integers(1, 1_000),
    pans=st.builds(tv.PanRule, lengths=st.sampled_from([(12, 19), (13, 16)]), luhn=st.booleans()),
    accept_density=st.booleans(),
    expiry_zone=st.sampled_from([None, "Asia/Shanghai"]),
)
requestors = st.builds(
    tv.TokenRequestor,
    st.from_regex(r"[0-9]{11}", fullmatch=True),
    programs=st.sets(st.from_regex(r"[a-z]{1,8}", fullmatch=True)),
    permissions=st.sets(st.sampled_from(tv.Permission), min_size=1),
    domain=st.just(tv.Domain(merchants={"M-1"})),
    disabled=st.booleans(),
)


@settings(max_examples=200)
@given(st.one_of(programs, requestors))
def test_a_document_reads_back_as_what_was_written(party: tv.TokenProgram | tv.TokenRequestor) -> None:
    document = party_document.encode(party)
    assert party_document.domain_of(document) == party.domain.digest
    assert document == json.dumps(json.loads(document), sort_keys=True, separators=(",", ":"))
    newer = document.replace("{", '{"newer":1,', 1)
    if isinstance(party, tv.TokenProgram):
        assert party_document.decode(tv.TokenProgram, document, party.domain) == party
        with pytest.raises(tv.IntegrityError):
            party_document.decode(tv.TokenProgram, newer, party.domain)
    else:
        assert party_document.decode(tv.TokenRequestor, document, party.domain) == party
        with pytest.raises(tv.IntegrityError):
            party_document.decode(tv.TokenRequestor, newer, party.domain)


@pytest.mark.parametrize("document", ["{}", "[]", "null", "x", '{"domain":"zz"}', '{"domain":1}'])
def test_a_document_that_names_no_domain_was_written_by_another_version(document: str) -> None:
    with pytest.raises(tv.IntegrityError) as refused:
        party_document.domain_of(document)
    assert refused.value.code == "WRITTEN_BY_NEWER_VERSION"
    assert refused.value.__context__ is None or refused.value.__suppress_context__
