"""Parsing of text that others wrote: Calendar42's JSON and Retry-After, clients' ids.

No sockets.
"""

import contextlib
import json
import re
import string
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calendar42 import ids, payload
from calendar42.calls import MAX_PAUSE, Pause
from calendar42.errors import C42Error, TooLarge
from calendar42.payload import Page

unhurried = settings(deadline=None, max_examples=50)  # machines may be busy

# JSON of any kind, and JSON that is nearly right: names of Calendar42's fields, with
# anything in them.

ODD = [
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    float("nan"),
    "",
    "E",
    "removed",
    [],
    {},
    ["x"],
    {"first_name": "A"},
]
ANY = st.recursive(
    st.sampled_from(ODD) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
SUBSCRIBER = st.fixed_dictionaries(
    {}, optional={"first_name": st.text(max_size=2) | ANY}
)
ROW = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["E__1", "E__2"]) | ANY,
        "event_id": st.sampled_from(["E", "F", "G"]) | ANY,
        "subscriber": SUBSCRIBER | ANY,
        "permission": st.sampled_from(["removed", "subscribed_write"]) | ANY,
    },
)
EVENT = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["E", "F"]) | ANY,
        "title": ANY,
        "permission": st.just("removed") | ANY,
    },
)


def body(rows: Any) -> Any:
    """Return bodies with such rows, and others of any kind.

    The former have meta data that is nearly right.
    """
    meta_data = st.fixed_dictionaries({}, optional={"count": st.integers(-1, 3) | ANY})
    data = st.lists(rows, max_size=4) | ANY
    return (
        st.fixed_dictionaries({}, optional={"meta_data": meta_data | ANY, "data": data})
        | ANY
    )


def listing(count: Any, rows: Any) -> Any:
    """Return a page of these rows."""
    return {"meta_data": {"count": count}, "data": rows}


@unhurried
@given(body(EVENT), st.sampled_from([["E"], ["E", "F"]]))
@example({"data": [{"title": "Secret"}]}, ["None"])  # it was the event whose id is None
@example({"data": [{"id": None}]}, ["None"])
@example({"data": [{"id": ["x"]}]}, ["E"])
@example({"data": {"0": {"id": "E"}}}, ["E"])
def test_events_of_any_json(said: Any, asked: list[str]) -> None:
    """Any JSON as events gives a title or none, a missing event, or an error."""
    for event_id in asked:
        with contextlib.suppress(C42Error):
            title = payload.title(payload.events(said, asked), event_id, asked)
            (event,) = [event for event in said["data"] if event["id"] == event_id][-1:]
            assert title == event.get("title")
            assert title is None or isinstance(title, str)
            assert event.get("permission") != "removed"


@unhurried
@given(body(ROW), st.sampled_from([["E"], ["E", "F"]]))
@example(listing(True, []), ["E"])
@example(listing(1, [{"event_id": ["E"], "subscriber": {"first_name": "A"}}]), ["E"])
def test_subscriptions_of_any_json(said: Any, asked: list[str]) -> None:
    """Any JSON as subscriptions gives the names of the asked events, or an error."""
    try:
        page = payload.page(said, asked)
    except C42Error:
        return
    rows = said["data"]
    assert (page.total, page.rows) == (said["meta_data"]["count"], len(rows))
    assert page.ids == {row["id"] for row in rows if isinstance(row.get("id"), str)}
    expected = [
        (row["event_id"], row["subscriber"]["first_name"])
        for row in rows
        if row.get("event_id") in asked and row.get("permission") != "removed"
        if ((row.get("subscriber") or {}).get("first_name") or "").strip()
    ]
    assert page.names == expected


def subscriptions(count: Any, *rows: Any) -> Any:
    """Return a page of subscriptions to the event E."""
    return listing(count, [{"event_id": "E", **row} for row in rows])


@contextlib.contextmanager
def unusable(message: str, endpoint: str = "event-subscriptions") -> Iterator[None]:
    """Expect the error that Calendar42's answer is unusable."""
    with pytest.raises(C42Error) as raised:
        yield
    error = raised.value
    assert str(error) == message
    assert (error.status, error.kind, error.endpoint) == (502, "fault", endpoint)


@pytest.mark.parametrize(
    "count", [None, -1, True, False, 1.0, "1", [], {}, float("nan")], ids=str
)
def test_wrong_counts(count: Any) -> None:
    """A count that is not a number from 0 is unusable."""
    with unusable("Calendar42 did not say how many subscriptions there are"):
        payload.page(subscriptions(count), ["E"])


