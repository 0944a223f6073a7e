"""One client's connection: requests, the order of answers, and when it is closed."""

import itertools
import json
import re
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.request import MalformedRequest, parse
from tests.wire import Desk, Wire, splits

unhurried = settings(deadline=None)  # a busy machine is not a finding

HIT = b"GET /hit/a HTTP/1.1\r\nHost: a\r\n\r\n"
MISS = b"GET /miss HTTP/1.1\r\nHost: a\r\n\r\n"


def get(
    *lines: bytes,
    method: bytes = b"GET",
    target: bytes = b"/hit/",
    version: bytes = b"1.1",
) -> bytes:
    """Return the head of a request with a Host and these lines."""
    return b"\r\n".join(
        [method + b" " + target + b" HTTP/" + version, b"Host: a", *lines, b"", b""]
    )


def without_date(received: bytes | bytearray) -> bytes:
    """Return what a client received, but for the Date of the answers."""
    return re.sub(rb"Date: [^\r]+", b"", received)


# Requests that are rejected

LINES = {
    "two spaces": (b"GET  /hit/ HTTP/1.1", 400),
    "a space at the end": (b"GET /hit/ HTTP/1.1 ", 400),
    "a tab": (b"GET\t/hit/ HTTP/1.1", 400),
    "a space at the beginning": (b" GET /hit/ HTTP/1.1", 400),
    "no target": (b"GET HTTP/1.1", 400),
    "no method": (b"/hit/ HTTP/1.1", 400),
    "an odd method": (b"G(T /hit/ HTTP/1.1", 400),
    "a small method": (b"get /hit/ HTTP/1.1", 400),
    "a small HEAD": (b"head /hit/ HTTP/1.1", 400),
    "a method in mixed case": (b"Get /hit/ HTTP/1.1", 400),
    "a small version": (b"GET /hit/ http/1.1", 400),
    "HTTP/0.9": (b"GET /hit/", 400),
    "version 0.9": (b"GET /hit/ HTTP/0.9", 505),
    "version 1.2": (b"GET /hit/ HTTP/1.2", 505),
    "version 2.0": (b"GET /hit/ HTTP/2.0", 505),
    "version 1": (b"GET /hit/ HTTP/1", 400),
    "version 1.10": (b"GET /hit/ HTTP/1.10", 400),
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\x00", 400),
    "NUL in the target": (b"GET /hit/\x00 HTTP/1.1", 400),
    "no ASCII in the target": (b"GET /hit/\xc3\xa9 HTTP/1.1", 400),
    "no path": (b"GET hit/ HTTP/1.1", 400),
    "a star": (b"GET * HTTP/1.1", 400),
    "another scheme": (b"GET ftp://a/hit/ HTTP/1.1", 400),
    "an address without a host": (b"GET http:///hit/ HTTP/1.1", 400),
    "an address with a user": (b"GET http://user@a/hit/ HTTP/1.1", 400),
    "a fragment": (b"GET /hit/#a HTTP/1.1", 400),
    "a fragment of a query": (b"GET /hit/?a#b HTTP/1.1", 400),
    "a fragment of an address": (b"GET http://a#/hit/ HTTP/1.1", 400),
    "nothing but a fragment": (b"GET # HTTP/1.1", 400),
    "an authority": (b"CONNECT a:443 HTTP/1.1", 400),
    "a bare LF": (b"GET /hit/ HTTP/1.1\nX: y", 400),
    "a bare CR": (b"GET /hit/ HTTP/1.1\rX: y", 400),
}
FIELDS = {
    "length and chunked": ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], 400),
    "chunked and length": ([b"Transfer-Encoding: chunked", b"Content-Length: 5"], 400),
    "chunked and length, odd case": (
        [b"tRANSFER-eNCODING: Chunked", b"cONTENT-lENGTH: 5"],
        400,
    ),
    "two lengths": ([b"Content-Length: 5", b"Content-Length: 6"], 400),
    "one length twice": ([b"Content-Length: 5", b"Content-Length: 5"], 400),
    "a list of lengths": ([b"Content-Length: 5, 5"], 400),
    "a signed length": ([b"Content-Length: +5"], 400),
    "a negative length": ([b"Content-Length: -5"], 400),
    "a hexadecimal length": ([b"Content-Length: 0x5"], 400),
    "an empty length": ([b"Content-Length: "], 400),
    "a length with an underscore": ([b"Content-Length: 1_0"], 400),
    "a length with a space": ([b"Content-Length: 1 0"], 400),
    "a length beyond all bounds": ([b"Content-Length: 99999999999999999999999"], 400),
    "a folded field": ([b"X: y", b" z"], 400),
    "a field folded with a tab": ([b"X: y", b"\tz"], 400),
    "a folded length": ([b"Content-Length:", b" 5"], 400),
    "a space before the colon": ([b"X : y"], 400),
    "a tab before the colon": ([b"X\t: y"], 400),
    "a space before the colon of a length": ([b"Content-Length : 5"], 400),
    "no colon": ([b"X"], 400),
    "no name": ([b": y"], 400),
    "a space in a name": ([b"X Y: z"], 400),
    "no ASCII in a name": ([b"\xc3\xa9: y"], 400),
    "NUL in a name": ([b"X\x00: y"], 400),
    "NUL in a value": ([b"X: y\x00z"], 400),
    "a control character in a value": ([b"X: y\x01z"], 400),
    "DEL in a value": ([b"X: y\x7fz"], 400),
    "a bare CR in a value": ([b"X: y\rz"], 400),
    "two CRs": ([b"X: y\r"], 400),
    "a bare LF after a field": ([b"X: y\nZ: z"], 400),
    "a bare LF in the empty line": ([b"X: y\n"], 400),
    "a chunked body": ([b"Transfer-Encoding: chunked"], 411),
    "a zipped body": ([b"Transfer-Encoding: gzip, chunked"], 411),
    "chunked twice": ([b"Transfer-Encoding: chunked, chunked"], 400),
    "a coding that does not end": ([b"Transfer-Encoding: gzip"], 400),
    "no coding at all": ([b"Transfer-Encoding: identity"], 400),
    "a coding that looks like another": ([b"Transfer-Encoding: xchunked"], 400),
    "a vertical tab before a coding": ([b"Transfer-Encoding: \x0bchunked"], 400),
    "a body of 64 KiB and a byte": ([b"Content-Length: 65537"], 413),
    "two Hosts": ([b"Host: b"], 400),
    "the same Host twice": ([b"Host: a"], 400),
}
HOSTS = [
    b"a b", b"a/b", b"user@a", b"a, b", b"\xc3\xa9", b"\xe9", b"a:\xb2", b"a:b",
    b"a:123456", b"a..b", b".a",
    b"a" * 64, b"a" * 9000,
    b"a." * 128, b"[::1", b"::1", b"[g]", b'"', b"<a>", b"a\\b", b"a?b", b"a#b",
    b"a:80:80",
]  # fmt: skip
LARGE = {
    "a target of 100 KB": (
        b"GET /hit/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        414,
    ),
    "a field of 64 KiB": (get(b"Accept: " + b"a" * 65536), 431),
    "many fields": (get(*[b"X-%d: y" % number for number in range(4000)]), 431),
    "101 fields": (get(*[b"X-%d: y" % number for number in range(100)]), 431),
    "a byte too much": (get(b"X: " + b"a" * (32768 - len(get(b"X: ")) + 1)), 431),
}
BAD: dict[str, tuple[bytes, int]] = {
    **{
        name: (line + b"\r\nHost: a\r\n\r\n", status)
        for name, (line, status) in LINES.items()
    },
    **{
        name: (get(*lines, method=b"POST"), status)
        for name, (lines, status) in FIELDS.items()
    },
    **{
        f"Host {host[:12]!r}": (
            b"GET /hit/ HTTP/1.1\r\nHost: " + host + b"\r\n\r\n",
            400,
        )
        for host in HOSTS
    },
    "a bad Host in HTTP/1.0": (b"GET /hit/ HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
    "no Host": (b"GET /hit/ HTTP/1.1\r\n\r\n", 400),
    "chunked in HTTP/1.0": (get(b"Transfer-Encoding: chunked", version=b"1.0"), 411),
    "HTTP/0.9 without an empty line": (b"GET /hit/\r\n", 400),
    "two empty lines before": (b"\r\n\r\n" + HIT, 400),
    "a bare LF before": (b"\n" + HIT, 400),
    "a bare CR before": (b"\r" + HIT, 400),
    **LARGE,
}


@pytest.mark.parametrize(
    ("raw", "status"), [pytest.param(*case, id=name) for name, case in BAD.items()]
)
def test_rejected(raw: bytes, status: int) -> None:
    """A bad request gets its error in the envelope, and the connection is closed.

    Bad means malformed, ambiguous or too large. Nothing that follows is processed,
    however the bytes are split and whatever came before.
    """
    desk = Desk()
    for before in (b"", HIT, MISS):
        for pieces in splits(raw + HIT * 2) if len(raw) < 5000 else [[raw + HIT * 2]]:
            wire = Wire(desk).send(before)
            wire.send(*pieces)
            wire.settle()
            answer = wire.answers()[-1]
            assert (answer.status, answer.headers["Connection"]) == (status, "close")
            assert json.loads(answer.body)["error"]["status_code"] == status
            assert len(wire.answers()) == (2 if before else 1)
            assert wire.ended
    assert {request.path for request in desk.seen} == {"/hit/a", "/miss"}


def test_a_head_without_an_end() -> None:
    """A head is rejected as soon as 32 KiB of it have arrived without its end."""
    head = get(b"X: " + b"a" * 32768)[:32768]
    wire = Wire(Desk()).send(head[:-1])
    assert wire.received == b""
    (answer,) = wire.send(head[-1:]).answers()
    assert answer.status == 431


MESSAGES = {
    "two spaces": "the request line is malformed",
    "version 2.0": "only HTTP/1.1 and HTTP/1.0 are supported",
    "a bare LF after a field": "a header line ends in a bare LF",
    "no path": "the target is neither a path nor an http address",
    "a chunked body": "a body needs a Content-Length, and no Transfer-Encoding",
    "two Hosts": "the request needs one valid Host header",
    "a small method": "methods are case-sensitive: expected capitals",
    "101 fields": "there are too many header fields",
    "a target of 100 KB": "request line and headers are too large",
    "a body of 64 KiB and a byte": "the body is too large",
    "a space before the colon": "a header field is malformed: Invalid header token",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_rejections_say_why(name: str) -> None:
    """The message of a rejection says what is wrong with the request."""
    (answer,) = Wire(Desk()).send(BAD[name][0]).answers()
    assert json.loads(answer.body)["error"]["message"] == MESSAGES[name]


def test_rejected_head_requests() -> None:
    """A rejected HEAD request gets no body; one with another method gets one."""
    for method, has_body in ((b"HEAD", False), (b"HEADS", True), (b"GET", True)):
        (answer,) = (
            Wire(Desk())
            .send(method + b" * HTTP/1.1\r\nHost: a\r\n\r\n")
            .answers(method.decode())
        )
        assert (answer.status, bool(answer.body)) == (400, has_body)


def test_rejected_before_the_head_is_complete() -> None:
    """A head that can't become a request is rejected without waiting for its rest.

    TLS and HTTP/0.9 begin with such heads.
    """
    for raw, status in (
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET /\r\n", 400),
        (b"GET / HTTP/3.0\r\n", 505),
    ):
        assert [answer.status for answer in Wire(Desk()).send(raw).answers()] == [
            status
        ]
    assert Wire(Desk()).send(b"GET / HTTP/1.1\r\nHost: a\r\n").answers() == []


# Requests that are answered

GOOD = {
    "plain": get(),
    "a query": get(target=b"/hit/?a=b?c&d"),
    "encoded": get(target=b"/hit/%61%2f%ff"),
    "brackets": get(target=b"/hit/?event_ids=[a,b]"),
    "HEAD": get(method=b"HEAD"),
    "OPTIONS": get(method=b"OPTIONS"),
    "a method of its own": get(method=b"BREW"),
    "POST": get(b"Content-Length: 5", method=b"POST") + b"hello",
    "POST of requests": get(b"Content-Length: %d" % len(HIT), method=b"POST") + HIT,
    "an empty line before": b"\r\n" + get(),
    "an empty line before a HEAD": b"\r\n" + get(method=b"HEAD"),
    "a POST after an empty line": b"\r\n"
    + get(b"Content-Length: 2", method=b"POST")
    + b"hi",
    "100 fields": get(*[b"X-%d: y" % number for number in range(99)]),
    "an empty POST": get(b"Content-Length: 0", method=b"POST"),
    "a body of 64 KiB": get(b"Content-Length: 65536", method=b"POST") + b"x" * 65536,
    "an address": b"GET http://b.example:80/hit/?x HTTP/1.1\r\nHost: a\r\n\r\n",
    "an address without a path": b"OPTIONS HTTPS://a HTTP/1.1\r\nHost: a\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "an empty Host": b"GET /hit/ HTTP/1.1\r\nHost:\r\n\r\n",
    "an IPv6 Host": b"GET /hit/ HTTP/1.1\r\nHost: [::FFff:1]:5000\r\n\r\n",
    "no ASCII in a value": get(b"X: \xe9\xff"),
    "an empty value": get(b"X:", b"Y: \t "),
    "one name twice": get(b"Accept: a", b"ACCEPT: b"),
    "an upgrade": get(
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAAQ",
    ),
    "an upgrade with a body": get(
        b"Connection: Upgrade", b"Upgrade: x", b"Content-Length: 2", method=b"POST"
    )
    + b"hi",
    "as long as it may be": get(b"X: " + b"a" * (32768 - len(get(b"X: ")))),
    "kept alive": get(b"Connection: keep-alive"),
    "closed": get(b"Connection: close"),
    "closed, among other things": get(b"Connection: foo, CLOSE"),
    "almost closed": get(b"Connection: closeX"),
    "HTTP/1.0": get(version=b"1.0"),
    "HTTP/1.0 without a Host": b"GET /hit/ HTTP/1.0\r\n\r\n",
    "HTTP/1.0 kept alive": get(b"Connection: Keep-Alive", version=b"1.0"),
}


@pytest.mark.parametrize(
    "raw", [pytest.param(raw, id=name) for name, raw in GOOD.items()]
)
def test_same_however_it_arrives(raw: bytes) -> None:
    """A request gets the same answer however it arrives.

    It may have been parsed before or not, and come on a new or a reused connection, in
    one piece or in many, alone or between others.
    """

    def transcript(desk: Desk, *pieces: bytes, before: bytes = b"") -> Any:
        wire = Wire(desk).send(before)
        wire.settle()
        seen, received = len(desk.seen), len(wire.received)
        wire.send(*pieces)
        wire.settle()
        return desk.seen[seen:], without_date(wire.received[received:]), wire.open

    expected = transcript(Desk(), raw)
    assert len(expected[0]) == 1
    warm = Desk()
    for pieces in splits(raw) if len(raw) < 5000 else [[raw]]:
        for before in (
            b"",
            HIT,
            get(b"Content-Length: 3", method=b"POST") + b"abc",
            raw if expected[2] else b"",
        ):
            for desk in (Desk(), warm, warm):
                assert transcript(desk, *pieces, before=before) == expected
    if expected[2]:
        twice = transcript(warm, raw + raw)
        assert twice == (expected[0] * 2, expected[1] * 2, True)


@pytest.mark.parametrize(
    ("name", "path", "query"),
    [
        ("a query", "/hit/", "a=b?c&d"),
        ("encoded", "/hit/a/\xff", ""),
        ("an address", "/hit/", "x"),
        ("an address without a path", "/", ""),
        ("a star", "/", ""),
    ],
)
def test_targets(name: str, path: str, query: str) -> None:
    """Path and query are the target's, and an absolute target's host replaces Host."""
    request = parse(GOOD[name])
    assert (request.path, request.query) == (path, query)
    assert request.headers["host"] == ("b.example:80" if name == "an address" else "a")


def test_fields() -> None:
    """Names are lower-cased, values stripped, and repeated ones joined by commas."""
    headers = parse(get(b"X:  Xy \t", b"ACCEPT: a", b"accept: b", b"E: \xe9")).headers
    assert headers == {"host": "a", "x": "Xy", "accept": "a, b", "e": "\xe9"}


@pytest.mark.parametrize(
    ("name", "said", "stays"),
    [
        ("plain", "keep-alive", True),
        ("kept alive", "keep-alive", True),
        ("closed", "close", False),
        ("closed, among other things", "close", False),
        ("almost closed", "keep-alive", True),
        ("HTTP/1.0", "close", False),
        ("HTTP/1.0 without a Host", "close", False),
        ("HTTP/1.0 kept alive", "keep-alive", True),
    ],
)
def test_keeps_a_connection_or_closes_it(name: str, said: str, stays: bool) -> None:
    """HTTP/1.1 keeps a connection by default, HTTP/1.0 on request.

    After the last answer, nothing is processed.
    """
    raw = GOOD[name].replace(
        b"Host: a", b"Host: keeps.connections"
    )  # fields that no other test has had parsed
    wire = Wire(desk := Desk()).send(raw + HIT)
    first, *rest = wire.answers()
    assert (first.headers["Connection"], len(rest), wire.open) == (
        said,
        int(stays),
        stays,
    )
    assert len(desk.seen) == 1 + stays


def test_head_has_no_body() -> None:
    """HEAD gets the headers of GET, with its Content-Length, but no body.

    The next request on the connection is answered.
    """
    asked = [get(method=b"HEAD"), get(method=b"HEAD", target=b"/miss"), HIT]
    wire = Wire(Desk()).send(b"".join(asked))
    wire.settle()
    hit, miss, last = wire.answers("HEAD", "HEAD", "GET")
    assert (hit.status, hit.body, miss.status, miss.body) == (200, b"", 200, b"")
    assert int(hit.headers["Content-Length"]) == len(b'["HEAD", "/hit/", ""]')
    assert last.body


def test_expect() -> None:
    """A client that expects a 100 gets one, unless its body is there or is rejected."""
    asks = get(b"Expect: 100-Continue", b"Content-Length: 2", method=b"POST")
    wire = Wire(Desk()).send(asks)
    assert [answer.status for answer in wire.answers()] == [100]
    assert [answer.status for answer in wire.send(b"h", b"i").answers()] == [100, 200]
    assert [answer.status for answer in Wire(Desk()).send(asks + b"hi").answers()] == [
        200
    ]
    assert Wire(Desk()).send(asks.replace(b"HTTP/1.1", b"HTTP/1.0")).answers() == []
    assert [
        answer.status
        for answer in Wire(Desk()).send(asks.replace(b": 2", b": 65537")).answers()
    ] == [413]
    wire = Wire(Desk()).send(MISS, asks)
    assert wire.answers() == []  # not before the answer to the first
    wire.settle()
    assert [answer.status for answer in wire.answers()] == [200, 100]


@pytest.mark.parametrize("after", [HIT, b"", b"\r\n"])
def test_an_empty_line_after_a_body(after: bytes) -> None:
    """An empty line after a body, as some clients send, changes nothing.

    The connection stays open for as long as any idle one, and takes requests.
    """
    post = get(b"Content-Length: 2", method=b"POST") + b"hi\r\n"
    wire = Wire(desk := Desk()).send(post)
    desk.tick(619)
    assert wire.open
    wire.send(after)
    statuses = [answer.status for answer in wire.answers()]
    assert statuses == {HIT: [200, 200], b"": [200], b"\r\n": [200, 400]}[after]
    wire = Wire(desk := Desk()).send(post)
    desk.tick(620)
    assert (wire.closed, len(wire.answers())) == (True, 1)


ORIGIN = b"Origin: https://a.example"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (get(ORIGIN, target=b"*"), "https://a.example"),
        (get(b"oRiGiN:\thttps://a.example \t", b"X"), "https://a.example"),
        (get(ORIGIN, b"Transfer-Encoding: chunked"), "https://a.example"),
        (get(ORIGIN, b"Content-Length: 65537"), "https://a.example"),
        (get(ORIGIN, b"X: " + b"y" * 32768), "https://a.example"),
        (get(b"X: " + b"y" * 32768, ORIGIN), ""),
        (get(ORIGIN, b"Origin: https://b.example", b"X"), ""),
        (get(b"X-Origin: https://a.example", b"X"), ""),
        (b"GET /" + b"a" * 40000, ""),
        (b"\x16\x03\x01", ""),
    ],
)
def test_rejections_know_the_origin(raw: bytes, expected: str) -> None:
    """A rejected request's Origin is handed on as far as it can be read.

    The app needs it for the answer: pages of that origin may read some errors.
    """
    (answer,) = Wire(Desk()).send(raw).answers()
    assert answer.status >= 400
    assert answer.headers["X-Origin"] == expected


