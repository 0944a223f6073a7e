"""deploy/c42c.service."""

import re
import sys
from pathlib import Path

from operations import settings
from tests.deploy.tools import needs, ran
from tests.fixtures import ROOT, TOKEN


@needs("systemd-analyze")
def test_unit_is_sound(tmp_path: Path) -> None:
    """systemd finds nothing wrong with the unit, and rates its exposure below 1.5 of 10."""
    unit = tmp_path / "c42c.service"
    text = (ROOT / "deploy/c42c.service").read_text()
    unit.write_text(text.replace("/opt/c42c/c42c/bin/python", sys.executable))  # it wants to see the program
    assert "c42c" not in ran("systemd-analyze", "verify", "--man=no", unit)
    rated = ran("systemd-analyze", "security", "--offline=true", unit)
    score = re.search(r"exposure level for c42c.service: ([\d.]+)", rated)
    assert score is not None
    assert float(score[1]) < 1.5
    stop = re.search(r"TimeoutStopSec=(\d+)", text)
    assert stop is not None
    assert int(stop[1]) > settings.read({"C42_TOKEN": TOKEN}).timeout + 1
