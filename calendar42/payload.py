"""Extracts titles and names from Calendar42's JSON, with pure functions.

Unexpected JSON raises `C42Error`.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from jsonpath_ng.jsonpath import JSONPath
from jsonpath_ng.parser import parse

from calendar42 import EVENTS_ENDPOINT, SUBSCRIPTIONS_ENDPOINT
from calendar42.errors import C42Error, TooLarge

MAX_ROWS = 100_000  # of one answer; a larger count is taken for a mistake
_ROWS, _TITLE, _COUNT, _FIRST_NAME = map(
    parse, ("data", "title", "meta_data.count", "subscriber.first_name")
)


class Page(NamedTuple):
    """One page of subscriptions."""

    total: int  # that match, on all pages
    rows: int  # on this page
    ids: frozenset[str]  # of its rows
    names: list[tuple[str, str]]  # event id and first name, in order


def events(body: Any, asked: Collection[str]) -> dict[str, Any]:
    """Return the events of an answer by id; raise `TooLarge` if a list of them, `asked`
    for, is not all there.
    """
    rows, total = _read(EVENTS_ENDPOINT, body)
    if len(asked) > 1 and isinstance(total, int) and total > len(rows):
        raise TooLarge(EVENTS_ENDPOINT, "Calendar42 sent only a part of the events")
    if not all(isinstance(event.get("id"), str) for event in rows):
        raise C42Error(EVENTS_ENDPOINT, "Calendar42 sent an event without an id")
    return {event["id"]: event for event in rows}


def title(events: dict[str, Any], event_id: str, asked: Collection[str]) -> str | None:
    """Return the title of one of the `events` that came for the ids `asked` for; None
    if it has none.
    """
    event = events.get(
        event_id, {"permission": "removed"}
    )  # a deleted event may come without content, or not at all
    if not events.keys() <= set(asked) and event_id not in events:
        raise C42Error(
            EVENTS_ENDPOINT, "Calendar42 sent other events", private=len(asked) > 1
        )
    if event.get("permission") == "removed":
        is_unknown = (
            event_id not in events and len(asked) > 1
        )  # lists omit unknown events
        raise C42Error(
            EVENTS_ENDPOINT,
            f"Event {event_id} not found" if is_unknown else "the event is deleted",
            404,
        )
    found = _value(_TITLE, event)
    if not isinstance(found, str | None):
        raise C42Error(EVENTS_ENDPOINT, "Calendar42 sent a title that is not text")
    return found


def page(body: Any, event_ids: Collection[str]) -> Page:
    """Return the names on a page of subscriptions to `event_ids`; those removed, blank
    or null are left out.
    """
    rows, total = _read(SUBSCRIPTIONS_ENDPOINT, body)
    if type(total) is not int or total < 0:
        raise C42Error(
            SUBSCRIPTIONS_ENDPOINT,
            "Calendar42 did not say how many subscriptions there are",
        )
    if total > MAX_ROWS:
        raise TooLarge(
            SUBSCRIPTIONS_ENDPOINT, f"Calendar42 has more than {MAX_ROWS} subscriptions"
        )
    if rows and not any(
        row.get("event_id") in event_ids or row.get("permission") == "removed"
        for row in rows
    ):
        raise C42Error(SUBSCRIPTIONS_ENDPOINT, "Calendar42 sent other subscriptions")
    names = []
    for row in rows:
        # Calendar42 ignores a filter that it can't read, so a row counts only for the
        # event that it names.
        if row.get("event_id") in event_ids and row.get("permission") != "removed":
            name = _value(_FIRST_NAME, row)
            if not isinstance(row.get("subscriber"), dict | None) or not isinstance(
                name, str | None
            ):
                raise C42Error(
                    SUBSCRIPTIONS_ENDPOINT,
                    "Calendar42 sent a first name that is not text",
                )
            if name and name.strip():
                names.append((row["event_id"], name))
    ids = frozenset(row["id"] for row in rows if isinstance(row.get("id"), str))
    return Page(total, len(rows), ids, names)


def join(pages: list[Page]) -> list[tuple[str, str]] | None:
    """Return event id and name of all subscriptions; None if the pages disagree, share
    a row, or lack some rows.
    """
    distinct = frozenset[str]().union(*(page.ids for page in pages))
    disagree = len({page.total for page in pages}) > 1
    repeated = len(distinct) < sum(len(page.ids) for page in pages)
    if disagree or repeated or sum(page.rows for page in pages) < pages[0].total:
        return None
    return [name for page in pages for name in page.names]


def _read(endpoint: str, body: Any) -> tuple[list[dict[str, Any]], Any]:
    """Return the rows of an answer, and how many there are in all."""
    rows = _value(_ROWS, body)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise C42Error(endpoint, f"Calendar42 sent no list of {endpoint}")
    return rows, _value(_COUNT, body)


def _value(path: JSONPath, data: Any) -> Any:
    """Return what is at `path`, None if nothing is."""
    return next((match.value for match in path.find(data)), None)
