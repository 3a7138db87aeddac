"""Put the oldest or the newest transformers and peft that `pyproject.toml` allows, and their tests, into out/peers.

    python tests/peers/fetch.py oldest

Both are installed without what they need, to stand in front of an environment that has it:

    out/peers/oldest                       to be put on the path
    out/peers/sources/transformers-5.23.0  `tests` of the source distribution of exactly that version

Nothing of it is committed. Knows nothing about what the tests are for.
"""

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PACKAGES = ("transformers", "peft")
REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "out/peers"


def pip(*arguments: str) -> None:
    """Run pip; its errors end this script."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True)


def wanted(which: str) -> list[str]:
    """Return what to install: the lower bounds of `pyproject.toml`, or its ranges."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    found = [requirement for requirement in found if requirement.name in PACKAGES]
    if which == "newest":
        return [str(requirement) for requirement in found]
    lowest = {r.name: next(s.version for s in r.specifier if s.operator == ">=") for r in found}
    return [f"{name}=={version}" for name, version in lowest.items()]


def fetch_tests(name: str, version: str) -> None:
    """Unpack the tests of a source distribution; nothing is done where they are."""
    folder = FOLDER / "sources" / f"{name}-{version}"
    if folder.exists():
        return
    with tempfile.TemporaryDirectory() as downloads:
        pip("download", "--no-binary", name, "--no-deps", "--dest", downloads, f"{name}=={version}")
        with tarfile.open(next(Path(downloads).iterdir())) as archive:
            tests = [member for member in archive if "/tests/" in member.name and member.isfile()]
            archive.extractall(FOLDER / "sources", tests, filter="data")
    (folder / "tests/fixtures").mkdir()
    for path in ("__init__.py", "fixtures/sample_text.txt"):  # looked for, and not read
        (folder / "tests" / path).touch()


def main(which: str) -> None:
    """Fetch both packages, "oldest" or "newest", and their tests."""
    site = FOLDER / which
    pip("install", "--no-deps", "--upgrade", "--target", str(site), *wanted(which))
    for distribution in importlib.metadata.distributions(path=[str(site)]):
        fetch_tests(distribution.name, distribution.version)


if __name__ == "__main__":
    main(sys.argv[1])
