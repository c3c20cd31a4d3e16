"""Keys rotate under load, and every process is killed at random: nothing is lost, and no card gets a second token."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from pathlib import Path

import attrs
import pytest

import tokenvault as tv
from tests import rotation_workers, softhsm, vaults
from tests.vault_workers import card_number
from tests.vaults import all_records, use
from tokenvault.keys import KeyPurpose, KeyStore
from tokenvault.records.keyring import KeyRing
from tokenvault.stores.port import TokenStore

SPAWN = multiprocessing.get_context("spawn")
DELAY = timedelta(milliseconds=400)
SECONDS_MAX = 240.0


@attrs.define
class Load:
    """Processes that issue and use tokens, and all that they told of."""

    uri: str
    url: str
    told: dict[tuple[int, str], set[str]] = attrs.field(factory=lambda: defaultdict(set))
    running: list[tuple[SpawnProcess, threading.Thread]] = attrs.field(factory=list)

    def start(self) -> None:
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=rotation_workers.issue_and_use, args=(self.uri, self.url, theirs))
        process.start()
        theirs.close()

        def listen() -> None:
            with os.fdopen(os.dup(ours.fileno())) as lines:
                for line in lines:
                    card, program, token = line.split()
                    self.told[int(card), program].add(token)

        listener = threading.Thread(target=listen)
        listener.start()
        self.running.append((process, listener))

    def kill(self, place: int) -> None:
        process, listener = self.running.pop(place)
        assert process.exitcode is None, "a process failed under load"
        process.kill()
        process.join(SECONDS_MAX)
        listener.join(SECONDS_MAX)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rotate_under_load(
    uri: str, url: str, custody: tv.Custody, purpose: KeyPurpose, processes: int, kills: int
) -> Load:
    """Rotate a key to the end; the process that does, and those that load, are killed now and then."""
    source = random.Random()
    load = Load(uri, url)
    for _ in range(processes):
        load.start()
    until(lambda: len(load.told) > 50)

    def rotator() -> SpawnProcess:
        process = SPAWN.Process(target=rotation_workers.rotate, args=(uri, url, purpose, custody, 2))
        process.start()
        return process

    rotating = rotator()
    for _ in range(kills):
        rotating.join(source.uniform(0.8, 3.0))  # it takes about a second to begin
        if rotating.exitcode is None:
            rotating.kill()
            rotating.join(SECONDS_MAX)
        else:
            assert rotating.exitcode == 0
        rotating = rotator()
        load.kill(source.randrange(len(load.running)))
        load.start()
    rotating.join(SECONDS_MAX)
    assert rotating.exitcode == 0
    before = len(load.told)
    until(lambda: len(load.told) > before + 5)  # vaults go on without the old version
    while load.running:
        load.kill(0)
    return load


def assert_whole(keys: KeyStore, store: TokenStore, purpose: KeyPurpose, load: Load) -> None:
    """Every token that was told of works, each card has one of each program, uses count once, the trail is intact."""
    with vaults.open_vault(keys, store) as vault:
        for (card, program), tokens in load.told.items():
            assert len(tokens) == 1, f"a card has two tokens of {program}"
            (token,) = tokens
            used = vault.remaining(token)
            assert vault.detokenize(token, use(f"first {card}")).pan.reveal() == card_number(card)
            assert vault.remaining(token) == used, "a retry was counted"
            assert vault.detokenize(token, use("after")).pan.reveal() == card_number(card)
    ring = KeyRing(keys)
    convergent: dict[str, int] = defaultdict(int)
    for row in all_records(store):
        record, found = ring.unseal(row)
        assert found is not None
        if record.program == "card-on-file":
            convergent[found.pan.reveal()] += 1
        if purpose is KeyPurpose.SEAL:
            assert row.key_version == 2
        if purpose is KeyPurpose.FINGERPRINT:
            assert row.pan_fingerprint == ring.pan_fingerprint(found.pan)
    assert set(convergent.values()) == {1}
    assert keys.versions(purpose) == ((1, 2) if purpose is KeyPurpose.AUDIT else (2,))
    report = tv.verify_audit(store, keys=keys)
    assert report.intact, report.findings[:5]


ROTATED = [KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.AUDIT]


@pytest.fixture
def uri(softhsm_folder: Path) -> str:
    return softhsm.new_token(softhsm_folder)


def rotated(uri: str, url: str, custody: tv.Custody, purpose: KeyPurpose, processes: int, kills: int) -> None:
    with closing(tv.open_key_store(uri)) as keys, closing(tv.open_token_store(url)) as store:
        tv.provision(keys, store, custody=custody, key_delay=DELAY)
        load = rotate_under_load(uri, url, custody, purpose, processes, kills)
        assert_whole(keys, store, purpose, load)


def test_a_fingerprint_key_rotates_under_load_and_kills(uri: str, tmp_path: Path) -> None:
    rotated(uri, f"sqlite:///{tmp_path}/vault.db", tv.Custody.IN_PROCESS, KeyPurpose.FINGERPRINT, 2, 1)


def test_a_seal_key_in_the_module_rotates_under_load_and_kills(uri: str, postgres_url: str) -> None:
    rotated(uri, postgres_url, tv.Custody.IN_MODULE, KeyPurpose.SEAL, 2, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("purpose", ROTATED, ids=lambda purpose: purpose.value)
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_every_key_rotates_under_load_of_four_processes_and_ten_kills(
    request: pytest.FixtureRequest,
    uri: str,
    custody: tv.Custody,
    database: str,
    purpose: KeyPurpose,
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/vault.db"
    if database == "postgres":
        url = request.getfixturevalue("postgres_url")
    rotated(uri, url, custody, purpose, 4, 10)
