"""What a release publishes: refused while something is missing, the same bytes from the same commit, listed whole."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from scripts import release

ROOT = Path(__file__).parent.parent
READY = {
    "CHANGELOG.md": "## [Unreleased]\n\n## [1.2.0] - 2026-11-27\n\n### Added\n",
    "SECURITY.md": "Write to security@bank.example.\n",
    "pyproject.toml": '[project.urls]\nSource = "https://code.bank.example/vault"\n',
    ".github/ISSUE_TEMPLATE/config.yml": "blank_issues_enabled: false\n",
}


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@bank.example")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that is ready for the release of 1.2.0."""
    for name, text in READY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "All")
    return tmp_path


def test_nothing_is_missing_from_a_project_that_is_ready(project: Path) -> None:
    assert release.missing(project, "1.2.0") == []


def test_a_version_of_development_is_not_released(project: Path) -> None:
    (first, *_) = release.missing(project, "1.2.0.dev0")
    assert first.startswith("the version is 1.2.0.dev0")


@pytest.mark.parametrize(
    "heading",
    [
        "## [1.2.0]",
        "## [1.2.0] - soon",
        "## [1.2.0] - 2026-13-40",
        "## [1.2.0] - 9999-01-01",
        "## [1.2] - 2026-11-27",
    ],
)
def test_the_changelog_has_the_version_and_its_day(project: Path, heading: str) -> None:
    (project / "CHANGELOG.md").write_text(f"{heading}\n")
    git(project, "commit", "--quiet", "--all", "--message", "Heading")
    assert release.missing(project, "1.2.0") == [
        "CHANGELOG.md has no section '## [1.2.0] - YYYY-MM-DD' with the date"
    ]


def test_a_tree_with_changes_is_not_released(project: Path) -> None:
    (project / "new.py").touch()
    assert release.missing(project, "1.2.0") == ["the tree has changes: commit them"]


def test_a_version_is_released_once(project: Path) -> None:
    git(project, "tag", "v1.2.0")
    assert release.missing(project, "1.2.0") == ["the tag v1.2.0 is there already"]


@pytest.mark.parametrize("name", sorted(set(READY) - {"CHANGELOG.md"}))
def test_placeholders_are_filled_in(project: Path, name: str) -> None:
    (project / name).write_text("https://example.com/payment-tokenvault/issues\n")
    git(project, "commit", "--quiet", "--all", "--message", "Placeholder")
    assert release.missing(project, "1.2.0") == [
        f"{name}:1 has a placeholder: https://example.com/payment-tokenvault/issues"
    ]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a release is made from a repository")
def test_a_dry_run_makes_everything_and_tells_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two builds of the last commit are the same bytes, or there is no release."""
    (tmp_path / "left from before").touch()
    assert release.main(["--dry-run", "--out", str(tmp_path)]) == 0
    assert "Not ready: pyproject.toml:" in capsys.readouterr().err
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    sums = {line[66:]: line[:64] for line in made.pop("SHA256SUMS").decode().splitlines()}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    assert len(made) == 3
    materials = json.loads(next(content for name, content in made.items() if name.endswith(".cdx.json")))
    [wheel] = [name for name in made if name.endswith(".whl")]
    assert (materials["bomFormat"], materials["specVersion"]) == ("CycloneDX", "1.6")
    library = materials["metadata"]["component"]
    assert library["name"] == "payment-tokenvault"
    assert library["hashes"] == [{"alg": "SHA-256", "content": sums[wheel]}]
    components = {component["name"]: component for component in materials["components"]}
    assert {"attrs", "cryptography", "numpy", "tzdata", "cffi"} <= set(components)
    assert not {"pytest", "hypothesis", "psycopg", "python-pkcs11"} & set(components)
    assert all(component["licenses"] and component["purl"] for component in components.values())


def test_builds_that_differ_are_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(_project: Path, folder: Path) -> list[Path]:
        path = folder / "vault-1.2.0-py3-none-any.whl"
        path.write_text(str(folder))
        return [path]

    monkeypatch.setattr(release, "build", build)
    with pytest.raises(SystemExit, match="differs between two builds of one commit"):
        release.release(ROOT, tmp_path)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a release is made from a repository")
def test_a_release_is_refused_while_something_is_missing(tmp_path: Path) -> None:
    assert release.main(["--out", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []
