"""Make what a release publishes, in dist/: wheel, sdist, SBOM and the sums of all three.

python -m scripts.release              refuses while something is missing
python -m scripts.release --dry-run    tells what is missing, and makes all the same

Everything comes from the last commit, twice, in two folders: both have to be the same bytes. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packaging.version import Version

from scripts import sbom

ROOT: Final = Path(__file__).resolve().parent.parent
PLACEHOLDERS: Final = re.compile(r"FILL IN|example\.com/payment-tokenvault")
WITH_PLACEHOLDERS: Final = ("pyproject.toml", "SECURITY.md", ".github/ISSUE_TEMPLATE/config.yml")


def missing(project: Path, version: str) -> list[str]:
    """What keeps a project from being released, in words."""
    found = []
    if Version(version).is_devrelease:
        found.append(f"the version is {version}: set __version__ in src/tokenvault/__init__.py")
    if not _dated(project, version):
        found.append(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD' with the date")
    if _git(project, "status", "--porcelain"):
        found.append("the tree has changes: commit them")
    if _git(project, "tag", "--list", f"v{version}"):
        found.append(f"the tag v{version} is there already")
    for name in WITH_PLACEHOLDERS:
        for number, line in enumerate((project / name).read_text(encoding="utf-8").splitlines(), start=1):
            if PLACEHOLDERS.search(line):
                found.append(f"{name}:{number} has a placeholder: {line.strip()}")
    return found


def _dated(project: Path, version: str) -> bool:
    changelog = (project / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", changelog, re.MULTILINE)
    try:
        return heading is not None and datetime.date.fromisoformat(heading[1]) <= _today()
    except ValueError:
        return False


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def build(project: Path, folder: Path) -> list[Path]:
    """Build wheel and sdist of a project's last commit into a folder.

    Neither the tree's other files nor the place or time of the build get into them.
    """
    epoch = commit_epoch(project)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=project, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as source:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(source, filter="data")
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        )
    return sorted(folder.iterdir())


def commit_epoch(project: Path) -> int:
    """When the last commit was made, in seconds since 1970."""
    return int(_git(project, "log", "-1", "--format=%ct"))


def release(project: Path, folder: Path) -> list[Path]:
    """Make wheel, sdist, SBOM and SHA256SUMS in an empty folder.

    Raises:
        SystemExit: two builds are not the same bytes.
    """
    made = build(project, folder)
    with tempfile.TemporaryDirectory() as again:
        for first, second in zip(made, build(project, Path(again)), strict=True):
            if (first.name, first.read_bytes()) != (second.name, second.read_bytes()):
                raise SystemExit(f"{first.name} differs between two builds of one commit")
    wheel = next(path for path in made if path.suffix == ".whl")
    materials = folder / f"{wheel.name.split('-py3-')[0]}.cdx.json"
    materials.write_text(sbom.describe(wheel, commit_epoch(project)), encoding="utf-8")
    sums = folder / "SHA256SUMS"
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in [*made, materials]]
    sums.write_text("".join(lines), encoding="ascii")
    return [*made, materials, sums]


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m scripts.release")
    parser.add_argument("--dry-run", action="store_true", help="make everything, whatever is missing")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder, emptied first (dist)")
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "hatchling", "version"]
    version = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    obstacles = missing(ROOT, version)
    for obstacle in obstacles:
        print(f"Not ready: {obstacle}", file=sys.stderr)
    if obstacles and not options.dry_run:
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.out.iterdir():
        path.unlink()
    for path in release(ROOT, options.out):
        print(path)
    if not options.dry_run:
        print(f"Next: git tag v{version}, and publish the files above from a place that is trusted to.")
    return 0


def _git(project: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
