"""The client of Calendar42, directly: what it sends, and what it makes of whatever comes back."""

import contextlib
import gzip
import html
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

import c42client
from c42client import Client
from calendar42.calls import Call
from calendar42.errors import C42Error, Deleted, Paused, Rejected, TimedOut, Unusable
from calendar42.pause import LONGEST, Pause
from calendar42.transport import Transport
from standin import EVENTS, Gate, Standin
from tests.fixtures import TOKEN, new_id, until

Make = Callable[..., Client]
ENDPOINTS = ["events", "event-subscriptions"]


@pytest.fixture
def make(upstream: Standin) -> Iterator[Make]:
    """Give a test a way to make clients: `make(timeout=1)`."""
    with contextlib.ExitStack() as stack:

        def client(**options: Any) -> Client:
            usual: dict[str, Any] = {"base_url": upstream.base_url, "token": TOKEN, "timeout": 10, "pause": Pause(6)}
            return stack.enter_context(contextlib.closing(Client(**usual | options)))

        yield client


def fetch(client: Client, event_id: str, seconds: float = 10.0) -> dict[str, Any]:
    """Return the answer, for which there are so many seconds."""
    return client.fetch(event_id, time.monotonic() + seconds)


def failure(client: Client, event_id: str, seconds: float = 10.0) -> C42Error:
    """Return why there is no answer."""
    with pytest.raises(C42Error) as raised:
        fetch(client, event_id, seconds)
    return raised.value


# What is sent


def test_headers(make: Make, upstream: Standin) -> None:
    """Both calls carry the documented headers and the token, and nothing that an earlier answer set."""
    client = make()
    upstream.rule(headers={"Set-Cookie": "session=1; Path=/"})
    fetch(client, EVENTS["plain"])
    upstream.reset_counts()
    fetch(client, EVENTS["empty"])
    assert sorted(endpoint for endpoint, _, _ in upstream.requests) == sorted(ENDPOINTS)
    for _, target, headers in upstream.requests:
        assert headers["Accept"] == headers["Content-Type"] == "application/json"
        assert headers["Authorization"] == f"Token {TOKEN}"
        assert "Cookie" not in headers
        assert TOKEN not in target


def test_connections_are_kept(make: Make) -> None:
    """Loads one after the other go over the same two connections."""
    with Standin(token=TOKEN) as upstream:
        client = make(base_url=upstream.base_url)
        for name in ("plain", "empty", "mixed", "duplicates"):
            fetch(client, EVENTS[name])
        assert 1 <= len(upstream._server.connections) <= 2
        assert upstream.calls() == 8
        client.close()


def test_netrc_does_not_replace_the_token(
    make: Make, upstream: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .netrc has no say in who asks."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1\nlogin someone\npassword else\ndefault login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    assert fetch(make(), EVENTS["empty"])["names"] == []
    assert {headers["Authorization"] for _, _, headers in upstream.requests} == {f"Token {TOKEN}"}


def test_proxy(make: Make, upstream: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is used, unless NO_PROXY names the upstream."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with Standin(token=TOKEN) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/api/v2/"))
        monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/api/v2/"))
        proxy.rule(status=503)
        assert failure(make(), EVENTS["plain"]).status == 503
        assert {target.split("?")[0] for _, target, _ in proxy.requests} <= {
            f"{upstream.base_url}events/{EVENTS['plain']}/",
            f"{upstream.base_url}event-subscriptions/",
        }
        assert (upstream.calls(), len(proxy.requests)) == (0, proxy.calls())
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        seen = proxy.calls()
        assert fetch(make(), EVENTS["plain"])["names"]
        assert proxy.calls() <= seen + 1  # the second call of the first client may be late


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_redirects_are_not_followed(make: Make, upstream: Standin, endpoint: str, status: int) -> None:
    """A redirect is a 502: the token goes to no other address."""
    with Standin(token=TOKEN) as other:
        upstream.rule(endpoint, status=status, headers={"Location": f"{other.base_url}events/{EVENTS['plain']}/"})
        error = failure(make(), EVENTS["plain"])
        assert (error.status, error.upstream_status, error.definite) == (502, status, False)
        assert other.calls() == 0


# What comes back: the README's table