@pytest.mark.parametrize(
    "raw",
    [
        get(ORIGIN)[:-1],
        get(ORIGIN, b"Content-Length: 9", method=b"POST"),
        get(ORIGIN, b"Content-Length: 9", method=b"POST") + b"half",
    ],
)
def test_late_requests_know_the_origin(raw: bytes) -> None:
    """A request that doesn't arrive in time is rejected with its origin."""
    wire = Wire(desk := Desk()).send(raw)
    desk.tick(10)
    (answer,) = wire.answers()
    assert (answer.status, answer.headers["X-Origin"]) == (408, "https://a.example")


def test_work_that_fails_knows_the_origin() -> None:
    """The 500 for a request whose work failed has the request's origin."""
    wire = Wire(desk := Desk()).send(get(ORIGIN, target=b"/miss"))
    _, on_done = desk.waiting.popleft()
    on_done(None)
    (answer,) = wire.answers()
    assert (answer.status, answer.headers["X-Origin"]) == (500, "https://a.example")


# Order


def test_pipelined_requests_are_answered_in_order() -> None:
    """200 pipelined hits and misses are answered in order, one at a time."""
    wire = Wire(desk := Desk())
    paths = [f"/{'hit' if number % 3 else 'miss'}/{number}" for number in range(200)]
    wire.send(b"".join(get(target=path.encode()) for path in paths))
    while desk.waiting:
        assert len(desk.waiting) == 1
        desk.finish()
        wire.run()
    assert [json.loads(answer.body)[1] for answer in wire.answers()] == paths


