"""What is read out of Calendar42's JSON, with jsonpath-ng expressions that are compiled once, at import.

Sources are the sections of Calendar42's API as the README's "The upstream" sums them up. All functions are pure;
they raise `Deleted`, or `Unusable` where the JSON is not what the upstream documents.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from jsonpath_ng.jsonpath import JSONPath
from jsonpath_ng.parser import parse

from calendar42.errors import Deleted, Unusable

MAX_ROWS = 100_000  # of one answer; the upstream claims more only when something is wrong

_ROWS = parse("data[*]")
_TITLE = parse("title")
_COUNT = parse("meta_data.count")
_FIRST_NAME = parse("subscriber.first_name")


class Page(NamedTuple):
    """One page of subscriptions."""

    total: int  # that match, on all pages
    rows: int  # on this page
    names: list[tuple[str, str]]  # event id and first name, in order


def _rows(body: Any, what: str) -> list[dict[str, Any]]:
    rows = [match.value for match in _ROWS.find(body)]
    listed = isinstance(body, dict) and isinstance(body.get("data"), list)
    if not listed or not all(isinstance(row, dict) for row in rows):
        raise Unusable(f"sent something else than {what}", 200)
    return rows


def events(body: Any) -> dict[str, Any]:
    """Return the events of an answer by their ids."""
    return {str(event.get("id")): event for event in _rows(body, "events")}


def title(event: Any) -> str | None:
    """Return an event's title, None where it has none; a removed event comes without content."""
    if event is None or event.get("permission") == "removed":
        raise Deleted
    found = _value(_TITLE, event)
    if not isinstance(found, str | None):
        raise Unusable("sent a title that is no text", 200)
    return found


def page(body: Any, event_ids: Collection[str]) -> Page:
    """Return what one page of subscriptions says of `event_ids`.

    A filter that the upstream can't read is ignored by it, so a row counts only for the event that it names. Removed
    subscriptions and names that are blank or null are left out.
    """
    rows = _rows(body, "subscriptions")
    total = _value(_COUNT, body)
    if type(total) is not int or not 0 <= total <= MAX_ROWS:
        raise Unusable("did not say how many subscriptions there are", 200)
    names = []
    for row in rows:
        if row.get("event_id") not in event_ids or row.get("permission") == "removed":
            continue
        name = _value(_FIRST_NAME, row)
        if not isinstance(row.get("subscriber"), dict | None) or not isinstance(name, str | None):
            raise Unusable("sent a first name that is no text", 200)
        if name and name.strip():
            names.append((row["event_id"], name))
    return Page(total, len(rows), names)


def _value(path: JSONPath, data: Any) -> Any:
    """Return what stands at `path`, None where nothing does."""
    return next((match.value for match in path.find(data)), None)
