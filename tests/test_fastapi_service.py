"""The example service keeps its promises, through its HTTP interface: a real server, its workers and its log."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import httpx
import pytest

from tests import ending
from tests.measuring import processes_unmeasured
from tests.vaults import ACQUIRER, MASTERCARD, SHOP, VISA

EXAMPLES = Path(__file__).parent.parent / "examples"
GROUPED = "4111 1111 1111 1111"
SECRETS = {SHOP: "shop-secret-7f", ACQUIRER: "acquirer-secret-9a"}
NEEDLES = (VISA, GROUPED, VISA[:12], MASTERCARD, *SECRETS.values())
JSON = {"Content-Type": "application/json"}
START_SECONDS_MAX = 60


def bearer(requestor: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[requestor]}"}


@pytest.fixture
def environment(softhsm_uri: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's settings, and a database and keys that its own command has provisioned."""
    callers = {
        requestor: hashlib.sha256(secret.encode()).hexdigest() for requestor, secret in SECRETS.items()
    }
    (tmp_path / "callers.json").write_text(json.dumps(callers))
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", softhsm_uri)
    monkeypatch.setenv("TOKENVAULT_STORE", postgres_url)
    monkeypatch.setenv("TOKENVAULT_CALLERS", str(tmp_path / "callers.json"))
    command = [sys.executable, "-W", "error", str(EXAMPLES / "fastapi_service.py")]
    subprocess.run(command, check=True, timeout=60)


@attrs.define
class Server:
    client: httpx.Client
    output: Path

    def log(self) -> str:
        return self.output.read_text()


@pytest.fixture
def server(environment: None, tmp_path: Path) -> Iterator[Server]:
    """Uvicorn with two workers on a Unix socket, logging all that it can."""
    socket, output = tmp_path / "http", tmp_path / "output"
    command = [
        sys.executable, "-X", "dev", "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_service:app", "--workers",
        "2", "--log-level", "debug", "--uds", str(socket),
    ]  # fmt: skip
    with processes_unmeasured(), output.open("wb") as log:
        running = ending.Server(command, stdout=log, stderr=log)
        try:
            with httpx.Client(
                transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://vault"
            ) as client:
                deadline = time.monotonic() + START_SECONDS_MAX
                while output.read_text().count("Application startup complete") < 2:
                    assert running.process.poll() is None, output.read_text()
                    assert time.monotonic() < deadline, output.read_text()
                    time.sleep(0.05)
                yield Server(client, output)
        finally:
            running.process.terminate()
            running.process.wait(timeout=30)
            running.kill()


DOMAIN = {"requestors": [SHOP, ACQUIRER], "merchants": ["M-1"], "limits": [{"uses": 3}]}


def use(token: str, number: int, **changed: object) -> dict[str, object]:
    payment = {"id": f"tx-{number}", "merchant": "M-1", "channel": "ecommerce"}
    return {"token": token, "transaction": {**payment, **changed}}


def misuses(token: str) -> list[tuple[str, str, dict[str, Any], int, str]]:
    """Requests that hold card numbers and are refused: method, path, what goes with it, status and answer."""
    return [
        ("POST", "/tokens", {"json": {"pan": VISA[:-1] + "2", "program": "card-on-file"}}, 422, "12"),
        ("POST", "/tokens", {"json": {"pan": int(VISA), "program": "card-on-file"}}, 422, "30"),
        ("POST", "/tokens", {"json": {"pan": [VISA], "program": VISA}}, 422, "30"),
        ("POST", "/tokens", {"json": {"pan": VISA, "program": VISA}}, 422, "12"),
        ("POST", "/tokens", {"json": {"pan": VISA, "program": "card-on-file", VISA: 1}}, 422, "30"),
        ("POST", "/tokens", {"json": {"pan": VISA, "program": "card-on-file", "requestor": ACQUIRER}}, 422, "30"),
        ("POST", "/tokens", {"json": {"pan": VISA, "program": "card-on-file", "domain": {VISA: 1}}}, 422, "12"),
        ("POST", "/tokens", {"json": {"pan": VISA, "program": "card-on-file", "expiry": VISA}}, 422, "12"),
        ("POST", "/tokens", {"content": f'{{"pan": "{VISA}", '}, 422, "30"),
        ("POST", "/tokens", {"content": VISA}, 422, "30"),
        ("POST", "/tokens/check", {"json": use(VISA, 1)}, 404, "14"),
        ("POST", "/tokens/detokenize", {"json": use(GROUPED, 1)}, 422, "12"),
        ("POST", "/tokens/detokenize", {"json": use(token, 1, merchant=VISA)}, 403, "57"),
        ("POST", "/tokens/detokenize", {"json": use(token, 1, channel=VISA)}, 422, "30"),
        ("POST", "/tokens/detokenize", {"json": use(token, 1, amount={"amount": 1, "currency": VISA})}, 422, "12"),
        *(
            ("POST", "/tokens/check", {"json": use(token, 1, amount={"amount": wrong, "currency": "EUR"})}, 422, "30")
            for wrong in ("4200", 42.0, 42.5, True, VISA, [42], None, 1e3)
        ),
        ("POST", "/tokens/check", {"json": use(token, 1, amount={"amount": -1, "currency": "EUR"})}, 422, "12"),
        ("POST", "/tokens/suspend", {"json": {"token": VISA}}, 404, "14"),
        ("POST", "/tokens/delete", {"json": {"token": {VISA: VISA}}}, 422, "30"),
        ("GET", f"/tokens/{VISA}", {}, 404, "14"),
        ("GET", f"/tokens/{token}", {}, 404, "14"),
        ("GET", f"/tokens/{'0' * 32}", {"params": {"pan": VISA}}, 404, "14"),
    ]  # fmt: skip