@pytest.mark.parametrize("status", [400, 402, 404, 405, 406, 409, 410, 418, 422, 431, 451, 499])
def test_definite_refusals(make: Make, upstream: Standin, status: int) -> None:
    """A refusal that asking again would not change is passed through, and is a definite no."""
    upstream.rule("events", status=status, body=b"  because\n")
    error = failure(make(), EVENTS["plain"])
    assert isinstance(error, Rejected)
    assert (error.status, error.upstream_status, error.definite, error.body) == (status, status, True, b"  because\n")


@pytest.mark.parametrize("status", [401, 403, 408, 500, 501, 502, 503, 504, 507, 521, 599])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_faults_are_passed_through(make: Make, upstream: Standin, endpoint: str, status: int) -> None:
    """Trouble with the token or inside the upstream is passed through, from either call, and is a fault."""
    upstream.rule(endpoint, status=status, body='{"why": "\u00e9"}')
    error = failure(make(), EVENTS["plain"])
    assert (error.status, error.upstream_status, error.definite) == (status, status, False)
    assert error.body == '{"why": "\u00e9"}'.encode()


UNUSABLE: dict[str, dict[str, Any]] = {
    "reset": {"reset": True},
    "truncated": {"truncate": True},
    "html": {"body": "<!doctype html><p>Welcome"},
    "empty": {"body": b""},
    "blank": {"body": b" \n"},
    "not UTF-8": {"body": b'{"data": "\xff"}'},
    "half": {"body": b'{"data": ['},
    "two": {"body": b'{"data": []}{"data": []}'},
    "nested": {"body": b"[" * 200_000},
    "nested objects": {"body": b'{"a":' * 200_000},
    "huge number": {"body": b'{"meta_data": {"count": 1' + b"0" * 5000 + b'}, "data": []}'},
    "too big": {"body": 9},
    "204": {"status": 204},
    "206": {"status": 206},
    "201": {"status": 201},
    "304": {"status": 304},
    "300": {"status": 300},
    "600": {"status": 600},
    "999": {"status": 999},
    "no gzip": {"body": b"hello", "headers": {"Content-Encoding": "gzip"}},
    "cut gzip": {"body": gzip.compress(os.urandom(1000))[:500], "headers": {"Content-Encoding": "gzip"}},
    "gzip bomb": {"body": gzip.compress(b" " * 2**26), "headers": {"Content-Encoding": "gzip"}},
    "nested gzip": {"body": b"x", "headers": {"Content-Encoding": ", ".join(["gzip"] * 50)}},
    "long header": {"headers": {"X-Long": "a" * 100_000}},
    "many headers": {"headers": {f"X-{number}": "a" for number in range(200)}},
    **{f"data {data}": {"body": f'{{"meta_data": {{"count": 0}}, "data": {data}}}'} for data in
       ("null", "{}", '"x"', "1", "true", "[1]", "[null]", "[[]]", '["x"]', '{"0": {"id": "x"}}')},
    **{f"body {body}": {"body": body} for body in ("null", "[]", "1", '"x"', "true", "{}", "[{}]", "NaN", "-Infinity")},
}  # fmt: skip


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in UNUSABLE.items()])
def test_unusable_answers(make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any]) -> None:
    """What is no whole answer, no JSON, too large or of a wrong shape is a 502 and a fault, from either call."""
    upstream.rule(endpoint, **fault)
    error = failure(make(), EVENTS["plain"])
    assert isinstance(error, Unusable)
    assert (error.status, error.definite, error.body) == (502, False, b"")


def rows(event_id: str, count: Any, *rows: Any) -> bytes:
    """Return a page of subscriptions to an event."""
    full = [{"event_id": event_id, **row} if isinstance(row, dict) else row for row in rows]
    return json.dumps({"meta_data": {"count": count}, "data": full}).encode()


