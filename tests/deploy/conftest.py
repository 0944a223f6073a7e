"""Fixtures of the tests of deployment.

A small Debian is the base of images and machines.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.tools import missing, ran

PACKAGES = "ca-certificates,curl,python3-venv,systemd"
MOST_SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that need Debian last: it is installed meanwhile."""
    items.sort(key=_needs_debian)


def _needs_debian(item: pytest.Item) -> bool:
    return "debian" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """Return a folder in memory: writing and deleting whole systems is fast there."""
    with tempfile.TemporaryDirectory(prefix="c42c-deploy-") as folder:
        ran("mount", "-t", "tmpfs", "-o", "size=3g,mode=755", "c42c", folder)
        yield Path(folder)
        ran("umount", "--recursive", "--lazy", folder)


@pytest.fixture(scope="session", autouse=True)
def installation(
    request: pytest.FixtureRequest,
) -> Iterator[tuple[Path, subprocess.Popen[str]] | None]:
    """Begin to install Debian in a folder, if a test needs it.

    It comes from this machine's mirror.
    """
    if (
        missing("mmdebstrap", "apt-get")
        or os.geteuid() != 0
        or not any(map(_needs_debian, request.session.items))
    ):
        yield None
        return
    root = request.getfixturevalue("memory") / "debian"
    release = re.search(
        r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M
    )
    assert release is not None
    sites = ran(
        "apt-get",
        "indextargets",
        "--format",
        "$(SITE)",
        "Created-By: Packages",
        f"Codename: {release[1]}",
    )
    options = ["--quiet", "--variant=essential", f"--include={PACKAGES}"]
    command = ["mmdebstrap", *options, release[1], str(root), *sites.split()[:1]]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        yield root, process
        process.terminate()


@pytest.fixture(scope="session")
def debian(installation: tuple[Path, subprocess.Popen[str]] | None) -> Path:
    """Return a folder with a Debian that has Python and systemd."""
    if installation is None:
        pytest.skip("needs root, and mmdebstrap as Debian has it")
    root, process = installation
    try:
        _, said = process.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip("the mirror of Debian is too slow")
    if process.returncode:
        pytest.skip(f"mmdebstrap failed: {said[-300:]}")
    return root


@pytest.fixture(scope="session")
def pip_mounts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Return the mounts that pip needs in a container to work as on this machine.

    An image is built with them too.
    """
    # A local index refers to files beside its folder.
    listed = ran(sys.executable, "-m", "pip", "config", "list")
    found = re.findall(r"^(?:global|:env:)\.([a-z-]+)='(.*)'$", listed, re.M)
    config = tmp_path_factory.mktemp("pip") / "pip.conf"
    config.write_text(
        "[global]\n"
        + "".join(f"{name} = {value}\n" for name, value in dict(found).items())
    )
    text = " ".join(value for _, value in found)
    named = {Path(path) for path in re.findall(r"(?<!\S)/\S+", text)}
    named |= {Path(path).parent for path in re.findall(r"file://(/\S+)", text)}
    return [
        (config, "/etc/pip.conf"),
        *((path, str(path)) for path in sorted(named) if path.exists()),
    ]
