"""What users install: the wheel, the sdist, their metadata, and the command that every text gives for it."""

from __future__ import annotations

import email.message
import email.parser
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import tokenvault as tv
from scripts import wheel_tests

ROOT = Path(__file__).parent.parent
NAME = "payment-tokenvault"
TESTED_WHEEL = os.environ.get("TOKENVAULT_WHEEL")  # scripts/wheel_tests.py says so

# An extra of the other distribution; it as an argument of an installer; it as a line of requirements.
STRANGERS_PACKAGE = re.compile(
    r"""(?<![\w.-]) tokenvault \[
    | \b (?: pip3? | pipx | uv | poetry | pdm | conda ) \b [^\n]* \b (?: install | add ) \b
        (?: [ \t]+ [^\s`&;|]+ )*? [ \t]+ ['"`]? tokenvault (?= ['"`\s=<>~!,;)] | \.(?!\w) | $ )
    | ^ \s* ['"]? tokenvault \s* (?: [=~>!]= | > | < )""",
    re.VERBOSE | re.MULTILINE,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    if TESTED_WHEEL is not None:
        return Path(TESTED_WHEEL).parent
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    [path] = built.glob("*.whl")
    return zipfile.ZipFile(path)


def wheel_metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.parser.Parser().parsestr(wheel.read(name).decode())


@pytest.mark.skipif(TESTED_WHEEL is None, reason="the library is not installed from a wheel")
def test_what_is_tested_is_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Each file of the package is imported from where the wheel was installed, not from the source tree."""
    package = Path(tv.__file__).parent
    assert ROOT / "src" not in package.parents
    assert metadata.version(NAME) == tv.__version__
    names = [name for name in wheel.namelist() if name.startswith("tokenvault/")]
    assert all((package.parent / name).read_bytes() == wheel.read(name) for name in names)


def test_the_wheel_holds_the_package_its_types_its_license_and_no_more(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    source = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    package = {name for name in names if name.startswith("tokenvault/")}
    assert len(source) > 50
    assert package == source | {"tokenvault/py.typed"}
    rest = {name.split("/", maxsplit=1)[1] for name in names - package}
    assert {name.split("/")[0] for name in names - package} == {
        f"payment_tokenvault-{tv.__version__}.dist-info"
    }
    assert rest == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_metadata_names_the_distribution_and_what_it_needs(wheel: zipfile.ZipFile) -> None:
    told = wheel_metadata(wheel)
    assert (told["Name"], told["Version"], told["Requires-Python"]) == (NAME, tv.__version__, ">=3.11")
    assert told["License-Expression"] == "Apache-2.0"
    required = [text for text in told.get_all("Requires-Dist", []) if "extra ==" not in text]
    needed = {re.split(r"[<>=!~ \[]", text)[0] for text in required}
    assert needed == {"attrs", "cryptography", "numpy"}
    assert {"postgres", "testing", "arrow", "cli", "examples"} <= set(told.get_all("Provides-Extra", []))
    urls = {text.split(",")[0] for text in told.get_all("Project-URL", [])}
    assert {"Documentation", "Source", "Issues", "Changelog"} <= urls


def test_the_sdist_holds_what_it_takes_to_build_document_and_test_the_library(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", maxsplit=1)[1] for name in archive.getnames() if "/" in name}
    top = {name.split("/")[0] for name in names}
    assert {"src", "tests", "typing_tests", "docs", "examples", "benchmarks", "scripts"} <= top
    assert {
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "constraints.txt",
    } <= top
    assert {"examples/quickstart.py", "examples/fastapi_service.py", "docs/threat-model.md"} <= names
    assert not top & {".git", ".ci", ".github", ".venv", ".venvs", ".softhsm", "dist"}


def texts() -> dict[str, str]:
    """Every text file of the project that is no output of a tool, by its path."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked sdist
        made = {".venv", ".venvs", "dist"}
        paths = [path for path in ROOT.rglob("*") if not made & set(path.relative_to(ROOT).parts)]
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8", errors="ignore")
        for path in paths
        if path.is_file()
    }


def test_no_text_says_to_install_a_package_of_others() -> None:
    """The name `tokenvault` on the package index is somebody else's."""
    found = texts()
    assert {"README.md", "pyproject.toml", "Makefile", "CHANGELOG.md", "src/tokenvault/__init__.py"} <= set(
        found
    )
    wrong = {name: hit[0] for name, text in found.items() if (hit := STRANGERS_PACKAGE.search(text))}
    assert not wrong


@pytest.mark.parametrize(
    "command",
    [
        "pip install NAME",
        "Run `pip install NAME`.",
        "python -m pip install --quiet NAME==0.1.0",
        "pip install 'NAME[postgres]'",
        "pip install -U fastapi NAME",
        "uv add NAME",
        "uv pip install NAME",
        "with the extra `NAME[arrow]`",
        "NAME>=0.1",
        'dependencies = [\n    "NAME>=0.1",\n]',
    ],
)
def test_the_search_for_the_command_finds_it(command: str) -> None:
    assert STRANGERS_PACKAGE.search(command.replace("NAME", "tokenvault"))
    assert not STRANGERS_PACKAGE.search(command.replace("NAME", NAME))


@pytest.mark.parametrize(
    "text",
    [
        "import tokenvault as tv",
        "\n".join(
            ["pip install 'payment-tokenvault[testing]'", "python -m tokenvault.testing.pkcs11_modules URI"]
        ),
        "make demo    # installs SoftHSM; tokenvault is then tried",
        "python -m pip install --editable '.[dev]' && python -c 'import tokenvault'",
        "`tokenvault.testing` needs `payment-tokenvault[testing]`",
    ],
)
def test_the_search_for_the_command_finds_nothing_else(text: str) -> None:
    assert not STRANGERS_PACKAGE.search(text)


def test_the_shorter_set_is_there() -> None:
    assert len(wheel_tests.SHORT) > 10
    assert not [name for name in wheel_tests.SHORT if not (ROOT / "tests" / name).is_file()]