COUNTS: list[Any] = [None, -1, True, False, 1.0, "1", [], {}, 10**9, 10**30, 100_001, 2, 101]
NAMES: list[Any] = [1, True, [], {}, ["A"], float("nan")]
SUBSCRIBERS: list[Any] = [1, "A", True, [], [{"first_name": "A"}]]
WRONG_PAGES = {
    **{f"count {count}": rows("E", count, {"subscriber": {"first_name": "A"}}) for count in COUNTS},
    "no count": b'{"meta_data": {}, "data": []}',
    "no meta_data": b'{"data": []}',
    "meta_data a list": b'{"meta_data": [], "data": []}',
    "meta_data a text": b'{"meta_data": "count", "data": []}',
    **{f"name {json.dumps(name)}": rows("E", 1, {"subscriber": {"first_name": name}}) for name in NAMES},
    **{f"subscriber {json.dumps(it)}": rows("E", 1, {"subscriber": it}) for it in SUBSCRIBERS},
}  # fmt: skip


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in WRONG_PAGES.items()])
def test_wrong_subscriptions(make: Make, upstream: Standin, body: bytes) -> None:
    """A page that does not say what it must, or says what can't be, is a 502: never half the names."""
    event_id = new_id()
    upstream.add_event(event_id)
    upstream.rule("event-subscriptions", offset=0, body=body.replace(b'"E"', f'"{event_id}"'.encode()))
    assert isinstance(failure(make(), event_id), Unusable)


@pytest.mark.parametrize("title", [1, True, [], {}, ["x"], float("nan"), 10**400])
def test_wrong_titles(make: Make, upstream: Standin, title: Any) -> None:
    """A title that is neither text nor null is a 502."""
    event_id = new_id()
    upstream.add_event(event_id, title=title)
    assert isinstance(failure(make(), event_id), Unusable)


def test_another_event(make: Make, upstream: Standin) -> None:
    """The answer with another event, or one without an id, is a 502: nobody gets another event's title."""
    for event in ({"id": "other", "title": "Secret"}, {"title": "Secret"}, {"id": None}, {"id": ["x"]}):
        upstream.rule("events", body=json.dumps({"meta_data": {"count": 1}, "data": [event]}))
        assert isinstance(failure(make(), EVENTS["plain"]), Unusable)


@pytest.mark.parametrize("event", ["deleted", "nodata"])
def test_deleted(make: Make, event: str) -> None:
    """A removed event, and one whose data is empty, is a definite 404."""
    error = failure(make(), EVENTS[event])
    assert isinstance(error, Deleted)
    assert (error.status, error.definite, error.upstream_status) == (404, True, 200)


def test_what_is_read_leniently(make: Make, upstream: Standin) -> None:
    """Fields nobody needs may hold anything; gzip, a byte order mark, NaN elsewhere and 7 MiB of blanks are read."""
    event = {"id": "", "title": "", "start": float("nan"), "length": 10**300, "permission": None, "data": [[[]]]}
    event_id = new_id()
    event["id"] = event_id
    upstream.add_event(event_id)
    body = json.dumps({"data": [event]}).encode()
    ours: tuple[Any, ...] = ({"subscriber": {"first_name": "A"}}, {"subscriber": None}, {"subscriber": {}}, {})
    foreign = {"event_id": "other", "subscriber": {"first_name": 1}}
    page = rows(event_id, 6, *ours, {"permission": "removed", "subscriber": {"first_name": "B"}}, foreign)
    for change in (lambda body: body, lambda body: b"\xef\xbb\xbf" + body, gzip.compress):
        coding = {"Content-Encoding": "gzip"} if change is gzip.compress else {}
        upstream.rule("events", body=change(body), headers=coding, content_type="text/plain")
        upstream.rule("event-subscriptions", body=change(page), headers=coding)
        assert fetch(make(), event_id) == {"id": event_id, "title": "", "names": ["A"]}
    upstream.clear_rules()
    upstream.rule(body=7)
    assert fetch(make(), EVENTS["plain"])["names"] == ["API", "Arthur", "Ella"]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"status": 503}, 503),
        ({"status": 404}, 404),
        ({"reset": True}, 502),
        ({"truncate": True}, 502),
        ({"hang": True}, 504),
    ],
)
@pytest.mark.parametrize("offset", [100, 200])
def test_a_page_fails(make: Make, upstream: Standin, fault: dict[str, Any], status: int, offset: int) -> None:
    """Where one of many pages fails, that failure is the answer."""
    upstream.rule("event-subscriptions", offset=offset, **fault)
    assert failure(make(timeout=0.3), EVENTS["big"], 0.3).status == status


