"""The pages of the site do what they say: the examples of each run, one after the other, and print what they show."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import tokenvault as tv
import tokenvault.testing
from tests import softhsm
from tests.postgres_server import PostgresServer, new_name
from tokenvault import maintenance
from tokenvault.keys import KeyStore
from tokenvault.stores import TokenStore

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
SECONDS_MAX = 120
needs_the_public_face = pytest.mark.skipif(
    not hasattr(tokenvault.testing, "__all__"), reason="tokenvault.testing has no public face yet"
)


def open_store(url: str | None = None) -> TokenStore:
    """The store at an address, or the one that the environment names."""
    return tv.open_token_store(url or os.environ["TOKENVAULT_STORE"])


def blocks_of(page: str) -> list[tuple[str, str]]:
    """The blocks of code of a page, each with its language."""
    found = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def examples_of(page: str) -> list[str]:
    """The Python of a page."""
    return [text for language, text in blocks_of(page) if language == "python"]


def run_examples(
    page: str, names: dict[str, object] | None = None, sql: Callable[[str], object] | None = None
) -> dict[str, object]:
    """Run the Python of a page in one namespace. A block of `text` after an example is what it prints.

    Args:
        page: below docs/.
        names: that the page takes as given.
        sql: runs a block of SQL.
    """
    names = {} if names is None else names
    printed = ""
    assert examples_of(page)
    for language, text in blocks_of(page):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, page, "exec"), names)  # noqa: S102 # our own text
            printed = out.getvalue()
        elif language == "sql" and sql is not None:
            sql(text)
        elif language == "text":
            assert printed.splitlines() == text.splitlines()
    return names


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENVAULT_PASSPHRASE", "a passphrase for this try only")


def test_the_tutorial() -> None:
    run_examples("tutorial.md")


def test_keys_and_ceremonies(softhsm_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", softhsm_uri)
    with (
        closing(tv.open_key_store(softhsm_uri)) as keys,
        closing(tv.open_token_store("sqlite:///vault.db")) as store,
    ):  # rotation waits for the delay that the database was made with
        tv.provision(keys, store, custody=tv.Custody.IN_MODULE, key_delay=timedelta(milliseconds=100))
    run_examples("howto/keys.md")


def test_hsms(softhsm_uri: str) -> None:
    run_examples("howto/hsm.md", {"tv": tv, "uri": softhsm_uri})


def test_postgresql_and_poolers(postgres_server: PostgresServer, local_keys: KeyStore) -> None:
    """As another database than the tests have: the page makes its schema by its usual name."""
    database = new_name()
    roles = ("vault_owner", "vault", "auditor")
    with postgres_server.raw() as superuser:
        superuser.execute(f"CREATE DATABASE {database}")
    try:
        with postgres_server.raw(database) as superuser:

            def address_of(user: str, password: str) -> str:
                return postgres_server.url(user=user, password=password, database=database)

            run_examples(
                "howto/postgresql.md",
                {"keys": local_keys, "address_of": address_of},
                sql=lambda text: superuser.execute(text.encode()),
            )
    finally:
        with postgres_server.raw() as superuser:
            superuser.execute(f"DROP DATABASE {database} WITH (FORCE)")
            for role in roles:
                superuser.execute(f"DROP ROLE {role}")


def test_what_need_not_be_kept(local_keys: KeyStore, tmp_path: Path) -> None:
    program = tv.TokenProgram("checkout", format=tv.TokenFormat(bin="999913"))
    shop = tv.TokenRequestor("40012345678", programs={"checkout"})
    with closing(open_store("memory:")) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=[program], requestors=[shop]) as vault:
            for _ in range(2):
                vault.issue("4111111111111111", requestor=shop.id, program="checkout", customer="customer-17")
        names = {"tv": tv, "maintenance": maintenance, "keys": local_keys, "store": store, "folder": tmp_path}
        run_examples("howto/retention.md", names)


def test_one_transaction_with_your_own_tables(postgres_url: str, local_keys: KeyStore) -> None:
    address = re.sub(r"&?(schema|connections)=[^&]*", "", postgres_url)
    program = tv.TokenProgram("checkout", format=tv.TokenFormat(bin="999913"))
    shop = tv.TokenRequestor("40012345678", programs={"checkout"})
    with closing(open_store(postgres_url)) as store, closing(psycopg.connect(address)) as connection:
        tv.provision(local_keys, store)
        connection.execute("DROP TABLE IF EXISTS purchases")
        connection.execute("CREATE TABLE purchases (token text)")
        connection.commit()
        with tv.Vault(local_keys, store, programs=[program], requestors=[shop]) as vault:
            run_examples("howto/transactions.md", {"vault": vault, "psycopg": psycopg, "address": address})


def test_servers(softhsm_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of gunicorn is read before the fork, and its hooks are called after it, as gunicorn does."""
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", softhsm_uri)
    monkeypatch.setenv("TOKENVAULT_STORE", f"sqlite:///{tmp_path}/vault.db")
    with closing(tv.open_key_store(softhsm_uri)) as keys, closing(open_store()) as store:
        tv.provision(keys, store)

    application, configuration, lifespan, script = examples_of("howto/servers.md")
    app = ModuleType("app")
    monkeypatch.setitem(sys.modules, "app", app)
    exec(compile(application, "app.py", "exec"), vars(app))  # noqa: S102 # our own text
    hooks: dict[str, Any] = {}
    exec(compile(configuration, "gunicorn.conf.py", "exec"), hooks)  # noqa: S102 # our own text

    def work() -> None:
        hooks["post_fork"](None, None)
        told: list[str] = []
        body = app.app({"PATH_INFO": "/" + 32 * "0"}, lambda status, headers: told.append(status))
        assert told == ["404 Not Found"]
        assert body == [b"no token with this reference in this vault"]
        hooks["worker_exit"](None, None)

    workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS_MAX)
    assert [worker.exitcode for worker in workers] == [0, 0]

    names: dict[str, Any] = {}
    exec(compile(lifespan, "servers.md", "exec"), names)  # noqa: S102 # our own text

    async def serve() -> None:
        served = SimpleNamespace(state=SimpleNamespace())
        async with names["lifespan"](served):
            assert await served.state.vault.tokens_of("4111111111111111") == []

    asyncio.run(serve())
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(script, "servers.md", "exec"), names)  # noqa: S102 # our own text
    assert out.getvalue() == "[]\n"
    with closing(tv.open_key_store(softhsm_uri)) as keys, closing(open_store()) as store:
        report = tv.verify_audit(store, keys=keys)
        assert report.intact
        assert report.gaps == 0


