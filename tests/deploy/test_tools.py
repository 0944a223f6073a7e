"""The tests of deployment find the programs that they need."""

import os
from pathlib import Path

import pytest

from tests.deploy.tools import find


@pytest.mark.skipif(
    not Path("/usr/sbin/nginx").exists(), reason="needs nginx, as Debian has it"
)
def test_programs_of_administrators(monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx is found where Debian has it, although only root's PATH has that folder."""
    monkeypatch.setenv("PATH", "/usr/bin")
    found = find("nginx")
    assert found is not None
    assert os.access(found, os.X_OK)


def test_programs_that_are_missing() -> None:
    """A program that isn't installed is nowhere."""
    assert find("no-such-program") is None
