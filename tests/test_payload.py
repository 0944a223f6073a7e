"""Parsing of text that others wrote: Calendar42's JSON and Retry-After, clients' ids.

No sockets.
"""

import contextlib
import json
import re
import string
import time
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
@example({"meta_data": {"count": True}, "data": []}, ["E"])
@example(
    {
        "meta_data": {"count": 1},
        "data": [{"event_id": ["E"], "subscriber": {"first_name": "A"}}],
    },
    ["E"],
)
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
    return {
        "meta_data": {"count": count},
        "data": [{"event_id": "E", **row} for row in rows],
    }


@pytest.mark.parametrize(
    "count", [None, -1, True, False, 1.0, "1", [], {}, float("nan")], ids=str
)
def test_wrong_counts(count: Any) -> None:
    """A count that is not a number from 0 is unusable."""
    with pytest.raises(
        C42Error, match=r"did not say how many subscriptions there are$"
    ):
        payload.page(subscriptions(count), ["E"])


def test_counts() -> None:
    """There may be 0 to 100,000 subscriptions; more are too many to read."""
    assert payload.page(subscriptions(0), ["E"]) == Page(0, 0, frozenset(), [])
    assert payload.page(subscriptions(100_000), ["E"]).total == 100_000
    with pytest.raises(TooLarge, match="has more than 100000 subscriptions"):
        payload.page(subscriptions(100_001), ["E"])


@pytest.mark.parametrize("name", [1, True, [], {}, ["A"], float("nan")], ids=json.dumps)
def test_wrong_names(name: Any) -> None:
    """A name that is neither text nor null is unusable.

    It does no harm in a row that counts for no event that was asked for.
    """
    with pytest.raises(C42Error, match=r"sent a first name that is not text$"):
        payload.page(subscriptions(1, {"subscriber": {"first_name": name}}), ["E"])
    for row in {"event_id": "F"}, {"event_id": None}, {"permission": "removed"}:
        rows = (
            {"subscriber": {"first_name": name}} | row,
            {"subscriber": {"first_name": "A"}},
        )
        assert payload.page(subscriptions(2, *rows), ["E"]).names == [("E", "A")]


@pytest.mark.parametrize(
    "subscriber", [1, "A", True, [], [{"first_name": "A"}]], ids=json.dumps
)
def test_wrong_subscribers(subscriber: Any) -> None:
    """A subscriber that is neither an object nor null is unusable."""
    with pytest.raises(C42Error, match=r"sent a first name that is not text$"):
        payload.page(subscriptions(1, {"subscriber": subscriber}), ["E"])


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
    assert page == Page(
        10,
        10,
        frozenset(f"E__{at}" for at in range(6)),
        [("E", " A "), ("E", "B"), ("E", "A")],
    )


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
    with pytest.raises(C42Error, match=r"^Calendar42 sent no list of events$"):
        payload.events(said, ["E"])
    with pytest.raises(
        C42Error, match=r"^Calendar42 sent no list of event-subscriptions$"
    ):
        payload.page(said, ["E"])


@pytest.mark.parametrize(
    "title", [1, True, [], {}, ["x"], float("nan")], ids=json.dumps
)
def test_wrong_titles(title: Any) -> None:
    """A title that is neither text nor null is unusable; an event may have none."""
    with pytest.raises(C42Error, match=r"sent a title that is not text$"):
        payload.title({"E": {"id": "E", "title": title}}, "E", ["E"])
    for event in {"id": "E"}, {"id": "E", "title": None}:
        assert payload.title({"E": event}, "E", ["E"]) is None


def test_events() -> None:
    """Events are found by their ids, with their titles."""
    event = {"id": "E", "title": "T"}
    assert payload.events({"data": [event]}, ["E"]) == {"E": event}
    assert payload.title({"E": event}, "E", ["E"]) == "T"


def missing(events: list[str], *asked: str) -> C42Error:
    """Return why the first event asked for has no title, given the events that came."""
    with pytest.raises(C42Error) as raised:
        payload.title(
            {event_id: {"id": event_id} for event_id in events}, asked[0], asked
        )
    return raised.value


def test_a_part_of_the_events() -> None:
    """A list of events must be complete, and each event has an id.

    A single event may be counted as the API likes.
    """
    body = {"meta_data": {"count": 2}, "data": [{"id": "E"}]}
    assert payload.events(body, ["E"]) == {"E": {"id": "E"}}
    with pytest.raises(TooLarge, match=r"^Calendar42 sent only a part of the events$"):
        payload.events(body, ["E", "F"])
    with pytest.raises(C42Error, match=r"^Calendar42 sent an event without an id$"):
        payload.events({"data": [{"id": "E"}, {}]}, ["E"])


def test_foreign_subscriptions() -> None:
    """Rows for other events are left out.

    A page whose rows are all about other events is an error.
    """
    rows = [
        {"event_id": one, "subscriber": {"first_name": f"of {one}"}} for one in "EF"
    ]
    assert payload.page({"meta_data": {"count": 2}, "data": rows}, ["E"]).names == [
        ("E", "of E")
    ]
    removed: list[dict[str, Any]] = [
        {"permission": "removed"}
    ]  # it may not even name its event
    for none in [], removed:
        assert (
            payload.page({"meta_data": {"count": len(none)}, "data": none}, ["E"]).names
            == []
        )
    for other in rows, [{"id": "E"}]:
        with pytest.raises(C42Error, match=r"^Calendar42 sent other subscriptions$"):
            payload.page({"meta_data": {"count": len(other)}, "data": other}, ["G"])


