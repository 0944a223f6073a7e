"""The service over HTTP: really started, with the stand-in of Calendar42 behind it."""

import sys

from conftest import Service, new_id, run_as_script
from standin import EVENTS, Standin


def test_merges_both_calls(service: Service, upstream: Standin) -> None:
    """An answer has the event's id, its title and the first names of everyone on it."""
    answer = service.event(EVENTS["plain"])
    assert answer.json() == {
        "id": EVENTS["plain"],
        "title": "Dinner with the neighbours",
        "names": ["API", "Arthur", "Ella"],
    }
    assert new_id() != new_id()
    assert upstream.calls() == 2


if __name__ == "__main__":
    sys.exit(run_as_script(__file__))
