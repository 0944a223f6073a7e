"""Reads docs/operating.md, so that tests run the commands that it prints."""

import re

from tests.fixtures import ROOT

MANUAL = (ROOT / "docs/operating.md").read_text()


def commands(heading: str) -> str:
    """Return the shell commands below a heading of the manual."""
    section = MANUAL.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    block = re.search(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    assert block is not None
    return block[1]