def test_missing_events() -> None:
    """A missing event is deleted if asked for alone, and unknown if in a list.

    If foreign events came, it's a 502.
    """
    assert str(missing([], "E")) == "the event is deleted"
    assert (
        str(missing([], "E", "F"))
        == str(missing(["F"], "E", "F"))
        == "Event E not found"
    )
    alone, listed = missing(["G"], "E"), missing(["F", "G"], "E", "F")
    assert [(error.status, error.private) for error in (alone, listed)] == [
        (502, False),
        (502, True),
    ]
    assert str(alone) == str(listed) == "Calendar42 sent other events"
    with pytest.raises(C42Error, match=r"^the event is deleted$") as raised:
        payload.title(
            {"E": {"id": "E", "permission": "removed", "title": "Old"}}, "E", ["E", "F"]
        )
    assert (
        raised.value.status,
        raised.value.upstream_status,
        raised.value.kind,
    ) == (404, 200, "negative")


def page(total: int, *row_ids: str, rows: int | None = None) -> Page:
    """Return a page with a name for each row."""
    names = [("E", f"Name {row_id}") for row_id in row_ids]
    return Page(
        total, len(row_ids) if rows is None else rows, frozenset(row_ids), names
    )


def test_pages_that_belong_together() -> None:
    """The names of all pages are those of each, in order.

    A page may have more rows than there are said to be.
    """
    joined = [("E", "Name a"), ("E", "Name b"), ("E", "Name c")]
    assert payload.join([page(3, "a", "b", "c")]) == joined
    assert payload.join([page(3, "a", "b"), page(3, "c")]) == joined
    assert payload.join([page(2, "a", "b", "c")]) == joined
    assert (
        payload.join([page(4, "a", "b", rows=3), page(4, "c")]) == joined
    )  # one of them has no id
    assert (
        payload.join([Page(2, 2, frozenset("a"), [])]) == []
    )  # the same id twice on one page


def test_pages_that_do_not_belong_together() -> None:
    """Pages that can't be of one list don't belong together.

    They have different totals, a row in common, or fewer rows than there are.
    """
    assert payload.join([page(3, "a", "b"), page(4, "c")]) is None
    assert payload.join([page(3, "a", "b"), page(2, "c")]) is None
    assert payload.join([page(4, "a", "b"), page(4, "b", "c")]) is None
    assert payload.join([page(4, "a", "b"), page(4, "c")]) is None
    assert payload.join([page(1)]) is None


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


def test_longest_list() -> None:
    """A list has a hundred ids at most; the message of a longer one says how many."""
    assert len(ids.parse_list([f"[{','.join('a' * 100)}]"])) == 100
    with pytest.raises(ids.BadIds, match="101"):
        ids.parse_list([f"[{','.join('a' * 101)}]"])
    with pytest.raises(ids.BadIds, match="entry 2 "):
        ids.parse_list(["[a,?]"])
    assert ids.parse_list(["[a,b]", "c"]) == ["a", "b", "c"]
    for values in [], [""], ["[]"], ["[a"], ["a]"], ["[[a]]"], ["[a][b]"], ["a", ""]:
        with pytest.raises(
            ids.BadIds,
            match=r"^expected ids separated by commas, such as \?event_ids=a,b,c$",
        ):
            ids.parse_list(values)


# Retry-After


def pause_for(retry_after: str) -> float:
    """Return the seconds of the pause for which a Retry-After asks."""
    pause = Pause(6)
    pause.begin(retry_after)
    return pause.left


@pytest.mark.parametrize(
    ("retry_after", "left"),
    [
        ("30", 30),
        ("0", 0),
        ("007", 7),
        ("3600", 3600),
        ("3601", MAX_PAUSE),
        *(
            (huge, MAX_PAUSE)
            for huge in ("86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT")
        ),
        *(
            (nonsense, 6)
            for nonsense in (
                "",
                "soon",
                "-5",
                "+5",
                "1.5",
                "1e3",
                "\u0663",
                "\u00b2",
                "5 s",
                "Mon, 32 Jan 2020 99:99:99 GMT",
                "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
                "Fri, 31 Dec 9999 23:59:59 +9999999999999999999999",
            )
        ),
    ],
)
def test_retry_after(retry_after: str, left: float) -> None:
    """A Retry-After is a number of seconds, an hour at most.

    An invalid one counts as the default.
    """
    assert pause_for(retry_after) == pytest.approx(left, abs=0.5)


@pytest.mark.parametrize(
    "form",
    ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"],
)
@pytest.mark.parametrize(
    ("seconds", "left"), [(900, 900), (5000, MAX_PAUSE), (-5000, 0)]
)
def test_retry_after_a_date(form: str, seconds: float, left: float) -> None:
    """A Retry-After may be a date, in each of the three forms of RFC 9110, 5.6.7.

    They have whole seconds.
    """
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    assert pause_for(moment.strftime(form)) == pytest.approx(left, abs=1.5)


def test_a_date_in_another_time_zone() -> None:
    """A date that says its time zone is read in it, though RFC 9110 allows GMT only."""
    moment = datetime.now(timezone(timedelta(hours=2))) + timedelta(seconds=900)
    assert pause_for(moment.strftime("%a, %d %b %Y %H:%M:%S %z")) == pytest.approx(
        900, abs=1.5
    )


def test_a_date_is_read_as_gmt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A date without a time zone is in GMT, wherever the service runs."""
    moment = datetime.now(UTC) + timedelta(seconds=900)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert pause_for(moment.strftime("%a %b %e %H:%M:%S %Y")) == pytest.approx(
            900, abs=1.5
        )
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
