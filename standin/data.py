"""The events and subscriptions that the stand-in knows.

They are the same in every run, ids included. `DEMO_EVENTS` has the ids for each special
case. A catalogue has no lock: code that shares one between threads must guard it.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import NAMESPACE_URL, uuid5

JsonObject = dict[str, Any]
Names = Iterable[str | None]

_FIRST_CREATED = datetime(2016, 4, 8, 11, 42, 40, 958117, tzinfo=UTC)
_FIRST_SYNC_TOKEN = 8_965_001
_ZONE = "Europe/Amsterdam"
_FIRST_NAMES = [
    "Arthur", "Ella", "Noor", "Jasper", "Sofie", "Daan", "Emma", "Lucas", "Julia",
    "Sem", "Tess", "Finn", "Eva", "Milan", "Sara", "Bram", "Anna", "Thijs", "Lotte",
    "Ruben", "Fleur", "Stijn", "Maud", "Gijs",
]  # fmt: skip
_SECOND_NAMES = [
    "Jan",
    "Lou",
    "Marie",
    "Pieter",
    "Rose",
    "Willem",
    "Claire",
    "Paul",
    "Fay",
    "Hugo",
]
# Many different names, so that a lost, repeated or misplaced page is noticed.
_CROWD = [
    "API",
    *_FIRST_NAMES,
    *(f"{one}-{two}" for two in _SECOND_NAMES for one in _FIRST_NAMES),
]

# Short name, title, first names. The catalogue adds what doesn't fit into these.
_TELLING: list[tuple[str, str | None, Names]] = [
    ("plain", "Dinner with the neighbours", ["API", "Arthur", "Ella"]),
    ("big", "Company anniversary", _CROWD[:250]),
    ("hundred", "Spring conference", _CROWD[:100]),
    ("hundred_and_one", "Autumn conference", _CROWD[:101]),
    ("empty", "Nobody comes to this one", []),
    ("untitled", None, ["API", "Noor"]),
    ("deleted", None, []),
    ("scripts", "Fête d'été 🎉 夏祭り «Праздник»", [
        "API", "محمد", "李小龙", "Ελένη", "Дмитрий", "👩🏽‍🚀 Zoë", "Zoe\u0308",
        'Pat "The Hat"', "Back\\slash", "</script><script>alert(42)</script>",
        "Line\u2028separator",
    ]),
    ("blanks", "Guests to be announced", [
        "API", "", "Ella", None, "   ", "\t\n", "\u00a0", "Arthur",
    ]),
    ("mixed", "Shared car to the office", ["API", "Tess", "Bram"]),
    ("nodata", None, ["API", "Eva"]),
    ("duplicates", "Three times Anna", ["Anna", "Arthur", "Anna", "anna", "Anna"]),
]  # fmt: skip
_ORDINARY_TITLES = [
    "Weekly stand-up", "Airport pickup", "Swimming lesson", "Board meeting",
    "Choir practice", "Dentist", "Moving house", "Yoga in the park",
    "Delivery round north", "Delivery round south", "Parents' evening",
    "Football training", "Quarterly review", "Book club", "Piano tuning", "Night shift",
    "Canal tour", "Job interview", "Bicycle repair", "Summer barbecue",
]  # fmt: skip


def _key(name: str) -> str:
    """Return 32 hexadecimal digits that look random and are the same in every run."""
    return uuid5(NAMESPACE_URL, name).hex


def _created(number: int) -> datetime:
    return _FIRST_CREATED + timedelta(days=number)


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def make_id(name: str, number: int) -> str:
    """Return an id that looks like Calendar42's and is the same in every run."""
    return f"{_key(name)}_{int(_created(number).timestamp() * 10_000)}"


DEMO_EVENTS = {
    name: make_id(name, number) for number, (name, _, _) in enumerate(_TELLING)
}
DEMO_EVENTS["unknown"] = make_id("unknown", len(_TELLING))
_API_ACCOUNT = {"id": _key("0 API"), "first_name": "API", "last_name": ""}


