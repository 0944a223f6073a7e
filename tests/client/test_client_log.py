"""What the client and the log say of calls and loads, and what not."""

import gzip
import html
import json
import logging
import re
import time
import zlib
from typing import Any

import pytest

from calendar42.calls import CallRecord
from calendar42.errors import (
    C42Error,
)
from calendar42.replies import MAX_ERROR_BODY
from operations import load_log
from standin import DEMO_EVENTS, Standin
from tests.client.callers import ENDPOINTS, Make, connect, failure, fetch, fetch_list
from tests.fixtures import TOKEN, given_time, new_events, new_id

# What is said of a load


def test_observed_calls(make: Make, upstream: Standin) -> None:
    """Each call that ends is observed with its endpoint, status, time and trouble.

    The trouble is what kept the answer from coming.
    """
    calls: list[CallRecord] = []
    client = make(on_call=calls.append)
    connect(client, upstream)
    assert sorted(call[:2] for call in calls) == [
        ("event-subscriptions", 200),
        ("events", 200),
    ]
    assert all(0 < call.seconds < 10 and call.trouble == "" for call in calls)
    calls.clear()
    upstream.rule("events", reset=True)
    failure(client, DEMO_EVENTS["plain"])
    resets = [call for call in calls if call.endpoint == "events"]
    assert resets  # two, if the first went over a connection that was kept
    for call in resets:
        assert (call.status, call.trouble) == (0, "Connection reset by peer")
    upstream.rule("events", hang=True)

    def check(seconds: float) -> None:
        calls.clear()
        failure(client, DEMO_EVENTS["plain"], seconds)
        (call,) = [call for call in calls if call.endpoint == "events"]
        assert (call.status, call.trouble) == (0, "timed out")
        assert call.seconds >= seconds / 2

    given_time(check)


FOUND: list[tuple[str, dict[str, Any], bool]] = [
    ("events", {"status": 500}, True),
    ("events", {"status": 404}, False),
    ("events", {"body": '{"data": [{"id": "E", "title": 1}]}'}, True),
    ("events", {"body": '{"data": []}'}, False),
    ("events", {"reset": True}, True),
    ("event-subscriptions", {"status": 500}, True),
    ("event-subscriptions", {"status": 404}, False),
    ("event-subscriptions", {"body": '{"data": []}'}, True),
    ("event-subscriptions", {"truncate": True}, True),
]


@pytest.mark.parametrize(("endpoint", "fault", "is_fault"), FOUND)
def test_observed_faults(
    make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any], is_fault: bool
) -> None:
    """Each fault is observed once, with the endpoint where it was found.

    A definite refusal isn't one.
    """
    faults: list[C42Error] = []
    upstream.add_event("E")
    upstream.rule(endpoint, **fault)
    error = failure(make(on_fault=faults.append), "E")
    assert error.endpoint == endpoint
    assert faults == ([error] if is_fault else [])


def test_log(make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture) -> None:
    """Each load is one line in the log, with its outcome and the time of each call."""
    client = make()
    with caplog.at_level(logging.INFO, logger="c42c"):
        fetch(client, DEMO_EVENTS["plain"])
        failure(client, DEMO_EVENTS["deleted"])
        upstream.rule("event-subscriptions", DEMO_EVENTS["plain"], hang=True)

        def check(seconds: float) -> None:
            failure(client, DEMO_EVENTS["plain"], seconds)
            late = caplog.records[-1]
            assert (
                " outcome=fault status=504: Calendar42 did not answer within 10 seconds"
                " (events " in late.getMessage()
            )
            assert late.levelno == logging.WARNING
            assert vars(late)["fields"]["outcome"] == "fault"

        given_time(check)
    ok, negative = caplog.records[:2]
    calls = (
        r"\((events|event-subscriptions) \d+ ms, (events|event-subscriptions) \d+ ms\)"
    )
    event_id = DEMO_EVENTS["plain"]
    assert {record.name for record in caplog.records} == {"c42c.upstream"}
    assert ok.levelno == negative.levelno == logging.INFO
    assert ok.getMessage().startswith(
        f"load event={event_id} outcome=ok status=200: 3 names (event"
    )
    fields = vars(ok)["fields"]
    assert [fields[name] for name in ("event", "outcome", "status", "names")] == [
        event_id,
        "ok",
        200,
        3,
    ]
    assert {call["endpoint"] for call in fields["calls"]} == set(ENDPOINTS)
    assert [(call["status"], call["trouble"]) for call in fields["calls"]] == [
        (200, "")
    ] * 2
    assert all(
        0 < call["seconds"] == round(call["seconds"], 4) for call in fields["calls"]
    )
    each = r"(events|event-subscriptions) \d+ ms"
    assert re.search(rf" \({each}, {each}\)$", ok.getMessage()), calls
    assert (
        " outcome=negative status=404: the event is deleted (" in negative.getMessage()
    )
    assert vars(negative)["fields"]["names"] is None