def test_bodies_are_discarded() -> None:
    """A body is not taken for a request, even if it looks like one that came before."""
    wire = Wire(desk := Desk()).send(HIT)
    post = get(b"Content-Length: %d" % len(HIT), method=b"POST", target=b"/miss")
    wire.send(post, HIT)  # the body in a read of its own
    desk.finish()
    wire.send(post + HIT + HIT)
    wire.settle()
    for _ in range(2):
        wire.send(MISS)
        wire.settle()
    assert [request.path for request in desk.seen] == [
        "/hit/a",
        "/miss",
        "/miss",
        "/hit/a",
        "/miss",
        "/miss",
    ]


def test_the_fast_path_answers_at_once() -> None:
    """A fast path's answer is sent in the turn that read the request's last byte."""
    wire = Wire(Desk())
    for count, pieces in enumerate(([HIT], [HIT], [HIT[:20], HIT[20:]]), 1):
        for piece in pieces:
            wire.queue(piece)
            wire.turn()
        assert len(wire.answers()) == count


CLOSES = get(b"Connection: close", target=b"/miss")


@pytest.mark.parametrize("raw", [HIT, MISS, HIT + MISS, MISS + HIT, CLOSES])
def test_half_closed_clients_get_their_answers(raw: bytes) -> None:
    """A client that half-closes gets all its answers; then the connection is closed."""
    wire = Wire(desk := Desk()).send(raw, half_close=True)
    if desk.waiting:
        assert not wire.closed
        wire.settle()
    assert len(wire.answers()) == raw.count(b"GET")
    assert (wire.closed, wire.aborted) == (True, False)