def test_counts() -> None:
    """There may be 0 to 100,000 subscriptions; more are too many to read."""
    assert payload.page(subscriptions(0), ["E"]) == Page(0, 0, frozenset(), [])
    assert payload.page(subscriptions(100_000), ["E"]).total == 100_000
    with pytest.raises(TooLarge, match="has more than 100000 subscriptions"):
        payload.page(subscriptions(100_001), ["E"])


WRONG_NAMES: list[Any] = [1, True, [], {}, ["A"], float("nan")]
WRONG_SUBSCRIBERS: list[Any] = [1, "A", True, [], [{"first_name": "A"}]]
WRONG_SUBSCRIBERS += [{"first_name": name} for name in WRONG_NAMES]


@pytest.mark.parametrize("subscriber", WRONG_SUBSCRIBERS, ids=json.dumps)
def test_wrong_names(subscriber: Any) -> None:
    """A subscriber or a name that is of another type, and not null, is unusable.

    It does no harm in a row that counts for no event that was asked for.
    """
    wrong = {"subscriber": subscriber}
    with unusable("Calendar42 sent a first name that is not text"):
        payload.page(subscriptions(1, wrong), ["E"])
    for row in {"event_id": "F"}, {"event_id": None}, {"permission": "removed"}:
        rows = (wrong | row, {"subscriber": {"first_name": "A"}})
        assert payload.page(subscriptions(2, *rows), ["E"]).names == [("E", "A")]


def test_names() -> None:
    """Names keep their order, and the blanks around them.

    Blank, null, missing and removed ones are left out.
    """
    said = [" A ", "", None, " \t\n\u00a0", "B", "A"]
    rows: list[Any] = [
        {"subscriber": {"first_name": name}, "id": f"E__{at}"}
        for at, name in enumerate(said)
    ]
    rows += [
        {"subscriber": None},
        {"subscriber": {}},
        {},
        {"permission": "removed", "subscriber": {"first_name": "C"}},
    ]
    page = payload.page(subscriptions(10, *rows), ["E"])
    assert page.names == [("E", " A "), ("E", "B"), ("E", "A")]
    assert (page.total, page.rows) == (10, 10)
    assert page.ids == {f"E__{at}" for at in range(6)}


WRONG_LISTS: list[Any] = [None, {}, "x", 1, True, [1], [None], [[]]]


@pytest.mark.parametrize(
    "said",
    [None, [], 1, "data", True, {}, [{}], *({"data": wrong} for wrong in WRONG_LISTS)],
    ids=json.dumps,
)
def test_wrong_shapes(said: Any) -> None:
    """Anything but a list of objects is unusable.

    The message names what should be listed.
    """
    with unusable("Calendar42 sent no list of events", "events"):
        payload.events(said, ["E"])
    with unusable("Calendar42 sent no list of event-subscriptions"):
        payload.page(said, ["E"])


@pytest.mark.parametrize("title", WRONG_NAMES, ids=json.dumps)
def test_wrong_titles(title: Any) -> None:
    """A title that is neither text nor null is unusable."""
    with unusable("Calendar42 sent a title that is not text", "events"):
        payload.title({"E": {"id": "E", "title": title}}, "E", ["E"])


@pytest.mark.parametrize(
    ("fields", "title"), [({"title": "T"}, "T"), ({"title": None}, None), ({}, None)]
)
def test_titles(fields: dict[str, Any], title: str | None) -> None:
    """Events are found by their ids, with their titles, if they have any."""
    event = {"id": "E", **fields}
    assert payload.events({"data": [event]}, ["E"]) == {"E": event}
    assert payload.title({"E": event}, "E", ["E"]) == title


def missing(events: list[str], *asked: str) -> C42Error:
    """Return why the first event asked for has no title, given the events that came."""
    with pytest.raises(C42Error) as raised:
        payload.title({event: {"id": event} for event in events}, asked[0], asked)
    return raised.value


def test_a_part_of_the_events() -> None:
    """A list of events must be complete, and each event has an id.

    A single event may be counted as the API likes.
    """
    body = listing(2, [{"id": "E"}])
    assert payload.events(body, ["E"]) == {"E": {"id": "E"}}
    with pytest.raises(TooLarge, match=r"^Calendar42 sent only a part of the events$"):
        payload.events(body, ["E", "F"])
    with unusable("Calendar42 sent an event without an id", "events"):
        payload.events({"data": [{"id": "E"}, {}]}, ["E"])


