"""A token service over HTTP, with FastAPI: token requestors issue, use and manage tokens.

    export TOKENVAULT_KEY_STORE='pkcs11:token=tokenvault?module-path=...&pin-source=file:...'
    export TOKENVAULT_STORE='postgresql://user:password@host/database?sslmode=verify-full'
    export TOKENVAULT_CALLERS=callers.json  # {"40012345678": "<SHA-256 of that requestor's bearer token, hex>"}
    python examples/fastapi_service.py  # schema and keys, once
    uvicorn --app-dir examples fastapi_service:app --workers 4

- Who calls is what the bearer token says, never what the body says. TLS is for what stands in front.
- Card numbers and tokens stand in bodies, never in a URL: proxies, browsers and access logs keep URLs. Since a
  caller may err, Uvicorn's access log is turned off; a line here names the endpoint.
- What is refused is told by field, not by value: FastAPI's own answer would repeat the card number.
- An amount is a whole number of minor units: neither "42.00" nor 42.0 nor true is taken for one.
- What the service offers is told to callers alone, as its OpenAPI document: FastAPI's own pages are open to anyone.
- Every error has the answer for ISO 8583 data element 39.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, SecretStr, StrictInt
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

import tokenvault as tv

SHOP, ACQUIRER = "40012345678", "40087654321"
PROGRAMS = [
    tv.TokenProgram(
        "card-on-file",
        format=tv.TokenFormat(bin="999912", keep_last4=True),
        making=tv.Making.CONVERGENT,
        domain=tv.Domain(channels={tv.Channel.ECOMMERCE, tv.Channel.MERCHANT_INITIATED}),
    )
]
REQUESTORS = [
    tv.TokenRequestor(SHOP, programs={"card-on-file"}),
    tv.TokenRequestor(ACQUIRER, permissions={tv.Permission.DETOKENIZE}),
]
STATUSES: dict[type[tv.TokenVaultError], int] = {
    tv.InvalidInputError: 422,
    tv.TokenNotFoundError: 404,
    tv.PermissionDeniedError: 403,
    tv.DomainRestrictionError: 403,
    tv.LifecycleError: 409,
    tv.ConflictError: 503,  # nothing was done
    tv.TokenStoreError: 503,  # done or not: the same transaction again tells
    tv.KeyStoreError: 503,
}
BODY_BYTES_MAX = 16_384
log = logging.getLogger("uvicorn.error")  # despite its name, for all that uvicorn itself has to say


class Strict(BaseModel):
    """A body or a part of one: its form. The library checks the values."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Order(Strict):
    """What is to be issued."""

    pan: SecretStr
    expiry: str | None = None
    program: str
    domain: dict[str, Any] | None = None


class Money(Strict):
    """Minor units and an ISO 4217 code."""

    amount: StrictInt
    currency: str


class Payment(Strict):
    """A transaction, but for its requestor: that is the caller."""

    id: str
    merchant: str | None = None
    channel: tv.Channel | None = None
    amount: Money | None = None


class Use(Strict):
    """A token and what it is to pay."""

    token: SecretStr
    transaction: Payment


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open everything once for each worker process."""
    logging.getLogger("uvicorn.access").disabled = True
    callers = json.loads(Path(os.environ["TOKENVAULT_CALLERS"]).read_text())
    app.state.callers = {requestor: bytes.fromhex(digest) for requestor, digest in callers.items()}
    async with AsyncExitStack() as stack:
        keys = stack.enter_context(closing(tv.open_key_store(os.environ["TOKENVAULT_KEY_STORE"])))
        store = tv.open_async_token_store(os.environ["TOKENVAULT_STORE"])
        stack.push_async_callback(store.close)
        vault = tv.AsyncVault(keys, store, programs=PROGRAMS, requestors=REQUESTORS)
        app.state.vault = await stack.enter_async_context(vault)
        yield


class AccessLog:
    """A line for each request: which endpoint, for whom, how it ended."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def noting(message: Any) -> None:
            if message["type"] == "http.response.start":
                endpoint = getattr(scope.get("endpoint"), "__name__", "nowhere")
                requestor = scope.get("state", {}).get("requestor", "nobody")
                log.info("%s for %s: %d", endpoint, requestor, message["status"])
            await send(message)

        await self.app(scope, receive, noting if scope["type"] == "http" else send)


app = FastAPI(title="Tokens", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)


@app.middleware("http")
async def bounded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse a body that is long, or does not say how long it is, before it is read."""
    length = request.headers.get("Content-Length", "" if "Transfer-Encoding" in request.headers else "0")
    if not length.isdecimal() or len(length) > 9 or int(length) > BODY_BYTES_MAX:
        return answer({"response_code": "30", "message": f"a body has at most {BODY_BYTES_MAX} bytes"}, 413)
    return await call_next(request)


app.add_middleware(AccessLog)


async def requestor_of(request: Request) -> str:
    """The requestor whose bearer token this is. All are compared, each in constant time."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    digest = hashlib.sha256(secret.encode()).digest()
    known = [
        requestor
        for requestor, held in request.app.state.callers.items()
        if hmac.compare_digest(digest, held)
    ]
    if scheme.lower() != "bearer" or not known:
        raise HTTPException(401, "who calls?", {"WWW-Authenticate": "Bearer"})
    request.state.requestor = known[0]
    return str(known[0])


async def opened_vault(request: Request) -> tv.AsyncVault:
    """The vault of this process."""
    vault: tv.AsyncVault = request.app.state.vault
    return vault


Caller = Annotated[str, Depends(requestor_of)]
Vault = Annotated[tv.AsyncVault, Depends(opened_vault)]
Token = Annotated[SecretStr, Body(embed=True)]


