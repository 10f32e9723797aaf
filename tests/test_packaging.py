"""What is built and shipped is what is in the repository."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import aiohttp_observe

TOP = Path(__file__).parent.parent
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.py[cod]", "*.egg-info", "build", "dist", "_build")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(TOP, folder / "source", ignore=NOT_SOURCE)
    command = ["-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "source")]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecat" not in (done.stdout + done.stderr).lower()
    return folder


@pytest.fixture
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def sources(folder: str) -> set[str]:
    """The files of a folder of the repository, as paths from its top."""
    files = (path for path in (TOP / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(TOP).as_posix() for path in files}


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == sources("aiohttp_observe")
    assert "aiohttp_observe/py.typed" in packed
    assert any(name.startswith("aiohttp_observe/admin/static/") for name in packed)


@pytest.mark.parametrize("folder", ["aiohttp_observe", "tests", "demo", "benchmarks", "changes"])
def test_the_sdist_has_what_a_packager_needs(built: Path, folder: str) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    assert sources(folder) <= packed


def test_the_metadata_tells_the_version_the_code_tells(metadata: Message) -> None:
    assert metadata["Name"] == "aiohttp-observe"
    assert metadata["Version"] == aiohttp_observe.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_no_extra_is_needed_for_the_core(metadata: Message) -> None:
    required = metadata.get_all("Requires-Dist", [])
    core = {re.split(r"[^\w-]", line)[0] for line in required if "extra ==" not in line}
    assert core == {
        "aiohttp",
        "opentelemetry-instrumentation-aiohttp-server",
        "opentelemetry-sdk",
        "prometheus-async",
        "prometheus_client",
        "aiohttp-sse",
        "msgspec",
    }


def listed(file: str, section: str, option: str) -> set[str]:
    """The lines of an option of a configuration file of the repository."""
    config = configparser.RawConfigParser()
    config.read(TOP / file)
    return set(config[section][option].split())


def test_the_oldest_environment_tests_exactly_the_lower_bounds() -> None:
    ours = ("otlp", "uvloop", "demo")
    bounds = listed("setup.cfg", "options", "install_requires").union(
        *(listed("setup.cfg", "options.extras_require", extra) for extra in ours)
    )
    oracle = "opentelemetry-instrumentation-aiohttp-client>=0.65b0"  # of the same release as the server's
    assert oracle in listed("setup.cfg", "options.extras_require", "test")
    assert {bound.replace(">=", "==") for bound in {*bounds, oracle}} == listed(
        "tox.ini", "testenv:oldest", "deps"
    )


@pytest.mark.parametrize("ending", ["-m demo", "-m pytest"])
def test_the_two_commands_are_the_same_wherever_they_stand(ending: str) -> None:
    command = re.compile(rf"^ *(python3 -m venv .*{ending})$", re.MULTILINE)
    in_readme, in_contributing = (
        command.findall((TOP / file).read_text()) for file in ("README.rst", "CONTRIBUTING.rst")
    )
    assert len(in_readme) == 1
    assert in_readme == in_contributing