def test_a_refresh_is_logged_as_one(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says of a load whether it was a refresh."""
    event_id = DEMO_EVENTS["plain"]
    with caplog.at_level(logging.INFO, logger="c42c"):
        list(make().fetch([event_id], time.monotonic() + 10, refresh=True))
        fetch(make(), event_id)
    assert caplog.messages[0].startswith(f"refresh event={event_id} outcome=ok ")
    assert caplog.messages[1].startswith(f"load event={event_id} outcome=ok ")
    refreshes = [vars(record)["fields"]["refresh"] for record in caplog.records]
    assert refreshes == [True, False]


def test_a_slow_load_is_a_warning(
    make: Make,
    upstream: Standin,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A load that takes more than two seconds is a warning, though all went well."""
    assert load_log.SLOW == 2
    monkeypatch.setattr(load_log, "SLOW", 0.1)
    upstream.rule("events", delay=0.2)
    fetch(make(), DEMO_EVENTS["plain"])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert " outcome=ok " in record.getMessage()
    assert vars(record)["fields"]["seconds"] >= 0.2


def test_a_split_list_is_logged(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """If a list is asked for in halves, the log says so, with the reason."""
    event_ids = new_events(upstream, 2)
    upstream.rule("events", event_ids[0], 1, status=414)
    with caplog.at_level(logging.INFO, logger="c42c"):
        fetch_list(make(), event_ids)
    assert (
        caplog.messages[0]
        == "a list of 2 events failed (Calendar42 answered 414): asking for its halves"
    )


# The token


def echoes(token: str) -> list[str | bytes]:
    """Return the token as an upstream may echo it."""
    escaped = "".join(f"\\u{ord(char):04x}" for char in token)
    some = token.replace("-", "\\u002d").replace("a", "\\u0061")
    return [
        f"Token {token} is not valid",
        json.dumps({"error": {"message": f"bad token {token}", token: [token]}}),
        f'{{"error": "{escaped}"}}',
        f'{{"error": "{some}"}}',
        f'{{"error": "{escaped.upper().replace("U", "u")}"}}',
        f'<html>not JSON: "{escaped}"',
        "".join(f"\\x{ord(char):02x}" for char in token),
        "".join(f"&#{ord(char)};" for char in token),
        "".join(f"&#x{ord(char):X};" for char in token),
        f"<a href='?{''.join(f'%{ord(char):02X}' for char in token)}'>",
        f"<p>{html.escape(token)}",
        json.dumps({"body": json.dumps({"token": token})}),
        json.dumps(json.dumps(json.dumps(token))),
        token.encode("utf-16"),
        f"<p>{token}".encode("utf-32-be"),
    ]


@pytest.mark.parametrize("token", [TOKEN, 'q"u/o\\t<e>&', "100%25\\u0041&amp;"])
@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_the_token_is_passed_on_in_no_error(
    make: Make, upstream: Standin, token: str, status: int
) -> None:
    """An error's body that has the token in it, however written, isn't passed on."""
    for body in echoes(token):
        rule = upstream.rule(status=status, body=body)
        assert failure(make(token=token), DEMO_EVENTS["plain"]).body == b"", body
        rule.remove()


@pytest.mark.parametrize(
    "before", range(MAX_ERROR_BODY - len(TOKEN) - 1, MAX_ERROR_BODY + 2, 4)
)
@pytest.mark.parametrize(
    "written",
    [TOKEN, "".join(f"\\u{ord(char):04x}" for char in TOKEN)],
    ids=["plain", "escaped"],
)
def test_token_is_not_cut_out(
    make: Make, upstream: Standin, before: int, written: str
) -> None:
    """Where a body is cut at 8 KiB, no part of the token is left at its end."""
    upstream.rule(
        "events", status=500, body=b"." * before + written.encode() + b"!" * 10
    )
    assert failure(make(), DEMO_EVENTS["plain"]).body in (b"", b"." * MAX_ERROR_BODY)


def test_a_body_without_the_token_keeps_its_bytes(
    make: Make, upstream: Standin
) -> None:
    """A body that is passed on keeps its bytes, up to 8 KiB."""
    for body in (
        b'{"a" : "\\u00e9", "a":1.0e5}\r\n',
        b"\xff\xfe\x00",
        b"\\u002d %2D &#45;",
        TOKEN[:-1].encode(),
    ):
        rule = upstream.rule("events", status=500, body=body)
        assert failure(make(), DEMO_EVENTS["plain"]).body == body
        rule.remove()
    upstream.rule("events", status=500, body=b"." * 8193)
    assert failure(make(), DEMO_EVENTS["plain"]).body == b"." * 8192


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip-ish"])
def test_a_body_in_a_coding_that_nobody_asked_for(
    make: Make, upstream: Standin, coding: str
) -> None:
    """An error's body that can't be unpacked isn't passed on.

    It would be noise, and might contain the token.
    """
    body = b"\x1b\x05\x00noise\xff"
    upstream.rule("events", status=404, body=body, headers={"Content-Encoding": coding})
    error = failure(make(), DEMO_EVENTS["plain"])
    assert (error.status, error.kind, error.body) == (404, "negative", b"")


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("identity", b"why"),
        ("gzip", gzip.compress(b"why", mtime=0)),
        ("X-GZip", gzip.compress(b"why", mtime=0)),
        ("deflate", zlib.compress(b"why")),
    ],
    ids=["identity", "gzip", "X-GZip", "deflate"],
)
def test_a_body_that_can_be_unpacked(
    make: Make, upstream: Standin, coding: str, packed: bytes
) -> None:
    """The body of an error is passed on unpacked."""
    headers = {"Content-Encoding": coding}
    upstream.rule("events", status=404, body=packed, headers=headers)
    assert failure(make(), DEMO_EVENTS["plain"]).body == b"why"