@pytest.mark.parametrize(
    "raw",
    [b"", b"GET / HT", HIT[:-1], get(b"Content-Length: 5", method=b"POST") + b"hell"],
)
def test_unfinished_requests_are_dropped(raw: bytes) -> None:
    """A request that is incomplete when the client half-closes is dropped."""
    wire = Wire(desk := Desk()).send(raw, half_close=True)
    assert (bytes(wire.received), wire.closed, desk.seen) == (b"", True, [])


def test_a_client_that_vanishes() -> None:
    """An answer for a client that has disconnected is dropped."""
    wire = Wire(desk := Desk()).send(MISS)
    wire.abort()
    wire.run()
    desk.finish()
    assert (bytes(wire.received), desk.server.connections) == (b"", set())


def test_a_fast_path_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """If a request's fast path fails, that is logged, and a worker answers it."""
    wire = Wire(desk := Desk()).send(get(target=b"/hit/broken"), HIT)
    assert (wire.answers(), len(desk.waiting)) == ([], 1)
    wire.settle()
    assert [answer.status for answer in wire.answers()] == [200, 200]
    assert (caplog.records[0].name, "ZeroDivisionError" in caplog.text) == (
        "c42c",
        True,
    )


def test_a_request_without_a_fast_path(caplog: pytest.LogCaptureFixture) -> None:
    """A request without a fast path goes to a worker, and nothing is logged."""
    Wire(desk := Desk(find_fast_path=lambda _: None)).send(HIT)
    assert (len(desk.waiting), caplog.records) == (1, [])