def test_foreign_subscriptions() -> None:
    """Rows for other events are left out.

    A page whose rows are all about other events is an error.
    """
    rows = [
        {"event_id": one, "subscriber": {"first_name": f"of {one}"}} for one in "EF"
    ]
    assert payload.page(listing(2, rows), ["E"]).names == [("E", "of E")]
    for others in rows, [{"id": "E"}]:
        with unusable("Calendar42 sent other subscriptions"):
            payload.page(listing(len(others), others), ["G"])
    removed = {"permission": "removed"}  # it may not even name its event
    assert payload.page(listing(1, [removed]), ["E"]).names == []


def test_missing_events() -> None:
    """A missing event is deleted if asked for alone, and unknown if in a list.

    If foreign events came, it's a 502.
    """
    assert str(missing([], "E")) == "the event is deleted"
    for events in [], ["F"]:
        assert str(missing(events, "E", "F")) == "Event E not found"
    alone = missing(["G"], "E")
    listed = missing(["F", "G"], "E", "F")
    for error in alone, listed:
        assert (error.status, str(error)) == (502, "Calendar42 sent other events")
    assert [error.private for error in (alone, listed)] == [False, True]
    removed = {"id": "E", "permission": "removed", "title": "Old"}
    with pytest.raises(C42Error, match=r"^the event is deleted$") as raised:
        payload.title({"E": removed}, "E", ["E", "F"])
    error = raised.value
    assert (error.status, error.upstream_status, error.kind) == (404, 200, "negative")


def page(total: int, *row_ids: str, rows: int | None = None) -> Page:
    """Return a page with a name for each row."""
    names = [("E", f"Name {row_id}") for row_id in row_ids]
    count = len(row_ids) if rows is None else rows
    return Page(total, count, frozenset(row_ids), names)


@pytest.mark.parametrize(
    "pages",
    [
        [page(3, "a", "b", "c")],
        [page(3, "a", "b"), page(3, "c")],
        [page(2, "a", "b", "c")],
        [page(4, "a", "b", rows=3), page(4, "c")],
    ],
    ids=["one", "two", "more than it counts", "a row has no id"],
)
def test_pages_that_belong_together(pages: list[Page]) -> None:
    """The names of all pages are those of each, in order."""
    assert payload.join(pages) == [("E", f"Name {row_id}") for row_id in "abc"]


def test_the_same_id_twice_on_a_page() -> None:
    """A page may have a row twice: it can't have moved there from another page."""
    assert payload.join([Page(2, 2, frozenset("a"), [])]) == []


@pytest.mark.parametrize(
    "pages",
    [
        [page(3, "a", "b"), page(4, "c")],
        [page(3, "a", "b"), page(2, "c")],
        [page(4, "a", "b"), page(4, "b", "c")],
        [page(4, "a", "b"), page(4, "c")],
        [page(1)],
    ],
    ids=["more", "less", "a row in common", "a row is missing", "no rows"],
)
def test_pages_that_do_not_belong_together(pages: list[Page]) -> None:
    """Pages that can't be of one list don't belong together.

    They have different totals, a row in common, or fewer rows than there are.
    """
    assert payload.join(pages) is None


# Ids

ALPHABET = string.ascii_letters + string.digits + "-_"
VALID = st.text(ALPHABET, min_size=1, max_size=128)


@unhurried
@given(st.text() | st.text(ALPHABET + ".,/%\n\u0660\uff21", max_size=130))
@example("a\n")
@example("a" * 129)
@example("\u0663")
def test_check_any_text(text: str) -> None:
    """An id is 1 to 128 ASCII letters, digits, hyphens and underscores.

    Nothing else is one.
    """
    if 1 <= len(text) <= 128 and set(text) <= set(ALPHABET):
        assert ids.validate_id(text) == text
    else:
        with pytest.raises(ids.BadIds, match=r"^an event id is 1 to 128 "):
            ids.validate_id(text)


@unhurried
@given(st.lists(VALID, min_size=1, max_size=100))
def test_read_any_list(event_ids: list[str]) -> None:
    """A list of ids is read as it was written.

    It may have brackets or none, and be in one parameter or in several.
    """
    text = ",".join(event_ids)
    for values in [f"[{text}]"], [text], event_ids:
        assert ids.parse_list(values) == event_ids


@unhurried
@given(st.lists(st.text() | st.from_regex(r"\[[a,\]\[ -]*\]?"), max_size=3))
@example(["[a]\n"])
@example([f"[{','.join('a' * 101)}]"])
def test_read_any_text_as_a_list(values: list[str]) -> None:
    """An invalid list of ids is refused, and the message says why in one line."""
    refusal = ""
    try:
        event_ids = ids.parse_list(values)
    except ids.BadIds as error:
        refusal = str(error)
    else:
        assert re.sub(r"[\[\]]", "", ",".join(values)) == ",".join(event_ids)
        assert 1 <= len(event_ids) <= 100
        assert [ids.validate_id(event_id) for event_id in event_ids] == event_ids
    assert len(refusal) < 150
    assert "\n" not in refusal