def test_token_in_titles_and_names(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """The token is blanked out of titles and names."""
    event_id = new_id()
    upstream.add_event(event_id, title=f"<{TOKEN}>", names=[TOKEN, f"A{TOKEN}B{TOKEN}"])
    with caplog.at_level(logging.DEBUG):
        answer = fetch(make(), event_id)
    assert answer == (event_id, "<***>", ["***", "A***B***"])
    assert TOKEN not in caplog.text


def test_escaped_tokens_in_titles_and_names(make: Make, upstream: Standin) -> None:
    """Escaped tokens in titles and names are redacted.

    Others keep what looks like an escape.
    """
    texts = [text for text in echoes(TOKEN) if isinstance(text, str)]
    texts.append("\0".join(TOKEN))
    fine = ["100 % & more", "\\u0041&amp;%41", TOKEN[:-1]]
    event_id = new_id()
    upstream.add_event(event_id, title=f"&#{'9' * 5000};", names=texts + fine)
    event = fetch(make(), event_id)
    assert event.title == "***"
    shown = event.names
    assert shown[len(texts) :] == fine
    for name in shown[: len(texts)]:
        assert TOKEN not in name
        assert "***" in name


@pytest.mark.parametrize("body", ["&#" + "1" * 5000, "\\" * 16_000 + "x"])
def test_bodies_that_are_hard_to_read(make: Make, upstream: Standin, body: str) -> None:
    """An error's body that is hard to search for the token takes no time.

    It changes nothing about the error.
    """
    upstream.rule("events", status=502, body=body)
    began = time.process_time()
    error = failure(make(), DEMO_EVENTS["plain"])
    assert (error.status, error.upstream_status) == (502, 502)
    assert time.process_time() - began < 2
