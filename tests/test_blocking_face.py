"""The two faces of the vault are one text: the blocking one is generated, and its methods say what the others say."""

from __future__ import annotations

import inspect
from pathlib import Path

import attrs
import pytest

import tokenvault as tv
from scripts import blocking_vault
from tokenvault.vault import awaited, blocking


def text_of(module: object) -> str:
    return Path(inspect.getfile(module)).read_text(encoding="utf-8")  # type: ignore[arg-type] # a module


def test_the_blocking_face_is_what_the_awaited_one_gives() -> None:
    assert blocking_vault.blocking(text_of(awaited)) == text_of(blocking), (
        "run python -m scripts.blocking_vault"
    )


@pytest.mark.parametrize("faces", [blocking_vault.EXCHANGE, blocking_vault.MAINTENANCE])
def test_each_other_blocking_face_is_what_the_awaited_one_gives(faces: blocking_vault.Faces) -> None:
    assert blocking_vault.blocking(faces.source.read_text(encoding="utf-8"), faces) == faces.target.read_text(
        encoding="utf-8"
    ), "run python -m scripts.blocking_vault"


def test_every_method_says_the_same_on_both_faces() -> None:
    methods = [name for name, _ in inspect.getmembers(tv.Vault, inspect.isfunction) if name[0] != "_"]
    assert len(methods) > 10
    for name in methods:
        said = inspect.getdoc(getattr(tv.Vault, name))
        assert said
        assert said == inspect.getdoc(getattr(tv.AsyncVault, name)), name
    assert tv.provision.__doc__ == tv.provision_async.__doc__


@pytest.mark.parametrize("gone", ["provision_async", "`async with` opens it", "await self.close()"])
def test_a_table_that_no_longer_fits_the_text_is_an_error(gone: str) -> None:
    source = text_of(awaited)
    assert gone in source
    with pytest.raises(ValueError, match="text"):
        blocking_vault.blocking(
            source.replace(gone, "await other()" if gone.startswith("await") else "other")
        )


def test_a_stale_face_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "blocking.py"
    elsewhere = attrs.evolve(blocking_vault.VAULT, target=target)
    monkeypatch.setattr(blocking_vault, "FACES", (elsewhere,))
    assert blocking_vault.main([]) == 0
    assert blocking_vault.main(["--check"]) == 0
    target.write_text(target.read_text().replace("arguments.token_or_reference(token)", "token", 1))
    assert blocking_vault.main(["--check"]) == 1
    assert "python -m scripts.blocking_vault" in capsys.readouterr().out
    assert blocking_vault.main(["--other"]) == 2


def test_awaits_are_found_wherever_they_stand() -> None:
    source = 'async def é(x):\n    return "é", [await f(\n        await g(x)\n    )], await x.h\n'
    assert blocking_vault._without_awaits(source) == (
        'def é(x):\n    return "é", [run(f(\n        run(g(x))\n    ))], run(x.h)\n'
    )
