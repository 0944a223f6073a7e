"""The demo's Calendar42: the stand-in, with events that show trouble too."""

from typing import Any

from standin.data import DEMO_EVENTS, make_id
from standin.server import Standin

SLOW = 3.0  # seconds
PAUSE = 20  # seconds

TROUBLE: dict[str, dict[str, Any]] = {
    "slow": {"delay": SLOW},
    "fault": {"status": 500},
    "pause": {"status": 429, "headers": {"Retry-After": str(PAUSE)}},
}
_IDS = {name: make_id(name, number) for number, name in enumerate(TROUBLE, 100)}

SHOWN = {  # to somebody who tries the service for the first time
    DEMO_EVENTS["plain"]: "a plain event",
    DEMO_EVENTS["big"]: "250 people, on three pages",
    DEMO_EVENTS["scripts"]: "names in several scripts",
    DEMO_EVENTS["deleted"]: "a deleted event",
    DEMO_EVENTS["unknown"]: "an event that Calendar42 doesn't know",
    _IDS["slow"]: f"a slow event: Calendar42 takes {SLOW:g} s",
    _IDS["fault"]: "a fault in Calendar42",
    _IDS["pause"]: (
        f"Calendar42 asks for a pause: for {PAUSE} s, everything that isn't cached "
        "gets a 429"
    ),
}


class Demo(Standin):
    """The stand-in, with an event for each kind of trouble."""

    def __init__(self) -> None:
        super().__init__()
        for name, fault in TROUBLE.items():
            self.add_event(
                _IDS[name],
                title=f"An event with a {name}",
                names=["API", "Arthur", "Ella"],
            )
            self.rule("events", _IDS[name], **fault)


def greeting(url: str, path: str) -> str:
    """Return what the demo prints: requests to try.

    The service is at `url`, and has the events below `path`.
    """
    lines = [
        f"    curl -i {url}{path}/{event_id}  # {what}"
        for event_id, what in SHOWN.items()
    ]
    first = f"c42c answers on {url}, from made-up events. Try, in another terminal:"
    return "\n".join(
        [
            first,
            "",
            *lines,
            "",
            f"{url}/ shows the status page. Press Ctrl-C to stop.",
            "",
        ]
    )
