"""What the client and the log say of calls and loads, and what not."""

import gzip
import html
import json
import logging
import re
import time
import zlib

import pytest

from calendar42.calls import CallRecord
from calendar42.replies import MAX_ERROR_BODY
from operations import load_log
from standin import DEMO_EVENTS, Standin
from tests.client.callers import (
    ENDPOINTS,
    PLAIN,
    Make,
    check_error,
    failure,
    fetch,
)
from tests.fixtures import PATIENCE, TOKEN, given_time, new_id

# What is said of a load


def test_observed_calls(make: Make, upstream: Standin) -> None:
    """Each call that ends is observed with its endpoint, status, time and trouble.

    The trouble is what kept the answer from coming.
    """
    calls: list[CallRecord] = []
    client = make(on_call=calls.append)
    fetch(client)
    assert sorted(call.endpoint for call in calls) == sorted(ENDPOINTS)
    for call in calls:
        assert (call.status, call.trouble) == (200, "")
        assert 0 < call.seconds < PATIENCE

    def troubles() -> list[tuple[int, str]]:
        events = [call for call in calls if call.endpoint == "events"]
        return [(call.status, call.trouble) for call in events]

    calls.clear()
    upstream.rule("events", reset=True)
    failure(client)
    # There are two calls, if the first went over a connection that was kept.
    assert set(troubles()) == {(0, "Connection reset by peer")}
    upstream.rule("events", hang=True)

    def check(seconds: float) -> None:
        calls.clear()
        failure(client, seconds=seconds)
        assert troubles() == [(0, "timed out")]
        assert max(call.seconds for call in calls) >= seconds / 2

    given_time(check)


def test_log(make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture) -> None:
    """Each load is one line in the log, with its outcome and the time of each call."""
    client = make()
    caplog.set_level(logging.INFO, logger="c42c")
    fetch(client)
    failure(client, DEMO_EVENTS["deleted"])
    ok, negative = caplog.records
    assert ok.name == negative.name == "c42c.upstream"
    assert ok.levelno == negative.levelno == logging.INFO
    each = r"(events|event-subscriptions) \d+ ms"
    line = rf"load event={PLAIN} outcome=ok status=200: 3 names \({each}, {each}\)"
    assert re.fullmatch(line, ok.getMessage())
    fields = vars(ok)["fields"]
    calls = fields["calls"]
    expected = {"event": PLAIN, "outcome": "ok", "status": 200, "names": 3}
    assert (expected | {"refresh": False}).items() <= fields.items()
    assert {call["endpoint"] for call in calls} == set(ENDPOINTS)
    for call in calls:
        assert (call["status"], call["trouble"]) == (200, "")
        assert 0 < call["seconds"] == round(call["seconds"], 4)
    line = " outcome=negative status=404: the event is deleted ("
    assert line in negative.getMessage()
    assert vars(negative)["fields"]["names"] is None
    upstream.rule("event-subscriptions", hang=True)

    def check(seconds: float) -> None:
        caplog.clear()
        failure(client, seconds=seconds)
        (late,) = caplog.records
        line = " outcome=fault status=504: Calendar42 did not answer within 10 seconds"
        assert f"{line} (events " in late.getMessage()
        assert late.levelno == logging.WARNING
        assert vars(late)["fields"]["outcome"] == "fault"

    given_time(check)


def test_a_refresh_is_logged_as_one(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says of a load that it was a refresh."""
    with caplog.at_level(logging.INFO, logger="c42c"):
        list(make().fetch([PLAIN], time.monotonic() + PATIENCE, refresh=True))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"refresh event={PLAIN} outcome=ok ")
    assert vars(record)["fields"]["refresh"] is True


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
    fetch(make())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert " outcome=ok " in record.getMessage()
    assert vars(record)["fields"]["seconds"] >= 0.2


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
        assert failure(make(token=token)).body == b"", body
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
    upstream.rule("events", status=500, body="." * before + written + "!" * 10)
    assert failure(make()).body in (b"", b"." * MAX_ERROR_BODY)


NOT_THE_TOKEN = [
    b'{"a" : "\\u00e9", "a":1.0e5}\r\n',
    b"\xff\xfe\x00",
    b"\\u002d %2D &#45;",
    TOKEN[:-1].encode(),
    b"." * 8193,
]


@pytest.mark.parametrize("body", NOT_THE_TOKEN, ids=range(5))
def test_a_body_without_the_token_keeps_its_bytes(
    make: Make, upstream: Standin, body: bytes
) -> None:
    """A body that is passed on keeps its bytes, up to 8 KiB."""
    upstream.rule("events", status=500, body=body)
    assert failure(make()).body == body[:8192]


NOISE = b"\x1b\x05\x00noise\xff"


@pytest.mark.parametrize(
    ("coding", "packed", "body"),
    [
        ("identity", b"why", b"why"),
        ("gzip", gzip.compress(b"why", mtime=0), b"why"),
        ("X-GZip", gzip.compress(b"why", mtime=0), b"why"),
        ("deflate", zlib.compress(b"why"), b"why"),
        ("br", NOISE, b""),
        ("zstd", NOISE, b""),
        ("gzip-ish", NOISE, b""),
    ],
)
def test_a_packed_body(
    make: Make, upstream: Standin, coding: str, packed: bytes, body: bytes
) -> None:
    """An error's body is passed on unpacked.

    If it can't be unpacked, it isn't: it would be noise, and might contain the token.
    """
    headers = {"Content-Encoding": coding}
    upstream.rule("events", status=404, body=packed, headers=headers)
    check_error(failure(make()), status=404, kind="negative", body=body)


def test_tokens_in_titles_and_names(
    make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """The token is blanked out of titles and names, however it is written.

    Others keep what looks like an escape.
    """
    fine = ["100 % & more", "\\u0041&amp;%41", TOKEN[:-1]]
    escaped = [text for text in echoes(TOKEN) if isinstance(text, str)]
    escaped += ["\0".join(TOKEN), f"&#{'9' * 5000};"]
    names = [f"A{TOKEN}B{TOKEN}", *fine, *escaped]
    event_id = new_id()
    upstream.add_event(event_id, title=f"<{TOKEN}>", names=names)
    with caplog.at_level(logging.DEBUG):
        event = fetch(make(), event_id)
    assert event.title == "<***>"
    assert event.names[:4] == ["A***B***", *fine]
    assert len(event.names) == len(names)
    for name in event.names[4:]:
        assert "***" in name
        assert TOKEN not in name
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("body", ["&#" + "1" * 5000, "\\" * 16_000 + "x"])
def test_bodies_that_are_hard_to_read(make: Make, upstream: Standin, body: str) -> None:
    """An error's body that is hard to search for the token takes no time.

    It changes nothing about the error.
    """
    upstream.rule("events", status=502, body=body)
    began = time.process_time()
    check_error(failure(make()), status=502, upstream_status=502)
    assert time.process_time() - began < 2
