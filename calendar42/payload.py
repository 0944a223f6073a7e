"""Extracts titles and names from Calendar42's JSON, with pure functions.

Unexpected JSON raises `C42Error`.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from jsonpath_ng.jsonpath import JSONPath
from jsonpath_ng.parser import parse

from calendar42 import EVENTS_ENDPOINT, SUBSCRIPTIONS_ENDPOINT, Endpoint
from calendar42.errors import C42Error, TooLarge

MAX_ROWS = 100_000  # of one answer; a larger count is taken for a mistake
_ROWS = parse("data")
_TITLE = parse("title")
_COUNT = parse("meta_data.count")
_FIRST_NAME = parse("subscriber.first_name")

Json = dict[str, Any]


class Event(NamedTuple):
    """An event, merged from both of its calls: what a client gets.

    The client of Calendar42 redacts the token in each text here.
    """

    id: str
    title: str | None
    names: list[str]


class Page(NamedTuple):
    """One page of subscriptions."""

    total: int  # that match, on all pages
    rows: int  # on this page
    ids: frozenset[str]  # of its rows
    names: list[tuple[str, str]]  # event id and first name, in order


def events(body: Any, asked: Collection[str]) -> dict[str, Json]:
    """Return the events of a reply by id.

    Raises `TooLarge` if a list was `asked` for, and not all of it is there.
    """
    rows = _rows(EVENTS_ENDPOINT, body)
    total = _value(_COUNT, body)
    if len(asked) > 1 and isinstance(total, int) and total > len(rows):
        message = "Calendar42 sent only a part of the events"
        raise TooLarge(EVENTS_ENDPOINT, message)
    by_id = {}
    for event in rows:
        event_id = event.get("id")
        if not isinstance(event_id, str):
            raise C42Error(EVENTS_ENDPOINT, "Calendar42 sent an event without an id")
        by_id[event_id] = event
    return by_id


def title(events: dict[str, Json], event_id: str, asked: Collection[str]) -> str | None:
    """Return the title of an event, None if it has none.

    `events` are those that came for the ids `asked` for. Raises `C42Error` if it isn't
    among them, or is deleted.
    """
    is_list = len(asked) > 1
    event = events.get(event_id)
    if event is None and not events.keys() <= set(asked):
        # The filter was ignored, so the event may be on another page.
        message = "Calendar42 sent other events"
        raise C42Error(EVENTS_ENDPOINT, message, private=is_list)
    if event is None and is_list:  # lists leave out unknown events
        message = f"Event {event_id} not found"
        raise C42Error(EVENTS_ENDPOINT, message, status=404)
    if event is None or _is_removed(event):
        raise C42Error(EVENTS_ENDPOINT, "the event is deleted", status=404)
    found = _value(_TITLE, event)
    if not isinstance(found, str | None):
        raise C42Error(EVENTS_ENDPOINT, "Calendar42 sent a title that is not text")
    return found


def page(body: Any, event_ids: Collection[str]) -> Page:
    """Return the names on a page of subscriptions to `event_ids`.

    Those removed, blank or null are left out.
    """
    rows = _rows(SUBSCRIPTIONS_ENDPOINT, body)
    total = _value(_COUNT, body)
    if type(total) is not int or total < 0:
        message = "Calendar42 did not say how many subscriptions there are"
        raise C42Error(SUBSCRIPTIONS_ENDPOINT, message)
    if total > MAX_ROWS:
        message = f"Calendar42 has more than {MAX_ROWS} subscriptions"
        raise TooLarge(SUBSCRIPTIONS_ENDPOINT, message)
    row_ids = set()
    names = []
    has_own = False
    for row in rows:
        row_id = row.get("id")
        if isinstance(row_id, str):
            row_ids.add(row_id)
        if _is_removed(row):
            has_own = True  # it may not say which event it belonged to
        elif row.get("event_id") in event_ids:
            # Calendar42 ignores a filter that it can't read, so a row counts only for
            # the event that it names.
            has_own = True
            name = _first_name(row)
            if name and name.strip():
                names.append((row["event_id"], name))
    if rows and not has_own:
        raise C42Error(SUBSCRIPTIONS_ENDPOINT, "Calendar42 sent other subscriptions")
    return Page(total=total, rows=len(rows), ids=frozenset(row_ids), names=names)


def join(pages: list[Page]) -> list[tuple[str, str]] | None:
    """Return event id and name of all subscriptions.

    Returns None if the pages disagree, share a row, or lack some rows.
    """
    total = pages[0].total
    row_ids: set[str] = set()
    row_count = 0
    names = []
    for page in pages:
        if page.total != total or not row_ids.isdisjoint(page.ids):
            return None
        row_ids |= page.ids
        row_count += page.rows
        names += page.names
    if row_count < total:
        return None
    return names


def _rows(endpoint: Endpoint, body: Any) -> list[Json]:
    """Return the rows of a reply."""
    rows = _value(_ROWS, body)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise C42Error(endpoint, f"Calendar42 sent no list of {endpoint}")
    return rows


def _is_removed(thing: Json) -> bool:
    """Tell whether an event or a subscription was deleted."""
    return bool(thing.get("permission") == "removed")


def _first_name(row: Json) -> str | None:
    subscriber = row.get("subscriber")
    name = _value(_FIRST_NAME, row)
    if isinstance(subscriber, dict | None) and isinstance(name, str | None):
        return name
    raise C42Error(
        SUBSCRIPTIONS_ENDPOINT, "Calendar42 sent a first name that is not text"
    )


def _value(path: JSONPath, data: Any) -> Any:
    """Return what is at `path`, None if nothing is."""
    for match in path.find(data):
        return match.value
    return None
