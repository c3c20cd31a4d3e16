"""An adapter that derives from a port and lacks a method fails at that method: it never answers by chance."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from tokenvault.stores.port import AsyncTokenStore, TokenStore

PORTS: tuple[type, ...] = (TokenStore, AsyncTokenStore)
METHODS = [
    pytest.param(port, name, id=f"{port.__name__}.{name}")
    for port in PORTS
    for name, method in vars(port).items()
    if inspect.isfunction(method) and not name.startswith("_")
]


def called(method: Callable[..., object]) -> object:
    """The answer of a method to arguments of no sense, awaited where it is a coroutine."""
    needed = [
        parameter
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is parameter.empty
    ]
    by_name = {each.name: None for each in needed if each.kind is each.KEYWORD_ONLY}
    answer = method(*[None for each in needed if each.kind is each.POSITIONAL_OR_KEYWORD], **by_name)
    if inspect.iscoroutine(answer):
        try:
            answer.send(None)
        finally:
            answer.close()
    return answer


@pytest.mark.parametrize(("port", "name"), METHODS)
def test_a_method_that_an_adapter_lacks_fails_where_it_is_called(port: type, name: str) -> None:
    adapter = type("Adapter", (port,), {})()
    with pytest.raises(TypeError, match="writes every method of the port"):
        called(getattr(adapter, name))


def test_both_ports_have_the_same_methods() -> None:
    names = [{each.values[1] for each in METHODS if each.values[0] is port} for port in PORTS]
    assert names[0] == names[1]
    assert len(names[0]) > 20