def test_work_that_fails() -> None:
    """If work for a request fails, the client gets a 500, and its connection goes on.

    The 500 is in the envelope.
    """
    wire = Wire(desk := Desk()).send(MISS + HIT)
    _, done = desk.waiting.popleft()
    done(None)
    failed, other = wire.answers()
    assert (
        failed.status,
        json.loads(failed.body)["error"]["status_code"],
        other.status,
    ) == (500, 500, 200)
    assert (
        json.loads(failed.body)["error"]["message"]
        == "the service failed; its log says why"
    )


def test_answers_while_the_server_closes() -> None:
    """While the server is closing, each answer is the last of its connection.

    It says so: `Connection: close`.
    """
    desk = Desk()
    wire = Wire(desk).send(HIT)
    desk.server.closing = True
    wire.send(HIT + HIT)
    assert [answer.headers.get("Connection") for answer in wire.answers()] == [
        "keep-alive",
        "close",
    ]


# Time


def test_date() -> None:
    """Each answer has a Date in the format of RFC 9110, 5.6.7."""
    (answer,) = Wire(Desk()).send(HIT).answers()
    assert re.fullmatch(
        r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT",
        answer.headers["Date"],
    )


@pytest.mark.parametrize("before", [b"", HIT])
def test_idle_connections_are_closed(before: bytes) -> None:
    """A connection that has been idle for 620 s is closed, with nothing sent on it.

    The time counts from its last answer.
    """
    wire = Wire(desk := Desk()).send(before)
    if before:
        desk.tick(600)
        wire.send(before)
    received = len(wire.received)
    desk.tick(619.5)
    assert wire.open
    desk.tick(0.5)
    assert (wire.closed, len(wire.received)) == (True, received)


