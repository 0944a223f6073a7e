"""Fixtures of the tests of deployment: a small Debian, from which images and machines are made."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.tools import missing, ran

PACKAGES = "ca-certificates,python3,python3-venv,systemd"


@pytest.fixture(scope="session")
def debian() -> Iterator[Path]:
    """Install Debian with Python and systemd in a folder, from this machine's mirror, and delete it afterwards."""
    if lacking := missing("debootstrap", "apt-get"):
        pytest.skip(f"needs {lacking}, as Debian has it")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    assert release is not None
    sites = ran("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", f"Codename: {release[1]}")
    with tempfile.TemporaryDirectory(prefix="c42c-debian-") as folder:
        root = Path(folder) / "root"
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release[1], str(root)]
        ended = subprocess.run([*command, *sites.split()[:1]], check=False, capture_output=True, text=True, timeout=300)
        if ended.returncode:
            pytest.skip(f"debootstrap failed: {(ended.stdout + ended.stderr)[-300:]}")
        yield root


@pytest.fixture(scope="session")
def pip_mounts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Say what has to be mounted where so that pip works in an image or a machine as it does on this machine."""
    # A local index refers to files beside its folder.
    listed = ran(sys.executable, "-m", "pip", "config", "list")
    found = re.findall(r"^(?:global|:env:)\.([a-z-]+)='(.*)'$", listed, re.M)
    config = tmp_path_factory.mktemp("pip") / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in dict(found).items()))
    text = " ".join(value for _, value in found)
    named = {Path(path) for path in re.findall(r"(?<!\S)/\S+", text)}
    named |= {Path(path).parent for path in re.findall(r"file://(/\S+)", text)}
    return [(config, "/etc/pip.conf"), *((path, str(path)) for path in sorted(named) if path.exists())]