def test_fewer_rows_than_promised(make: Make, upstream: Standin) -> None:
    """Where the pages together hold fewer rows than there are said to be, the answer is a 502."""
    upstream.rule("event-subscriptions", EVENTS["big"], offset=200, body=b'{"meta_data": {"count": 250}, "data": []}')
    assert "fewer" in str(failure(make(), EVENTS["big"]))


def test_many_pages_at_once(make: Make, upstream: Standin) -> None:
    """Further pages are asked for side by side, and no more than sixteen of them."""
    event_id, gate = new_id(), Gate()
    upstream.add_event(event_id, names=[f"Guest {number}" for number in range(2500)])
    for number in range(1, 25):
        upstream.rule("event-subscriptions", event_id, offset=100 * number, gate=gate)
    client, answers = make(), list[Any]()
    thread = threading.Thread(target=lambda: answers.append(fetch(client, event_id)))
    thread.start()
    gate.wait_for(16)
    assert upstream.calls("event-subscriptions", event_id) == 17
    gate.open()
    thread.join()
    assert answers[0]["names"] == [f"Guest {number}" for number in range(2500)]
    assert upstream.calls("event-subscriptions", event_id) == 25


def test_the_events_failure_is_the_answer(make: Make, upstream: Standin) -> None:
    """If both calls fail the event's failure is the answer, also where the other one's comes first."""
    gate = Gate()
    upstream.rule("events", gate=gate, status=403)
    upstream.rule("event-subscriptions", status=500)
    ended: list[int] = []

    def opened(call: Call) -> None:
        ended.append(call.status)
        if call.endpoint == "event-subscriptions":
            gate.open()

    assert failure(make(observe=opened), EVENTS["plain"]).status == 403
    assert ended == [500, 403]


def test_not_found_does_not_wait(make: Make, upstream: Standin) -> None:
    """An event that is not found is answered while the other call hangs."""
    gate = Gate()
    upstream.rule("event-subscriptions", gate=gate)
    error = failure(make(timeout=60), EVENTS["unknown"], 60)
    assert (error.status, error.definite) == (404, True)
    gate.open()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "fault",
    [
        {"hang": True},
        {"delay": 1.0},
        {"trickle": 0.05},
        {"trickle_headers": 0.05},
        {"body": b"", "headers": {"Content-Length": "9"}},
    ],
    ids=["hang", "late", "trickle", "header", "body"],
)
def test_time_out(make: Make, upstream: Standin, endpoint: str, fault: dict[str, Any]) -> None:
    """Nothing that the upstream does holds a call beyond the deadline."""
    upstream.rule(endpoint, **fault)
    asked = time.monotonic()
    error = failure(make(timeout=0.2), EVENTS["plain"], 0.2)
    assert time.monotonic() - asked < 0.2 + 0.5
    assert isinstance(error, TimedOut)
    assert (error.status, error.definite, error.upstream_status) == (504, False, 0)


@pytest.mark.parametrize(
    "base_url", ["http://127.0.0.1:1/", "http://no-such-host.invalid/", "https://127.0.0.1:{port}/"]
)
def test_unreachable(make: Make, upstream: Standin, base_url: str) -> None:
    """An upstream that can't be reached, or does not speak TLS, is a 502."""
    port = upstream.base_url.split(":")[2].split("/")[0]
    error = failure(make(base_url=base_url.format(port=port)), EVENTS["plain"])
    assert (error.status, error.upstream_status) == (502, 0)


# Pauses


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("30", 29, 30),
        ("0", 0, 0),
        ("007", 6, 7),
        (format_datetime(datetime.now(UTC) + timedelta(seconds=900), usegmt=True), 800, 900),
        (format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0, 0),
        *((huge, LONGEST - 1, LONGEST) for huge in ("86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT")),
        *(
            (nonsense, 5, 6)
            for nonsense in (
                "", "soon", "-5", "1.5", "\u0663", "Mon, 32 Jan 2020 99:99:99 GMT", "Mon, 01 Jan 2035 00:00:00",
                "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 +9999999999999999999999",
            )
        ),
    ],
)  # fmt: skip
def test_retry_after(retry_after: str, least: float, most: float) -> None:
    """A Retry-After is read as seconds or a date, is an hour at most, and means the default where it makes no sense."""
    pause = Pause(6)
    pause.begin(retry_after)
    assert least <= pause.left <= most