@pytest.mark.parametrize(
    "raw", [get(), get(b"Content-Length: 100", method=b"POST") + b"x" * 100]
)
def test_slow_requests_are_rejected(raw: bytes) -> None:
    """A client that sends a byte a second gets a 408 after 10 s, in head or body."""
    wire = Wire(desk := Desk())
    desk.tick(60)
    for seconds in range(10):
        assert wire.open, f"closed after {seconds} s"
        wire.send(raw[:-20] if seconds == 0 else raw[seconds - 21 : seconds - 20])
        desk.tick(1)
    (answer,) = wire.answers()
    assert (answer.status, wire.open, desk.seen) == (408, False, [])
    assert b'"the request did not arrive in time"' in answer.body


def test_a_request_in_time() -> None:
    """The time limit for a request starts with its first byte.

    It doesn't start when the client connected or got its last answer.
    """
    wire = Wire(desk := Desk())
    for _ in range(3):
        desk.tick(60)
        wire.send(HIT[:5])
        desk.tick(9.5)
        wire.send(HIT[5:])
    assert len(wire.answers()) == 3


def test_work_takes_its_time() -> None:
    """No time limit of the connection applies while a worker has the request."""
    wire = Wire(desk := Desk()).send(MISS)
    for _ in range(10):
        desk.tick(60)
    desk.finish()
    assert (len(wire.answers()), wire.open) == (1, True)