def issue(client: httpx.Client, pan: str = GROUPED) -> dict[str, str]:
    order = {"pan": pan, "expiry": "2039-12", "program": "card-on-file", "domain": DOMAIN}
    issued = client.post("/tokens", json=order, headers=bearer(SHOP))
    assert issued.status_code == 201, issued.text
    body: dict[str, str] = issued.json()
    return body


def test_the_service_over_http(server: Server) -> None:
    client = server.client
    issued = issue(client)
    token = issued["token"]
    assert token.startswith("999912")
    assert issued["last4"] == "1111"
    assert issue(client) == issued, "convergent, whichever worker answers"

    # The caller is who its bearer token says.
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {SECRETS[SHOP]}"}):
        refused = client.post("/tokens/detokenize", json=use(token, 1), headers=headers)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert refused.json()["response_code"] == "58"
    for page in ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"):
        status = 404 if page.endswith("redirect") else 401
        assert client.get(page).status_code == status, page
    described = client.get("/openapi.json", headers=bearer(SHOP))
    assert "/tokens/detokenize" in described.json()["paths"]
    for method, path, content, status in (
        ("POST", "/tokens", "[" * 10_000, 400),
        ("POST", "/tokens", "[" * 100_000, 413),
        ("POST", "/tokens", iter([b"[" * 10]), 413),  # in chunks, of unknown length
        ("GET", "/x", "", 404),
        ("PUT", "/tokens", "", 405),
    ):
        refused = client.request(method, path, content=content, headers=bearer(SHOP) | JSON)
        assert (refused.status_code, refused.json()["response_code"]) == (status, "30")
    refused = client.post("/tokens", json={"pan": VISA, "program": "card-on-file"}, headers=bearer(ACQUIRER))
    assert (refused.status_code, refused.json()["response_code"]) == (403, "58")
    refused = client.post("/tokens/suspend", json={"token": token}, headers=bearer(ACQUIRER))
    assert (refused.status_code, refused.json()["response_code"]) == (403, "58")
    assert client.get(f"/tokens/{issued['reference']}", headers=bearer(ACQUIRER)).status_code == 404

    # Every reason is given, each with its ISO 8583 answer.
    decision = client.post(
        "/tokens/check", json=use(token, 1, merchant="M-2", channel="atm"), headers=bearer(SHOP)
    )
    codes = {each["code"]: each["response_code"] for each in decision.json()["violations"]}
    assert codes.keys() == {"MERCHANT_NOT_ALLOWED", "CHANNEL_NOT_ALLOWED"}
    refused = client.post(
        "/tokens/detokenize", json=use(token, 1, merchant="M-2", channel="atm"), headers=bearer(SHOP)
    )
    assert refused.status_code == 403
    assert {each["code"]: each["response_code"] for each in refused.json()["violations"]} == codes
    assert refused.json()["code"] in codes
    assert refused.json()["response_code"] in codes.values()

    # Three uses, each retried, in two workers at once: three cards.
    def pay(number: int) -> tuple[int, dict[str, Any]]:
        answer = client.post("/tokens/detokenize", json=use(token, number % 8), headers=bearer(ACQUIRER))
        assert answer.headers["Cache-Control"] == "no-store"
        return number % 8, answer.json()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(pay, range(24)))
    paid = {number for number, answer in answers if answer["response_code"] == "00"}
    assert len(paid) == 3
    assert {answer.get("pan") for number, answer in answers if number in paid} == {VISA}
    assert {answer["response_code"] for number, answer in answers if number not in paid} == {"65"}

    # Misuse is refused without an echo.
    for method, path, request, status, response_code in misuses(token):
        answer = client.request(method, path, headers=bearer(SHOP), **request)
        assert (answer.status_code, answer.json()["response_code"]) == (status, response_code), (
            path,
            answer.text,
        )
        assert not any(needle in answer.text for needle in NEEDLES), answer.text

    # Life.
    suspended = client.post("/tokens/suspend", json={"token": token}, headers=bearer(SHOP))
    assert suspended.json()["status"] == "SUSPENDED"
    assert client.get(f"/tokens/{issued['reference']}", headers=bearer(SHOP)).json() == suspended.json()
    deleted = client.post("/tokens/delete", json={"token": token}, headers=bearer(SHOP))
    assert deleted.json()["status"] == "DELETED"
    again = client.post("/tokens/delete", json={"token": token}, headers=bearer(SHOP))
    assert again.json() == deleted.json()  # an answer that was lost is asked for again
    refused = client.post("/tokens/suspend", json={"token": token}, headers=bearer(SHOP))
    assert (refused.status_code, refused.json()["response_code"]) == (409, "57")

    log = server.log()
    assert log.count(f"detokenize for {ACQUIRER}: 200") == 9
    assert "look_up for 40012345678: 404" in log
    assert not any(needle in log for needle in (*NEEDLES, token)), log
    assert "Traceback" not in log