def test_a_pause_is_made_longer_only() -> None:
    """A shorter pause than the one under way changes nothing."""
    pause = Pause(6)
    assert pause.left == 0
    for retry_after in ("100", "5", "", "0"):
        pause.begin(retry_after)
        assert pause.left > 99


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_pause(make: Make, upstream: Standin, endpoint: str) -> None:
    """After a 429, from either call, nothing is asked for any event."""
    client = make()
    upstream.rule(endpoint, status=429, body="slow down")
    error = failure(client, EVENTS["plain"])
    assert isinstance(error, Paused)
    assert (error.status, error.definite, error.upstream_status, error.body) == (429, False, 429, b"slow down")
    assert 5 < error.retry_after <= 6
    upstream.clear_rules()
    error = failure(client, EVENTS["empty"])
    assert (error.status, error.definite, error.upstream_status, error.body) == (429, False, 0, b"")
    assert upstream.calls(event_id=EVENTS["empty"]) == 0


def test_pause_ends(make: Make, upstream: Standin) -> None:
    """When the pause is over, all is well."""
    pause = Pause(0.05)
    client = make(pause=pause)
    upstream.rule("events", times=1, status=429)
    assert isinstance(failure(client, EVENTS["plain"]), Paused)
    until(lambda: not pause.left)
    assert fetch(client, EVENTS["mixed"])["names"] == ["API", "Tess", "Bram"]


# Sockets