def test_a_known_request_within_another() -> None:
    """What looks like a request that is known may be a part of another one."""
    wire = Wire(desk := Desk()).send(HIT, HIT)
    wire.send(b"GET /hit/other HTTP/1.1\r\nX: ", HIT)
    assert [request.path for request in desk.seen] == ["/hit/a", "/hit/a", "/hit/other"]
    assert len(wire.answers()) == 3


def test_who_was_active_lately() -> None:
    """A client was active when it connected, and when it was answered."""
    wire = Wire(desk := Desk())
    (connection,) = desk.server.connections
    for _ in range(2):
        desk.loop.now += 0.4
        assert connection.was_active_within(0.5)
        desk.loop.now += 0.1
        assert not connection.was_active_within(0.5)
        wire.send(MISS)
        desk.loop.now += 5
        wire.settle()


def test_the_time_to_take_an_answer_begins_with_it() -> None:
    """The 30 s to take a byte are counted from when the answer was sent."""
    desk = Desk()
    Wire(desk).send(HIT)  # so that it is remembered
    wire = Wire(desk)
    wire.stuck = True
    desk.loop.now += 0.5
    wire.send(HIT)
    desk.tick(29.75)
    assert not wire.aborted
    desk.tick(0.25)
    assert wire.aborted


def test_clients_that_take_nothing_are_dropped() -> None:
    """A client that takes no byte for 30 s is dropped; one that takes some isn't."""
    desk = Desk()
    stuck, slow = Wire(desk), Wire(desk)
    for wire in (stuck, slow):
        wire.stuck = True
        wire.send(HIT)
    for _ in range(4):
        desk.tick(29.5)
        assert stuck.aborted == (desk.loop.now > 1030)
        slow.take(1)
        desk.tick(0.5)
        assert (stuck.aborted, slow.aborted) == (True, False)
    assert stuck.reset
    desk.tick(29.5)
    assert not slow.aborted
    desk.tick(0.5)
    assert slow.aborted, "it has taken nothing more"


def test_after_the_last_answer() -> None:
    """Data after the last answer is dropped, until the client closes or for 2 s."""
    desk = Desk()
    patient, hasty = (
        Wire(desk).send(get(b"Connection: close")),
        Wire(desk).send(b"nonsense\r\n"),
    )
    for wire in (patient, hasty):
        wire.send(HIT * 1000)
        assert (wire.ended, wire.closed, wire.untaken) == (True, False, 0)
    patient.send(half_close=True)
    assert (patient.closed, patient.aborted) == (True, False)
    desk.tick(1.5)
    assert not hasty.closed
    desk.tick(0.5)
    assert hasty.closed
    assert len(desk.seen) == 1
    busy = Wire(desk).send(CLOSES, HIT)
    busy.settle()
    busy.send(HIT)
    assert (busy.ended, busy.closed, busy.untaken) == (True, False, 0)


def test_after_the_last_answer_was_taken_slowly() -> None:
    """A client that has taken its last answer at last is heard until it closes.

    What it has taken no longer counts among the answers that clients don't take.
    """
    desk = Desk(max_unsent=150)  # bytes: one answer's
    wire = Wire(desk)
    wire.stuck = True
    wire.send(get(b"Connection: close"))
    assert 75 < wire.unsent < 150
    wire.send(HIT)
    assert wire.untaken == len(HIT)
    wire.take(wire.unsent)
    other = Wire(desk)
    other.stuck = True
    other.send(HIT)
    assert not wire.aborted
    wire.run()
    assert wire.untaken == 0
    wire.send(half_close=True)
    assert (wire.closed, wire.aborted) == (True, False)


# Compared with another implementation