def test_backup_and_restore(local_keys: KeyStore) -> None:
    program = tv.TokenProgram("card-on-file", format=tv.TokenFormat(bin="999912"))
    shop = tv.TokenRequestor("40012345678", programs={"card-on-file"})
    with closing(open_store("sqlite:///vault.db")) as store:
        tv.provision(local_keys, store)
        vault = tv.Vault(local_keys, store, programs=[program], requestors=[shop])
        once, unwanted = (
            vault.issue(
                "4111111111111111",
                requestor=shop.id,
                program=program.name,
                domain=tv.Domain(limits=(tv.Limit(uses=1),)),
            )
            for _ in range(2)
        )
        run_examples(
            "howto/backup.md",
            {
                "tv": tv,
                "keys": local_keys,
                "store": store,
                "vault": vault,
                "program": program,
                "shop": shop,
                "once": once,
                "unwanted": unwanted,
            },
        )


def test_batches(local_keys: KeyStore) -> None:
    program = tv.TokenProgram(
        "card-on-file", format=tv.TokenFormat(bin="999912"), making=tv.Making.CONVERGENT
    )
    shop = tv.TokenRequestor("40012345678", programs={"card-on-file"})
    Path("cards.csv").write_text(
        "pan,expiry\n4111111111111111,2039-12\n5555555555554444,2039-12\n5555555555554445,2039-12\n"
        "4111111111111111,2039-12\n"
    )
    with closing(open_store("memory:")) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=[program], requestors=[shop]) as vault:
            run_examples("howto/batches.md", {"keys": local_keys, "vault": vault})


def test_the_guard(local_keys: KeyStore) -> None:
    with closing(open_store("memory:")) as store:
        tv.provision(local_keys, store)
        run_examples("howto/guard.md", {"keys": local_keys, "store": store})


