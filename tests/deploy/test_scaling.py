"""docs/scaling.md."""

import sys

from tests.deploy.tools import ran
from tests.fixtures import ROOT


def test_table_is_what_the_simulation_prints() -> None:
    """The table of calls is what `python bench/scaling.py` prints."""
    assert (
        ran(sys.executable, "bench/scaling.py")
        in (ROOT / "docs/scaling.md").read_text()
    )