TOKENS = [
    b"GET", b"POST", b"HEAD", b"get", b"", b" ", b"\t", b"/", b"/hit/", b"/a?b", b"*",
    b"http://a/", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 ", b"\r", b"\n",
    b"\r\n", b"\x00", b"\xff", b"a", b":",
]  # fmt: skip
FIELD_LINES = [
    b"Host: a", b"Host: b", b"host:a", b"Host : a", b" Host: a", b"Content-Length: 5",
    b"Content-Length: 0", b"Content-Length: 3", b"Content-Length: 5, 5",
    b"Content-Length:+5", b"content-length : 5", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding:\tchunked", b"Transfer-Encoding: identity",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding : chunked",
    b"X-Y: z", b"X_Y: z", b"X:", b"X", b" a", b"Connection: close",
    b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"X: \xe9", b"X: a\rb", b"X: a\nb", b"Content-Length: 5\r", b"\r", b"\x0b: x",
]  # fmt: skip
line_ends = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"\r\r\n", b""])
request_lines = st.one_of(
    st.sampled_from(
        [b"GET /hit/ HTTP/1.1", b"POST /hit/ HTTP/1.1", b"GET /hit/ HTTP/1.0"]
    ),
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=6).map(b" ".join),
)
fields = st.lists(st.sampled_from(FIELD_LINES) | st.binary(max_size=8), max_size=5)
bodies = st.sampled_from(
    [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n", HIT, b"\r\n", b"hel"]
)


@st.composite
def one_request(draw: Any) -> bytes:
    """Return something like a request."""
    lines = [
        draw(request_lines),
        *(draw(fields) if draw(st.booleans()) else [b"Host: a", *draw(fields)]),
    ]
    raw: bytes = (
        b"".join(line + draw(line_ends) for line in lines)
        + draw(line_ends)
        + draw(bodies)
    )
    return raw


whole = st.sampled_from(
    [HIT, MISS, get(b"Content-Length: 5", method=b"POST") + b"hello"]
)
streams = st.lists(one_request() | whole, max_size=4)


def read_by_h11(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Return method and target of the requests that h11 finds.

    Each may have an empty line before it.
    """
    found: list[tuple[bytes, bytes]] = []
    while raw:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
        connection.receive_data(raw.removeprefix(b"\r\n"))
        connection.receive_data(b"")
        request = None
        event: Any = None
        try:
            while not isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                event = connection.next_event()
                if event in (h11.NEED_DATA, h11.PAUSED):
                    return found
                if isinstance(event, h11.Request):
                    request = event
        except h11.RemoteProtocolError:
            return found
        if request is None:
            return found
        found.append((request.method, request.target))
        connection.send(
            h11.Response(status_code=200, headers=[("Content-Length", "0")])
        )
        connection.send(h11.EndOfMessage())
        # h11 closes after each request of HTTP/1.0, whatever its client asks for.
        is_kept = (b"connection", b"keep-alive") in request.headers
        if connection.our_state is h11.MUST_CLOSE and not is_kept:
            return found
        raw, _ = connection.trailing_data
    return found


def read_by_us(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Return method and target of the requests that our connection finds."""
    desk = Desk(fast_below="")
    wire, found = Wire(desk).send(raw, half_close=True), []
    while desk.waiting:
        request, _ = desk.waiting[0]
        target = request.path + ("?" + request.query if request.query else "")
        found.append((request.method.encode(), target.encode("latin-1")))
        desk.finish()
        wire.run()
    return found


@settings(deadline=None, max_examples=100)
@given(streams)
@example([get(b"Connection: keep-alive", version=b"1.0"), HIT])
@example(
    [
        get(b"Content-Length: 5", b"Transfer-Encoding: chunked", method=b"POST")
        + b"0\r\n\r\n",
        HIT,
    ]
)
def test_finds_the_requests_that_h11_finds(parts: list[bytes]) -> None:
    """Whatever bytes come, h11 finds every request that we process, in its place."""
    raw = b"".join(parts)
    ours = read_by_us(raw)
    theirs = read_by_h11(raw)
    assert len(ours) <= len(theirs)
    for (our_method, our_target), (method, target) in zip(ours, theirs, strict=False):
        assert our_method == method
        assert target.endswith(our_target) or b"%" in target or our_target == b"/"


@unhurried
@given(streams, st.lists(st.integers(0, 2000), max_size=8))
def test_any_split_gives_the_same_answers(parts: list[bytes], cuts: list[int]) -> None:
    """Good and bad requests get the same answers however they are cut into reads."""
    raw = b"".join(
        part.replace(b"Expect", b"Except") for part in parts
    )  # 100 depends on what has arrived
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[begin:end] for begin, end in itertools.pairwise(places)]
    transcripts = []
    for sent in ([raw], pieces):
        wire = Wire(desk := Desk()).send(*sent)
        wire.settle()
        transcripts.append((without_date(wire.received), desk.seen, wire.open))
    assert transcripts[0] == transcripts[1]


@unhurried
@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([*TOKENS, *FIELD_LINES]), max_size=12).map(b"".join)
)
def test_any_bytes_are_a_request_or_rejected(raw: bytes) -> None:
    """Any bytes parse as a request or are rejected; nothing else is raised."""
    try:
        request = parse(raw)
    except MalformedRequest as error:
        assert error.args[0] in (400, 411, 505)  # noqa: PT017 - it needs not be raised
    else:
        assert request.path.startswith("/")
