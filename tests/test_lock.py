"""requirements.lock: what deployment installs."""

import re

from packaging.requirements import Requirement

from tests.fixtures import ROOT


def requirements(name: str) -> list[Requirement]:
    """Read a requirements file, without comments and hashes."""
    text = re.sub(r"\s*\\\n\s*--hash=\S+", "", (ROOT / name).read_text())
    lines = [line.split(" #")[0].strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_lock_satisfies_requirements() -> None:
    """The lock satisfies each requirement, and has nothing that only tests need.

    The requirements are those of the service and of Redis.
    """
    pinned = {
        one.name: next(iter(one.specifier)).version
        for one in requirements("requirements.lock")
    }
    wanted = requirements("requirements.txt") + requirements("requirements-redis.txt")
    unmet = [
        one
        for one in wanted
        if one.name != "pytest"
        and not one.specifier.contains(pinned.get(one.name, "0"))
    ]
    assert unmet == []
    assert not pinned.keys() & {"pytest", "pluggy", "iniconfig"}


def test_lock_pins_everything() -> None:
    """The lock pins exact versions with hashes, and names no package index."""
    text = (ROOT / "requirements.lock").read_text()
    for entry in re.split(r"\n(?=[a-z])", text)[1:]:
        assert re.match(
            r"[a-z0-9-]+==[0-9.]+ (; .+ )?\\\n"
            r"(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+$",
            entry,
        ), entry
    assert not re.search("://|index|find-links", text)
