"""What each command is given: a session with the configuration, the stores and the vault, opened as they are needed.

A command is one function: `@command(app, "name")` over a function whose first parameter is the session, and whose
others are typer's; an attrs class as a parameter stands for an option of each of its fields. `--json` and `--config`
are added to each command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Concatenate, Final, ParamSpec, Self, TypeVar, get_type_hints

import attrs
import typer

from tokenvault.cli import configuration
from tokenvault.cli.configuration import Configuration
from tokenvault.cli.exits import READER_GONE
from tokenvault.cli.output import Output
from tokenvault.errors import ConfigurationError
from tokenvault.keys import KeyStore, open_key_store
from tokenvault.runtime import Closable
from tokenvault.stores import TokenStore, open_token_store
from tokenvault.vault.blocking import Vault
from tokenvault.vault.directory import StoredDirectory

P = ParamSpec("P")
C = TypeVar("C", bound=Closable)

_KEYWORD: Final = inspect.Parameter.KEYWORD_ONLY

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Configuration file; unset, tokenvault.toml in this folder.",
        envvar=configuration.PATH_VARIABLE,
        show_envvar=True,
        rich_help_panel="Everywhere",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Write one JSON document.", rich_help_panel="Everywhere")
]


class Session:
    """One run of a command. What it opens is closed with it, in the other order."""

    def __init__(self, config: Path | None, *, as_json: bool) -> None:
        self._config = config
        self._opened: Final = ExitStack()
        self.output: Final = Output(as_json=as_json)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)
        if isinstance(error, BrokenPipeError):  # before typer, which would end with 1
            raise typer.Exit(READER_GONE.code) from None

    @cached_property
    def configuration(self) -> Configuration:
        """The configuration. Raises ConfigurationError."""
        return configuration.load(self._config)

    @cached_property
    def keys(self) -> KeyStore:
        """The key store. Raises ConfigurationError, KeyStoreError."""
        return self._close_later(
            open_key_store(
                _configured(self.configuration.key_store, "key_store", configuration.KEY_STORE_VARIABLE)
            )
        )

    @cached_property
    def store(self) -> TokenStore:
        """The token store. Raises ConfigurationError."""
        return self._close_later(
            open_token_store(
                _configured(self.configuration.token_store, "token_store", configuration.TOKEN_STORE_VARIABLE)
            )
        )

    @cached_property
    def vault(self) -> Vault:
        """The vault, with the configured programs and requestors. Raises what opening one raises."""
        found = self.configuration
        vault = Vault(
            self.keys,
            self.store,
            programs=found.programs,
            requestors=found.requestors,
            directory=StoredDirectory() if found.stored else None,
            reveal=found.reveal,
        )
        return self._opened.enter_context(vault)

    def _close_later(self, opened: C) -> C:
        self._opened.callback(opened.close)
        return opened

    def leave_open(self) -> None:
        """Let the process end without closing what hangs."""
        self._opened.pop_all()


def _configured(address: str | None, name: str, variable: str) -> str:
    """An address of the configuration. Raises ConfigurationError where there is none."""
    if address is None:
        raise ConfigurationError(
            f"no {name.replace('_', ' ')} is configured: write {name} into the configuration file, or set"
            f" {variable}"
        )
    return address


def command(
    app: typer.Typer, name: str, panel: str | None = None
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Make a function a command of an app, under a name, in a panel of its help."""

    def register(
        function: Callable[Concatenate[Session, P], None],
    ) -> Callable[Concatenate[Session, P], None]:
        parameters, bundles = _parameters(function)
        parameters += [
            inspect.Parameter("config", _KEYWORD, default=None, annotation=ConfigOption),
            inspect.Parameter("as_json", _KEYWORD, default=False, annotation=JsonOption),
        ]

        def run(*, config: Path | None, as_json: bool, **values: Any) -> None:
            for bundle, kind in bundles.items():
                values[bundle] = kind(**{field.name: values.pop(field.name) for field in attrs.fields(kind)})
            call: Callable[..., None] = function
            with Session(config, as_json=as_json) as session:
                call(session, **values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # typer reads the parameters there; a function has it not by its type
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        run.__doc__, run.__name__ = function.__doc__, function.__name__
        app.command(name, rich_help_panel=panel)(run)
        return function

    return register


def _parameters(function: Callable[..., None]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """The parameters of a command as typer sees them, and those that stand for several, each with its class."""
    hints = get_type_hints(function, include_extras=True)
    _, *own = inspect.signature(function).parameters.values()
    parameters: list[inspect.Parameter] = []
    bundles: dict[str, Any] = {}
    for each in own:
        kind = hints[each.name]
        if not attrs.has(kind):
            parameters.append(each.replace(kind=_KEYWORD, annotation=kind))
            continue
        bundles[each.name] = kind
        fields = get_type_hints(kind, include_extras=True)
        for field in attrs.fields(kind):
            default = inspect.Parameter.empty if field.default is attrs.NOTHING else field.default
            parameters.append(
                inspect.Parameter(field.name, _KEYWORD, default=default, annotation=fields[field.name])
            )
    return parameters, bundles