@contextlib.contextmanager
def scripted(*connections: list[bytes]) -> Iterator[str]:
    """Serve one connection after the other, a reply to each request; without one the connection is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for replies in connections:
                sock, _ = listener.accept()
                with sock:
                    for reply in replies:
                        request = b""
                        while b"\r\n\r\n" not in request:
                            if not (data := sock.recv(65536)):
                                break
                            request += data
                        sock.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join(10)
        assert not thread.is_alive(), "there were fewer connections than expected"


def get(transport: Transport) -> bytes:
    return transport.get("", deadline=time.monotonic() + 5, limit=1000).body


REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize("last_words", [[], [b""]], ids=["closed before", "closed upon the request"])
def test_a_kept_connection_that_is_closed(last_words: list[bytes]) -> None:
    """A kept connection that the upstream has closed, or closes upon the next request, is replaced by a new one."""
    with scripted([REPLY, *last_words], [REPLY]) as base_url:
        transport = Transport(base_url=base_url, headers={}, connections=2)
        assert (get(transport), get(transport)) == (b"{}", b"{}")
        transport.close()


def test_a_new_connection_that_is_closed() -> None:
    """A new connection that is closed without an answer is a fault, and is not tried again."""
    with scripted([b""]) as base_url:
        transport = Transport(base_url=base_url, headers={}, connections=2)
        with pytest.raises(ConnectionError):
            get(transport)
        transport.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"hello\r\n\r\n", b"\x00" * 100, b"HTTP/1.1 200 " + b"a" * 70_000,
        b"HTTP/1.1 abc OK\r\n\r\n", b"HTTP/1.1 099 Low\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
    ],
)  # fmt: skip
def test_no_http(reply: bytes) -> None:
    """What is not HTTP, or breaks off, is a fault."""
    with scripted([reply]) as base_url:
        transport = Transport(base_url=base_url, headers={}, connections=1)
        with pytest.raises(ConnectionError):
            get(transport)
        transport.close()


def test_limit() -> None:
    """A body is read up to its limit and one byte more."""
    with scripted([b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 200_000]) as base_url:
        transport = Transport(base_url=base_url, headers={}, connections=1)
        assert len(get(transport)) == 1001
        transport.close()


# The token


def echoes(token: str) -> list[bytes]:
    """Return the token as an upstream may echo it."""
    escaped = "".join(f"\\u{ord(char):04x}" for char in token)
    some = token.replace("-", "\\u002d").replace("a", "\\u0061")
    return [
        f"Token {token} is not valid".encode(),
        json.dumps({"error": {"message": f"bad token {token}", token: [token]}}).encode(),
        f'{{"error": "{escaped} {some}"}}'.encode(),
        f'<html>not JSON: "{escaped}" "{some}"'.encode(),
        "".join(f"&#{ord(char)};" for char in token).encode(),
        "".join(f"&#x{ord(char):X};" for char in token).encode(),
        f"<a href='?{''.join(f'%{ord(char):02X}' for char in token)}'>".encode(),
        f"<p>{html.escape(token)}".encode(),
        json.dumps({"body": json.dumps({"token": token}), "twice": json.dumps(json.dumps(token))}).encode(),
    ]


def readings(body: bytes) -> str:
    """Return what a reader can make of a body: as it is, and with escapes of several kinds undone."""
    text = body.decode(errors="replace")
    plain = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    plain = re.sub(r"\\+", "", html.unescape(plain))
    return text + re.sub("%([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), plain)


@pytest.mark.parametrize("token", [TOKEN, 'q"u/o\\t<e>&', "x"])
@pytest.mark.parametrize("status", [401, 404, 500])
def test_token_is_blanked_out(make: Make, upstream: Standin, token: str, status: int) -> None:
    """The token is in no error that is passed on, however the upstream writes it."""
    for body in echoes(token):
        rule = upstream.rule(status=status, body=body)
        error = failure(make(token=token), EVENTS["plain"])
        assert token.replace("\\", "") not in readings(error.body).replace("***", "")
        assert b"***" in error.body
        rule.remove()


@pytest.mark.parametrize("before", range(65536 - len(TOKEN) - 1, 65536 + 2, 4))
def test_token_is_not_cut_out(make: Make, upstream: Standin, before: int) -> None:
    """Where a body is cut at 64 KiB, no part of the token is left at its end."""
    upstream.rule("events", status=500, body=b"." * before + TOKEN.encode() + b"!" * 10)
    body = failure(make(), EVENTS["plain"]).body
    assert len(body) <= 65536
    assert set(body) <= set(b".*!")


def test_a_body_without_the_token_keeps_its_bytes(make: Make, upstream: Standin) -> None:
    """A body that is passed on keeps its bytes: escapes, blanks, doubled keys, and what is no UTF-8."""
    for body in (b'{"a" : "\\u00e9", "a":1.0e5}\r\n', b"\xff\xfe\x00", b"\\u002d %2D &#45;", b"." * 65536):
        rule = upstream.rule("events", status=500, body=body)
        assert failure(make(), EVENTS["plain"]).body == body
        rule.remove()


def test_token_in_titles_and_names(make: Make, upstream: Standin, caplog: pytest.LogCaptureFixture) -> None:
    """The token is blanked out of titles and names."""
    event_id = new_id()
    upstream.add_event(event_id, title=f"<{TOKEN}>", names=[TOKEN, f"A{TOKEN}B{TOKEN}"])
    with caplog.at_level(logging.DEBUG):
        answer = fetch(make(), event_id)
    assert answer == {"id": event_id, "title": "<***>", "names": ["***", "A***B***"]}
    assert TOKEN not in caplog.text


# As a program


def run(capsys: pytest.CaptureFixture[str], *arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run the client as a program; return its status, and what it said on stdout and stderr."""
    status = c42client.main(list(arguments), environ)
    return status, *capsys.readouterr()


def test_program(capsys: pytest.CaptureFixture[str], upstream: Standin) -> None:
    """`python c42client.py EVENT_ID` prints the merged answer, or says in one line why there is none."""
    right = {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url}
    answer = {"id": EVENTS["untitled"], "title": None, "names": ["API", "Noor"]}
    status, said, complaint = run(capsys, EVENTS["untitled"], **right)
    assert (status, json.loads(said), complaint) == (0, answer, "")
    assert run(capsys, EVENTS["unknown"], **right) == (1, "", "Calendar42 answered 404\n")
    wrong = right | {"C42_TOKEN": "wrong-token"}
    assert run(capsys, EVENTS["plain"], **wrong) == (1, "", "Calendar42 answered 401\n")
    status, said, complaint = run(capsys, EVENTS["plain"], **right, C42_TIMEOUT="soon")
    assert (status, said, complaint.count("\n"), complaint[:16]) == (2, "", 1, "C42_TIMEOUT=soon")
    status, said, complaint = run(capsys, EVENTS["plain"])
    assert (status, said, complaint[:20]) == (2, "", "C42_TOKEN is missing")
    for arguments in ((), ("a", "b")):
        assert run(capsys, *arguments, **right) == (2, "", "usage: python c42client.py EVENT_ID\n")