def _event(event_id: str, title: str | None, number: int) -> JsonObject:
    start = _created(number + 7).replace(minute=0, second=0, microsecond=0)
    return {
        "id": event_id,
        "event_type": "normal",
        "calendar_ids": [_key("calendar")],
        "start": _stamp(start),
        "end": _stamp(start + timedelta(hours=2)),
        "start_timezone": _ZONE,
        "end_timezone": _ZONE,
        "all_day": False,
        "title": title,
        "description": "",
        "start_location": {
            "id": _key("location"),
            "text": "Dam 1, Amsterdam",
            "address": "Dam 1",
            "postcode": "1012 JS",
            "city": "Amsterdam",
            "geo": {"latitude": 52.3731, "longitude": 4.8926},
            "labels": [],
        },
        "end_location": None,
        "creator": _API_ACCOUNT,
        "created": _stamp(_created(number)),
        "modified": _stamp(_created(number)),
        "invitation": {},
        "color": "#4a90d9",
        "icon": "",
        "logo": "",
        "source_url": "",
        "time_buffer": None,
        "recurrence": False,
        "recurrence_parent": None,
        "sync_token": _FIRST_SYNC_TOKEN + 1000 * number,
        "length": 7200,
        "is_suggestion": False,
        "due": None,
        "state": None,
        "is_invitation": False,
        "rsvp_status": None,
        "permission": "subscribed_write",
        "previous_permission": None,
    }


@lru_cache(4096)
def _row(
    event_id: str, first_name: str | None, number: int, position: int
) -> JsonObject:
    user_id = _key(f"{position} {first_name}")
    created = _created(number) + timedelta(seconds=position)
    return {
        "id": f"{event_id}__{user_id}",
        "event_id": event_id,
        "subscriber": {
            "id": user_id,
            "first_name": first_name,
            "last_name": "Jansen" if position % 4 else "",
            "photo": "",
            "tags": [] if position % 3 else None,
            "email": f"guest{position}@example.com" if position % 2 else None,
            "phone_number": "",
        },
        "is_invitation": position > 0,
        "permission": "subscribed_write",
        "actor": _API_ACCOUNT,
        "message": "",
        "created": _stamp(created),
        "calendar_ids": [],
        "rsvp_status": (None, "attending", "not_replied", "not_attending")[
            position % 4
        ],
        "sync_token": _FIRST_SYNC_TOKEN + 1000 * number + 1 + position,
    }


class Catalogue:
    """Events and their rows by event id, in order of creation.

    An id is known when it is in `rows`. Catalogues share rows, so nobody may change
    one.
    """

    def __init__(self) -> None:
        self.events: dict[str, JsonObject] = {}
        self.rows: dict[str, list[JsonObject]] = {}
        for name, title, names in _TELLING:
            self.add(DEMO_EVENTS[name], title, names)
        for number, title in enumerate(_ORDINARY_TITLES, len(DEMO_EVENTS)):
            self.add(make_id(title, number), title, _CROWD[: 2 + number % 9])

        unset = dict.fromkeys(
            (
                "start",
                "end",
                "start_timezone",
                "end_timezone",
                "all_day",
                "start_location",
            )
        )
        self.events[DEMO_EVENTS["untitled"]] |= {"event_type": "todo", **unset}
        deleted = {"id": DEMO_EVENTS["deleted"], "permission": "removed"}
        self.events[DEMO_EVENTS["deleted"]] = deleted
        self.rows[DEMO_EVENTS["deleted"]] = [
            {**deleted, "id": f"{deleted['id']}__{_key('Sem')}"}
        ]
        del self.events[DEMO_EVENTS["nodata"]]  # a known event whose `data` is empty

        # It isn't known whether a removed row keeps its event_id, so here one does and
        # one doesn't.
        blanks = DEMO_EVENTS["blanks"]
        removed = {"id": f"{blanks}__{_key('Finn')}", "permission": "removed"}
        keeping = {
            "id": f"{blanks}__{_key('Milan')}",
            "event_id": blanks,
            "permission": "removed",
        }
        self.rows[blanks][3:3] = [keeping, removed]
        foreign, own = self.rows[DEMO_EVENTS["plain"]], self.rows[DEMO_EVENTS["mixed"]]
        self.rows[DEMO_EVENTS["mixed"]] = [
            foreign[1],
            own[0],
            foreign[0],
            own[1],
            foreign[2],
            own[2],
        ]

    def add(
        self, event_id: str, title: str | None, names: Names, **fields: Any
    ) -> None:
        """Add an event, or replace it; `fields` overwrite those of the event object."""
        number = len(self.rows)
        self.events[event_id] = {**_event(event_id, title, number), **fields}
        self.rows[event_id] = [
            _row(event_id, name, number, at) for at, name in enumerate(names)
        ]
