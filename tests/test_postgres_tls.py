"""PostgreSQL over TLS, as a server across the network is reached: small and large answers, blocking or awaited."""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import tokenvault as tv
from tests import faces
from tests.faces import open_on_a_loop
from tests.pgbouncer import running
from tests.postgres_server import PASSWORD, PostgresServer
from tests.vaults import VISA, issue, open_vault, use
from tokenvault.keys import KeyStore
from tokenvault.stores.port import PAGE_MAX, TokenStore
from tokenvault.testing.token_store_harness import a_record, an_event

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that takes connections over TCP, with a certificate."""
    started = PostgresServer()
    try:
        certify(started.folder / "data")
        rules = started.folder / "data" / "pg_hba.conf"
        rules.write_text(rules.read_text().replace("\nhost ", "\nhostssl "))
        started.stop()
        started.start(ssl="on", listen_addresses=HOST, port=str(free_port()))
        yield started
    finally:
        started.remove()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def certify(data: Path) -> None:
    """Put a certificate for this machine, which signs itself, and its key where the server looks for them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    files = {
        "server.crt": certificate.public_bytes(pem),
        "server.key": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
    }
    owner = data.stat()
    for name, content in files.items():
        path = data / name
        path.write_bytes(content)
        path.chmod(0o600)
        shutil.chown(path, owner.st_uid, owner.st_gid)


@pytest.fixture
def certificate(server: PostgresServer, tmp_path: Path) -> Path:
    """What a client trusts."""
    trusted = tmp_path / "root.crt"
    shutil.copy(server.folder / "data" / "server.crt", trusted)
    return trusted


def over_tls(server: PostgresServer, trusted: Path) -> str:
    """The address of an empty token store, for who trusts a certificate."""
    return server.new_url(host=HOST, port=server.port, sslmode="verify-full", sslrootcert=str(trusted))


@pytest.fixture(params=["blocking", "awaited"])
def store(
    server: PostgresServer, certificate: Path, local_keys: KeyStore, request: pytest.FixtureRequest
) -> Iterator[TokenStore]:
    url = over_tls(server, certificate)
    opened = tv.open_token_store(url) if request.param == "blocking" else open_on_a_loop(url)
    faces.provision(local_keys, opened)
    yield opened
    opened.close()


def test_a_vault_works_over_tls(server: PostgresServer, store: TokenStore, local_keys: KeyStore) -> None:
    """Calls of many threads at once, on connections that were idle for a while, too."""
    vault = open_vault(local_keys, store)
    domain = tv.Domain(limits=(tv.Limit(uses=1_000),))
    tokens = [issue(vault, domain=domain).token for _ in range(8)]

    def work(number: int) -> str:
        return vault.detokenize(tokens[number % 8], use(number)).pan.reveal()

    for first in range(0, 200, 100):
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(work, range(first, first + 100))) == {VISA}
    with server.raw() as connection:
        encrypted = connection.execute(
            "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            " WHERE application_name = 'tokenvault'"
        ).fetchall()
    assert encrypted == [(True,)]


def test_answers_of_many_tls_records_come_whole(store: TokenStore) -> None:
    """A TLS record has at most 16 KiB (RFC 8446 section 5.1): megabytes either way, and small ones in between."""
    records = [a_record(n, body=bytes(500)) for n in range(PAGE_MAX)]
    assert store.insert(records, [an_event(1)]) == []
    tokens = [record.token for record in records]
    for _ in range(3):
        assert len(store.get(tokens)) == PAGE_MAX
        assert store.get(tokens[:1]) == records[:1]
        assert store.scan(limit=PAGE_MAX) == sorted(records)
    assert store.replace([record._replace(revision=2) for record in records], [an_event(2)]) == []


def test_a_server_with_another_certificate_gets_no_password(server: PostgresServer, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    certify(elsewhere)
    url = over_tls(server, elsewhere / "server.crt")
    with pytest.raises(tv.TokenStoreError, match=r"^TLS failed: .* is not trusted") as refused:
        tv.open_token_store(url).provision()
    assert PASSWORD not in str(refused.value)


def test_a_server_that_demands_tls_is_told_from_one_that_has_none(server: PostgresServer) -> None:
    url = server.new_url(host=HOST, port=server.port, sslmode="disable")
    with pytest.raises(tv.TokenStoreError, match=r"without TLS: set sslmode.*28000.*FATAL"):
        tv.open_token_store(url).provision()
    with running(server, listen_addr=HOST, listen_port=str(free_port())) as pooler:
        url = pooler.url("tokenvault", host=HOST, sslmode="require")
        with pytest.raises(tv.TokenStoreError, match="has no TLS, and sslmode"):
            tv.open_token_store(url).provision()