def test_watching_a_vault(local_keys: KeyStore, tmp_path: Path) -> None:
    program = tv.TokenProgram("p", format=tv.TokenFormat(bin="999912"))
    shop = tv.TokenRequestor("40012345678", programs={"p"})
    with closing(open_store("memory:")) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=[program], requestors=[shop]) as vault:
            made: Any = run_examples(
                "howto/monitoring.md",
                {"keys": local_keys, "store": store, "vault": vault},
            )
            vault.issue("4111111111111111", requestor=shop.id, program="p")
        made["watched"].close()
        stop, sent, place = threading.Event(), list[str](), tmp_path / "position"

        def send(line: str) -> None:
            sent.append(line)
            stop.set()

        for _ in range(3):
            stop.clear()
            made["send_events"](send, place, stop)
        assert [json.loads(line)["metadata"]["sequence"] for line in sent] == [1, 2, 3]


def test_risk(local_keys: KeyStore) -> None:
    shop, name = "40012345678", "card-on-file"
    with closing(open_store("memory:")) as store:
        tv.provision(local_keys, store)
        made: Any = run_examples("howto/risk.md", {"keys": local_keys, "store": store})
        token = made["vault"].issue("4111111111111111", requestor=shop, program=name).token
        made["vault"].detokenize(token, tv.Transaction(id="1", requestor=shop, country="FR"))
        with pytest.raises(tv.DomainRestrictionError, match="risk control refuses"):
            made["vault"].detokenize(token, tv.Transaction(id="2", requestor=shop, country="AQ"))


@needs_the_public_face
def test_testing_your_own_code(tmp_path: Path) -> None:
    fixtures, *tests = examples_of("howto/testing.md")
    (tmp_path / "conftest.py").write_text(fixtures)
    (tmp_path / "test_payments.py").write_text("\n".join(tests))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    assert ran.returncode == 0, ran.stdout
    assert "6 passed" in ran.stdout


@pytest.mark.parametrize("page", ["model/domains.md", "model/limits.md", "model/lifecycle.md"])
def test_the_model(page: str, local_keys: KeyStore) -> None:
    program = tv.TokenProgram("card-on-file", format=tv.TokenFormat(bin="999912"))
    shop = tv.TokenRequestor("40012345678", programs={"card-on-file"})
    with closing(open_store("memory:")) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=[program], requestors=[shop]) as vault:
            token = vault.issue("4111111111111111", requestor=shop.id, program=program.name).token
            run_examples(page, {"keys": local_keys, "store": store, "vault": vault, "token": token})


def test_parties(local_keys: KeyStore) -> None:
    with closing(open_store("memory:")) as store:
        tv.provision(local_keys, store)
        run_examples("howto/parties.md", {"keys": local_keys, "store": store})


def test_dual_control(local_keys: KeyStore) -> None:
    with closing(open_store("sqlite:///dual.db")) as store:
        tv.provision(local_keys, store)
        names: dict[str, object] = {"keys": local_keys, "store": store}
        found = run_examples("howto/dual-control.md", names)
        found["vault"].close()  # type: ignore[attr-defined] # the page's


def test_moving(local_keys: KeyStore, other_keys: KeyStore) -> None:
    program = tv.TokenProgram("one-time", format=tv.TokenFormat(bin="999913"))
    shop = tv.TokenRequestor("40012345678", programs={"one-time"})
    parts = {
        "programs": [program],
        "requestors": [shop],
        "reveal": tv.RevealPolicy(purposes={"migration"}),
    }
    pair = ec.generate_private_key(ec.SECP256R1())
    names: dict[str, object] = {
        "public_pem": pair.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "private_pem": pair.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    }
    with closing(open_store("sqlite:///old.db")) as old, closing(open_store("sqlite:///new.db")) as new:
        tv.provision(local_keys, old)
        tv.provision(other_keys, new)
        with (
            tv.Vault(local_keys, old, **parts) as vault,  # type: ignore[arg-type] # of several kinds
            tv.Vault(other_keys, new, **parts) as other,  # type: ignore[arg-type] # likewise
        ):
            run_examples("howto/moving.md", {**names, "vault": vault, "other": other})


def test_payments(local_keys: KeyStore) -> None:
    program = tv.TokenProgram(
        "card-on-file", format=tv.TokenFormat(bin="999912"), making=tv.Making.CONVERGENT
    )
    shop = tv.TokenRequestor("40012345678", programs={"card-on-file"})
    with closing(open_store("sqlite:///payments.db")) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=[program], requestors=[shop]) as vault:
            run_examples("howto/payments.md", {"vault": vault})


def test_moving_to_another_hsm(softhsm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", softhsm.new_token(softhsm_folder))
    monkeypatch.setenv("TOKENVAULT_NEXT_KEY_STORE", softhsm.new_token(softhsm_folder))
    run_examples("howto/hsm-replacement.md")