def test_the_requests_of_the_document_are_answered(server: Server) -> None:
    text = (EXAMPLES.parent / "docs" / "fastapi.md").read_text()
    first, second = re.findall(r"^curl http://localhost:8000(\S+) .* --json '([^']+)'$", text, re.MULTILINE)
    issued = server.client.post(first[0], content=first[1], headers=JSON | bearer(SHOP))
    assert issued.status_code == 201, issued.text
    used = second[1].replace("TOKEN", issued.json()["token"])
    answered = server.client.post(second[0], content=used, headers=JSON | bearer(SHOP))
    assert answered.json() == {"response_code": "00", "pan": VISA, "expiry": "2039-12"}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastapi_service", EXAMPLES / "fastapi_service.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastapi_service"] = module  # FastAPI reads annotations by it
    spec.loader.exec_module(module)
    return module


def test_no_card_number_in_any_log_line(
    environment: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every logger of the process at DEBUG, asyncio's debug mode, and a database that goes away."""
    monkeypatch.setitem(sys.modules, "fastapi_service", ModuleType("fastapi_service"))
    service = load()
    caplog.set_level(logging.DEBUG)

    async def work() -> None:
        asyncio.get_running_loop().slow_callback_duration = 0
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
        async with (
            service.app.router.lifespan_context(service.app),
            httpx.AsyncClient(transport=transport, base_url="http://vault", headers=bearer(SHOP)) as client,
        ):
            order = {"pan": GROUPED, "program": "card-on-file", "domain": DOMAIN}
            token = (await client.post("/tokens", json=order)).json()["token"]
            assert (await client.post("/tokens/detokenize", json=use(token, 1))).json()["pan"] == VISA
            for method, path, request, status, _ in misuses(token):
                assert (await client.request(method, path, **request)).status_code == status
            task = asyncio.create_task(client.post("/tokens", json=order))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await service.app.state.vault.close()  # a fault of the service
            failed = await client.post("/tokens", json=order)
            assert (failed.status_code, failed.json()["response_code"]) == (500, "96")
            assert "closed" not in failed.text

    asyncio.run(work(), debug=True)
    lines = [
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert any("Executing <" in line for line in lines)
    assert any("issue for 40012345678: 201" in line for line in lines)
    assert any("ConfigurationError: this vault is closed" in line for line in lines)
    assert not any(needle in line for needle in NEEDLES for line in lines)


def test_a_database_that_is_away_is_91_and_comes_back(
    environment: None, postgres_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi_service", ModuleType("fastapi_service"))
    service = load()

    async def work() -> None:
        transport = httpx.ASGITransport(service.app)
        async with (
            service.app.router.lifespan_context(service.app),
            httpx.AsyncClient(transport=transport, base_url="http://vault", headers=bearer(SHOP)) as client,
        ):
            order = {"pan": VISA, "program": "card-on-file"}
            assert (await client.post("/tokens", json=order)).status_code == 201
            postgres_server.stop()
            try:
                away = await client.post("/tokens", json=order)
            finally:
                postgres_server.start()
            assert (away.status_code, away.json()["response_code"]) == (503, "91")
            assert (await client.post("/tokens", json=order)).status_code == 201

    asyncio.run(work())