FORM = "expected ids separated by commas, such as ?event_ids=a,b,c"
RULE = "an event id is 1 to 128 letters, digits, hyphens and underscores"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([], FORM),
        (["[a"], FORM),
        (["[a,?]"], f"entry 2 of event_ids is wrong: {RULE}"),
        (["a"] * 101, "event_ids has 101 entries; at most 100 are allowed"),
    ],
)
def test_invalid_lists(values: list[str], why: str) -> None:
    """The message says what is wrong with a list, and where.

    `test_lists.py` has many more.
    """
    with pytest.raises(ids.BadIds) as raised:
        ids.parse_list(values)
    assert str(raised.value) == why


def test_mixed_forms() -> None:
    """Some values may have brackets, and others not."""
    assert ids.parse_list(["[a,b]", "c"]) == ["a", "b", "c"]


# Retry-After


def pause_for(retry_after: str) -> float:
    """Return the seconds of the pause for which a Retry-After asks."""
    pause = Pause(6)
    pause.begin(retry_after)
    return pause.left


NONSENSE = ["", "soon", "-5", "+5", "1.5", "1e3", "\u0663", "\u00b2", "5 s"]
NONSENSE += [
    "Mon, 32 Jan 2020 99:99:99 GMT",
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 +9999999999999999999999",
]


@pytest.mark.parametrize(
    ("retry_after", "left"),
    [
        ("30", 30),
        ("0", 0),
        ("007", 7),
        ("3600", 3600),
        ("3601", MAX_PAUSE),
        ("86400", MAX_PAUSE),
        ("9" * 400, MAX_PAUSE),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_PAUSE),
        *((nonsense, 6) for nonsense in NONSENSE),
    ],
)
def test_retry_after(retry_after: str, left: float) -> None:
    """A Retry-After is a number of seconds, an hour at most.

    An invalid one counts as the default.
    """
    assert pause_for(retry_after) == pytest.approx(left, abs=0.5)


def date(form: str, seconds: int = 900, zone: timezone = UTC) -> str:
    """Return the date so many seconds from now."""
    return (datetime.now(zone) + timedelta(seconds=seconds)).strftime(form)


def lasts(seconds: float) -> Any:
    """Equal what a pause for a date may have left: dates have whole seconds."""
    return pytest.approx(seconds, abs=1.5)


ASCTIME = "%a %b %e %H:%M:%S %Y"


@pytest.mark.parametrize(
    "form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", ASCTIME]
)
@pytest.mark.parametrize(
    ("seconds", "left"), [(900, 900), (5000, MAX_PAUSE), (-5000, 0)]
)
def test_retry_after_a_date(form: str, seconds: int, left: float) -> None:
    """A Retry-After may be a date, in each of the three forms of RFC 9110, 5.6.7."""
    assert pause_for(date(form, seconds)) == lasts(left)


def test_a_date_in_another_time_zone() -> None:
    """A date that says its time zone is read in it, though RFC 9110 allows GMT only."""
    zone = timezone(timedelta(hours=2))
    assert pause_for(date("%a, %d %b %Y %H:%M:%S %z", zone=zone)) == lasts(900)


def test_a_date_is_read_as_gmt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A date without a time zone is in GMT, wherever the service runs."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert pause_for(date(ASCTIME)) == lasts(900)
    finally:
        monkeypatch.undo()
        time.tzset()


@unhurried
@given(
    st.text()
    | st.from_regex(
        r"[A-Z][a-z]{2},? [0-9]{1,2}[ -][A-Z][a-z]{2}[ -][0-9]{1,5} "
        r"[0-9:]{5,9} (GMT|[+-]\d+)?"
    )
)
@example("Sun Nov  6 08:49:37 1994")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_any_retry_after(retry_after: str) -> None:
    """Whatever Retry-After says, there is a pause of an hour at most."""
    assert 0 <= pause_for(retry_after) <= MAX_PAUSE


def test_a_pause_is_made_longer_only() -> None:
    """A shorter pause than the one under way changes nothing."""
    pause = Pause(6)
    assert pause.left == 0
    for retry_after in ("100", "5", "", "0"):
        pause.begin(retry_after)
        assert 99 < pause.left <= 100
    pause.begin("200")
    assert 199 < pause.left <= 200