def answer(content: object, status: int = 200) -> JSONResponse:
    """JSON that nobody on the way keeps."""
    return JSONResponse(content, status, {"Cache-Control": "no-store"})


def told(info: tv.TokenInfo) -> dict[str, object]:
    """What every caller may know of a token; not the token itself."""
    expiry = None if info.token_expiry is None else str(info.token_expiry)
    return {"reference": info.reference, "status": info.status.name, "last4": info.last4, "expiry": expiry}


def transaction_of(payment: Payment, requestor: str) -> tv.Transaction:
    """What the caller presents, in the caller's own name."""
    money = payment.amount
    amount = None if money is None else tv.Money(money.amount, money.currency)
    return tv.Transaction(
        id=payment.id, requestor=requestor, merchant=payment.merchant, channel=payment.channel, amount=amount
    )


def violations_of(refused: tv.Decision | tv.DomainRestrictionError) -> list[dict[str, str]]:
    """Every control that failed."""
    return [
        {"code": each.code, "message": each.message, "response_code": each.response_code}
        for each in refused.violations
    ]


@app.post("/tokens")
async def issue(order: Order, requestor: Caller, vault: Vault) -> JSONResponse:
    """Issue a token to the caller."""
    domain = None if order.domain is None else tv.Domain.from_json(json.dumps(order.domain))
    info = await vault.issue(
        order.pan.get_secret_value(), expiry=order.expiry, requestor=requestor, program=order.program, domain=domain
    )  # fmt: skip
    return answer({"token": info.token, **told(info)}, 201)


@app.post("/tokens/check")
async def check(use: Use, requestor: Caller, vault: Vault) -> JSONResponse:
    """Decide, and count nothing."""
    decision = await vault.check(use.token.get_secret_value(), transaction_of(use.transaction, requestor))
    return answer({"allowed": decision.allowed, "violations": violations_of(decision)})


@app.post("/tokens/detokenize")
async def detokenize(use: Use, requestor: Caller, vault: Vault) -> JSONResponse:
    """The card, for a use that the token's domain allows. Safe to repeat with the same transaction id."""
    card = await vault.detokenize(use.token.get_secret_value(), transaction_of(use.transaction, requestor))
    expiry = None if card.expiry is None else str(card.expiry)
    return answer({"response_code": "00", "pan": card.pan.reveal(), "expiry": expiry})


@app.post("/tokens/suspend")
async def suspend(token: Token, requestor: Caller, vault: Vault) -> JSONResponse:
    """Suspend a token of the caller's own."""
    info = await vault.suspend(token.get_secret_value(), by=tv.Actor.REQUESTOR, requestor=requestor)
    return answer(told(info))


@app.post("/tokens/delete")
async def delete(token: Token, requestor: Caller, vault: Vault) -> JSONResponse:
    """Delete a token of the caller's own, for ever."""
    return answer(told(await vault.delete(token.get_secret_value(), requestor=requestor)))


@app.get("/tokens/{reference}")
async def look_up(reference: str, requestor: Caller, vault: Vault) -> JSONResponse:
    """What stands about a token of the caller's own, by its reference."""
    info = await vault.get(reference)
    if info.requestor != requestor or info.reference != reference:  # another's, or a token in the URL
        raise tv.TokenNotFoundError("no token with this reference")
    return answer(told(info))


@app.get("/docs", include_in_schema=False)
@app.get("/redoc", include_in_schema=False)
@app.get("/openapi.json", include_in_schema=False)
async def describe(_: Caller) -> JSONResponse:
    """What the service offers: its OpenAPI document, for a caller to load where it likes."""
    return answer(app.openapi())


@app.exception_handler(tv.TokenVaultError)
async def refuse(_: Request, error: tv.TokenVaultError) -> JSONResponse:
    """An error of the library, which holds nothing secret. What is the service's own fault is for its log."""
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
    content: dict[str, object] = {"response_code": error.response_code, "message": str(error)}
    if status < 500:
        content["code"] = error.code
    if isinstance(error, tv.DomainRestrictionError):
        content["violations"] = violations_of(error)
    if status >= 500:
        log.error("%s: %s", type(error).__name__, error)
        content["message"] = "the service can not answer now" if status == 503 else "the service has failed"
    return answer(content, status)


@app.exception_handler(RequestValidationError)
async def misread(_: Request, error: RequestValidationError) -> JSONResponse:
    """Which fields are wrong. Their values, and names that only the caller knows, may be card numbers."""
    fields = {
        ".".join(map(str, each["loc"][: -1 if each["type"] == "extra_forbidden" else None]))
        for each in error.errors()
    }
    return answer(
        {"response_code": "30", "message": "the body has another form", "fields": sorted(fields)}, 422
    )


@app.exception_handler(HTTPException)
async def turned_away(_: Request, error: HTTPException) -> JSONResponse:
    """Nobody whom the service knows, no JSON, or no endpoint."""
    code = tv.PermissionDeniedError.response_code if error.status_code == 401 else "30"
    refusal = answer({"response_code": code, "message": error.detail}, error.status_code)
    refusal.headers.update(error.headers or {})
    return refusal


async def provision() -> None:
    """Create the schema and the keys that are missing."""
    with closing(tv.open_key_store(os.environ["TOKENVAULT_KEY_STORE"])) as keys:
        store = tv.open_async_token_store(os.environ["TOKENVAULT_STORE"])
        try:
            await tv.provision_async(keys, store)
        finally:
            await store.close()


if __name__ == "__main__":
    asyncio.run(provision())
