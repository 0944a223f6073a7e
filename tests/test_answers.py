"""`answers` without a service: what Redis keeps, content types, and a hit's bytes."""

import json
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from flask import Flask
from hypothesis import example, given, settings
from hypothesis import strategies as st
from werkzeug.exceptions import ImATeapot, MethodNotAllowed, NotFound

from answers import EVENT_PREFIX, app_hooks, hits, response, value
from answers.loading import loader
from cache import FAULT, KINDS, NEGATIVE, OK, PAUSED, Found, Loaded, TooManyWaiting
from calendar42.errors import C42Error, Paused, TimedOut
from calendar42.ids import BadIds
from calendar42.payload import Event
from serving.interface import serialize
from serving.request import Request
from sharing.tier import FORMAT
from tests.cache_callers import Clock

unhurried = settings(deadline=None)  # a busy machine is not a finding

ENVELOPE = value.envelope(503, "later")
bodies = st.one_of(
    st.binary(min_size=1),
    st.sampled_from([ENVELOPE, b"{}", b'{"error":{}}', b"\n", "ü\n".encode()]),
)
seconds = st.floats(min_value=0, allow_infinity=False, exclude_min=True)
errors = st.builds(
    C42Error,
    endpoint=st.just("events"),
    message=st.text(),
    status=st.integers(400, 599),
    upstream_status=st.integers(0, 599),
    body=st.just(b"") | bodies,
    retry_after=st.just(0.0) | seconds,
)
good = st.builds(
    lambda title, names, lifetime: Loaded(
        value.success(Event("1", title, names)), OK, lifetime
    ),
    st.none() | st.text(),
    st.lists(st.text()),
    seconds,
)
bad = st.builds(
    lambda error, kind, lifetime, wait: Loaded(
        value.failure(error, extra_wait=wait, request_id=f"load-{wait}"), kind, lifetime
    ),
    errors,
    st.sampled_from([kind for kind in KINDS if kind != OK]),
    seconds,
    st.integers(0, 3600),
)


@unhurried
@given(good | bad)
def test_what_redis_keeps_is_read_as_it_was(loaded: Loaded) -> None:
    """An answer that is packed for Redis and unpacked is the same, types included."""
    unpacked = value.unpack(value.pack(loaded))
    assert unpacked == loaded
    assert (
        list(map(type, as_kept(unpacked)))
        == [bytes, int, str, str, int, int, str]
        == list(map(type, as_kept(loaded)))
    )
    assert type(unpacked.value) is type(loaded.value) is tuple, (
        "the garbage collector tracks any other"
    )


def test_what_redis_keeps_stays_the_same() -> None:
    """What Redis keeps has one form for each FORMAT.

    Instances of several versions share answers. If one of the two here
    changes, the other has to.
    """
    assert FORMAT == 6
    kept = Loaded(value.success(Event("1", "\u00dc", [])), OK, 252.0)
    assert value.pack(kept) == (
        b"\xb5{\x9b8\x1a\xf2\x81\xa0o\xba\x99\x1f*.s\xfe"
        b'["ok", 252.0, 200, "application/json", "\\"8ae40f06660b8fbcf41ecf8f\\"", '
        b'200, 0, ""]\n'
        b'{"id":"1","title":"\xc3\x9c","names":[]}'
    )


def test_half_a_surrogate_pair() -> None:
    """What JSON can hold and UTF-8 can't becomes one U+FFFD; whole pairs stay."""
    assert (
        value.encode(["\ud83d", "a\udfff\ud800b", "\U0001f600"])
        == '["\ufffd","a\ufffd\ufffdb","\U0001f600"]'.encode()
    )


def as_kept(loaded: Loaded) -> value.StoredTuple:
    return cast(value.StoredTuple, loaded.value)


@unhurried
@given(st.binary())
@example(b"[" * 100_000)
@example(b'"123456"\n')
def test_other_bytes_are_refused(packed: bytes) -> None:
    """Anything else that is found in Redis is refused with ValueError."""
    with pytest.raises(ValueError, match=r"^not a packed answer$"):
        value.unpack(packed)


@unhurried
@given(good | bad, st.integers(0), st.binary(max_size=8), st.integers(0, 8))
def test_a_changed_answer_is_refused(
    loaded: Loaded, at: int, new: bytes, length: int
) -> None:
    """A packed answer is refused if any bytes were lost, added or changed."""
    packed = value.pack(loaded)
    at %= len(packed) + 1
    changed = packed[:at] + new + packed[at + length :]
    if changed != packed:
        with pytest.raises(ValueError, match=r"^not a packed answer$"):
            value.unpack(changed)


@unhurried
@given(bad)
def test_an_error_is_json_in_the_envelope_or_plain_text(loaded: Loaded) -> None:
    """An error is JSON only in the envelope, and never what a browser would run."""
    kept = value.StoredAnswer(*as_kept(loaded))
    if kept.content_type == "application/json":
        error = json.loads(kept.body)["error"]
        assert [type(error[name]) for name in ("status_code", "message", "code")] == [
            int,
            str,
            str,
        ]
    else:
        assert kept.content_type in ("text/plain", "text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (
            b'{"error": {"status_code": 400, "message": "no", "code": "BAD_REQUEST"}}',
            "application/json",
        ),
        (
            b'{"error": {"status_code": 400, "message": "no", "code": "NO"}, "x": NaN}',
            None,
        ),
        (
            b'{"error": {"status_code": true, "message": "no", "code": "BAD_REQUEST"}}',
            None,
        ),
        (
            b'{"error": {"status_code": 400, "message": null, "code": "BAD_REQUEST"}}',
            None,
        ),
        (b'{"error": {"status_code": 400, "message": "no"}}', None),
        (b'{"error": "no"}', None),
        (b'["error"]', None),
        (b"[" * 65536, None),
        (b"<script>alert(1)</script>", None),
        (b"<p>caf\xe9</p>", "text/plain"),
    ],
)
def test_content_types_of_errors(body: bytes, content_type: str | None) -> None:
    """A body that isn't an envelope is sent as plain text, marked as UTF-8 if it is."""
    error = C42Error(
        endpoint="events", message="", status=400, upstream_status=400, body=body
    )
    kept = value.StoredAnswer(*value.failure(error))
    assert (kept.content_type, kept.body) == (
        content_type or "text/plain; charset=utf-8",
        body,
    )


def error(kind: type[C42Error] = C42Error, **said: Any) -> C42Error:
    return kind(
        **{"endpoint": "events", "message": "why", "upstream_status": 0, **said}
    )


@pytest.mark.parametrize(
    ("outcome", "kind", "lifetime", "private", "extra_wait"),
    [
        (Event(id="1", title=None, names=[]), OK, 252.0, False, 0),
        (error(status=404), NEGATIVE, 252.0, False, 0),
        (error(status=404, retry_after=1000.0), NEGATIVE, 252.0, False, 0),
        (error(status=404, private=True), FAULT, 0.0, True, 0),
        (error(status=503, private=True, retry_after=5.5), FAULT, 0.0, True, 6),
        (error(status=401), FAULT, 6.0, False, 0),
        (error(status=502), FAULT, 6.0, False, 0),
        (error(status=503, retry_after=5.5), FAULT, 6.0, False, 0),
        (error(status=503, retry_after=6.5), FAULT, 6.0, False, 1),
        (error(TimedOut, status=504), FAULT, 6.0, False, 0),
        (error(TimedOut, status=504, private=True), FAULT, 0.0, True, 0),
        (error(Paused, status=429, retry_after=1.0), PAUSED, 6.0, False, 0),
        (error(Paused, status=429, retry_after=30.0), PAUSED, 30.0, False, 0),
        (error(Paused, status=429, retry_after=1000.0), PAUSED, 252.0, False, 748),
    ],
)
def test_what_is_kept_of_an_outcome(
    outcome: Any, kind: str, lifetime: float, private: bool, extra_wait: int
) -> None:
    """Good answers and refusals are kept for C42_EXPIRY, faults for C42_FAULT_EXPIRY.

    The former age from the load's start, the latter from when they were found. A pause
    is kept until it ends, and a private fault isn't kept at all.

    Errors keep the id of their load's request, and how much longer than that Calendar42
    asked to wait.
    """

    def fetch(event_ids: list[str], deadline: float) -> Iterator[tuple[str, Any]]:
        for event_id in event_ids:
            clock.advance(3)
            yield event_id, outcome

    clock = Clock()
    began = clock.now
    load = loader(
        fetch,
        expiry=252.0,
        fault_expiry=6.0,
        id_for=lambda event_id, error: f"load-of-{event_id}",
        clock=clock,
    )
    (one, first), (two, second) = load(["1", "2"], 0.0)
    assert (one, two) == ("1", "2")
    for loaded in (first, second):
        assert (loaded.kind, loaded.lifetime, loaded.private, loaded.source) == (
            kind,
            lifetime,
            private,
            "miss",
        )
    births = (began, began) if kind in (OK, NEGATIVE) else (began + 3, began + 6)
    assert (first.born, second.born) == births
    if isinstance(outcome, C42Error):
        expected = [
            value.failure(
                outcome, extra_wait=extra_wait, request_id=f"load-of-{event_id}"
            )
            for event_id in ("1", "2")
        ]
    else:
        expected = [value.success(outcome)] * 2
    assert [first.value, second.value] == expected


def found(result: str, failed: C42Error | None = None, **more: Any) -> Found:
    """Make what the cache gives, 10 s after the birth of a good answer or an error."""
    kept = value.failure(failed) if failed else value.success(Event("1", None, []))
    return Found(
        **{
            "value": kept,
            "kind": OK,
            "age": 10.0,
            "ttl": 242.9,
            "source": result,
            "is_kept": True,
            **more,
        }
    )


PAUSE = error(Paused, status=429, retry_after=30.0)
REFUSAL = error(status=404, upstream_status=404)


@pytest.mark.parametrize(
    ("parts", "cache_status", "cache_control"),
    [
        ([found("hit")], "hit; ttl=242", "max-age=242"),
        ([found("hit", ttl=0.9)], "hit; ttl=0", "max-age=0"),
        ([found("miss")], "fwd=miss; fwd-status=200; stored; ttl=242", "max-age=242"),
        (
            [found("miss", REFUSAL, kind=NEGATIVE)],
            "fwd=miss; fwd-status=404; stored; ttl=242",
            "max-age=242",
        ),
        (
            [found("miss", ttl=-3.0, is_kept=False)],
            "fwd=miss; fwd-status=200",
            "no-store",
        ),
        (
            [found("miss", ttl=0.0, is_kept=False)],
            "fwd=miss; fwd-status=200",
            "no-store",
        ),
        ([found("miss", error(), kind=FAULT)], "fwd=miss; stored; ttl=242", "no-store"),
        (
            [found("collapsed")],
            "fwd=miss; collapsed; fwd-status=200; stored; ttl=242",
            "max-age=242",
        ),
        ([found("shared")], "fwd=miss; detail=shared; stored; ttl=242", "max-age=242"),
        (
            [found("awaited")],
            "fwd=miss; collapsed; detail=shared; stored; ttl=242",
            "max-age=242",
        ),
        ([found("miss", PAUSE, kind=PAUSED)], "detail=paused; ttl=242", "no-store"),
        (
            [found("miss", PAUSE, kind=PAUSED, ttl=-1.0, is_kept=False)],
            "detail=paused; ttl=0",
            "no-store",
        ),
        ([found("hit", PAUSE, kind=PAUSED)], "hit; ttl=242", "no-store"),
        (
            [
                found(
                    "miss", error(Paused, status=429, upstream_status=429), kind=PAUSED
                )
            ],
            "fwd=miss; fwd-status=429; stored; ttl=242",
            "no-store",
        ),
        ([found("hit"), found("hit", ttl=7.0)], "hit; ttl=7", "max-age=7"),
        (
            [found("hit"), found("miss", ttl=300.0)],
            "fwd=partial; stored; ttl=242",
            "max-age=242",
        ),
        (
            [found("hit"), found("miss", error(), kind=FAULT)],
            "fwd=partial; stored; ttl=242",
            "no-store",
        ),
        (
            [found("hit"), found("miss", REFUSAL, kind=NEGATIVE)],
            "fwd=partial; stored; ttl=242",
            "max-age=242",
        ),
        ([found("hit"), found("miss", is_kept=False)], "fwd=partial", "max-age=242"),
        (
            [found("hit"), found("collapsed")],
            "fwd=partial; collapsed; stored; ttl=242",
            "max-age=242",
        ),
        (
            [found("miss"), found("collapsed"), found("shared")],
            "fwd=miss; stored; ttl=242",
            "max-age=242",
        ),
        (
            [found("shared"), found("awaited")],
            "fwd=miss; collapsed; detail=shared; stored; ttl=242",
            "max-age=242",
        ),
        (
            [found("hit"), found("miss", PAUSE, kind=PAUSED)],
            "detail=paused; ttl=242",
            "no-store",
        ),
        (
            [found("miss"), found("miss", PAUSE, kind=PAUSED)],
            "fwd=miss; stored; ttl=242",
            "no-store",
        ),
    ],
)
def test_what_an_answer_says_of_its_origin(
    parts: list[Found], cache_status: str, cache_control: str
) -> None:
    """Headers say how an answer came about and for how long a client may keep it."""
    if len(parts) == 1:
        _, headers, _ = response.render(parts[0], None)
    else:
        _, headers, _ = response.render_many(
            {str(number): part for number, part in enumerate(parts)}, None
        )
    said = dict(headers)
    assert len(headers) == len(said)
    assert (said["Cache-Status"], said["Cache-Control"]) == (
        f"c42c; {cache_status}",
        cache_control,
    )
    assert said["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("extra_wait", "ttl", "seconds"),
    [(0, 5.9, 6), (0, 0.25, 1), (0, -1.0, 1), (748, 241.5, 990)],
)
def test_retry_after(kind: str, extra_wait: int, ttl: float, seconds: int) -> None:
    """Every fault says in how many seconds to ask again, and no other answer does.

    That is when c42c would ask Calendar42 again, or when Calendar42 wants to be asked
    if that is later.
    """
    stored = value.failure(error(status=503), extra_wait=extra_wait)
    one = found("hit", kind=kind, ttl=ttl)._replace(value=stored)
    is_fault = kind in (FAULT, PAUSED)
    headers = dict(response.render(one, None).headers)
    assert headers.get("Retry-After") == (str(seconds) if is_fault else None)
    many = response.render_many({"a": one}, None)
    said = json.loads(many.body)["errors"]["a"]
    assert said.get("retry_after") == (seconds if is_fault else None)
    assert "Retry-After" not in dict(many.headers)
    if is_fault:
        assert headers["Cache-Control"] == "no-store"


@unhurried
@given(good | bad, st.floats(-1e3, 1e6), st.booleans())
def test_no_client_keeps_a_fault(loaded: Loaded, ttl: float, alone: bool) -> None:
    """A fault never has a max-age, alone or in a list; what lasts has what is left."""
    one = Found(loaded.value, loaded.kind, 0.0, ttl, "hit", is_kept=True)
    parts = {"a": one, "b": found("hit", ttl=1e6)}
    answer = response.render_many(parts, None)
    if alone:
        answer = response.render(one, None)
    cache_control = dict(answer.headers)["Cache-Control"]
    if loaded.kind in (FAULT, PAUSED) or ttl <= 0:
        assert cache_control == "no-store"
    else:
        assert cache_control == f"max-age={int(ttl)}"


@pytest.mark.parametrize("source", ["hit", "miss", "collapsed", "shared", "awaited"])
def test_errors_carry_the_id_of_their_load(source: str) -> None:
    """An error has the request id of its load, however it came about.

    In a list, each fault has its own. Good answers have none.
    """
    stored = value.failure(error(status=502), request_id="load-1")
    one = found(source, kind=FAULT)._replace(value=stored)
    assert dict(response.render(one, None).headers)["X-Request-ID"] == "load-1"
    body = response.render_many({"a": one, "b": found("hit")}, None).body
    assert json.loads(body)["errors"]["a"]["request_id"] == "load-1"
    good = response.render(found(source), None)
    assert "X-Request-ID" not in dict(good.headers)


def test_lists_with_deeply_nested_errors() -> None:
    """An error that could be read where it was loaded can be read in a list.

    Less of the stack is left there.
    """

    def render(depth: int) -> response.Response:
        if depth > 0:
            return render(depth - 1)
        return response.render_many({"a": part}, None)

    for depth in range(0, 1000, 10):
        nested = b"[" * depth + b"]" * depth
        head = b'{"error":{"status_code":404,"message":"m","code":"C","x":'
        part = found(
            "hit", error(status=404, body=head + nested + b"}}"), kind=NEGATIVE
        )
        answer = json.loads(render(50).body)
        assert answer["errors"]["a"]["status_code"] == 404


def test_errors_in_a_list() -> None:
    """A list has each error's envelope, or the service's own words if it has none."""
    said = b"""{"error": {
        "status_code": 1, "message": "Gone fishing", "code": "FISHING", "more": 1
    }}"""
    errors = {
        "ours": error(status=502),
        "theirs": error(status=404, body=said),
        "text": error(status=418, body=b"<p>no"),
        "unknown": error(status=599, body=b"{}"),
    }
    parts = {
        event_id: found("hit", each, kind=NEGATIVE) for event_id, each in errors.items()
    } | {
        "a": found("hit"),
        "b": found("hit"),
    }
    status, _, body = response.render_many(parts, None)
    assert status == "200 OK"
    assert json.loads(body) == {
        "meta_data": {"count": 2},
        "data": [{"id": "1", "title": None, "names": []}] * 2,
        "errors": {
            "ours": {"status_code": 502, "message": "why", "code": "BAD_GATEWAY"},
            "theirs": {
                "status_code": 404,
                "message": "Gone fishing",
                "code": "FISHING",
            },
            "text": {
                "status_code": 418,
                "message": "Calendar42 answered 418",
                "code": "IM_A_TEAPOT",
            },
            "unknown": {
                "status_code": 599,
                "message": "Calendar42 answered 599",
                "code": "UNKNOWN",
            },
        },
    }


@unhurried
@given(
    st.lists(good | bad, min_size=1, max_size=2),
    st.lists(
        st.tuples(
            st.integers(0, 1), st.floats(0, 1e6), st.floats(0, 3, exclude_min=True)
        ),
        min_size=1,
    ),
    st.none() | st.sampled_from(["*", "{}", 'W/{}, "a"', '"a"', "", "é"]),
)
def test_hits_are_what_the_route_answers(
    answers: list[Loaded],
    hits_of_them: list[tuple[int, float, float]],
    condition: str | None,
) -> None:
    """A hit is exactly what the route would answer: for any answer, at any age."""
    asked = condition and condition.format(
        value.StoredAnswer(*as_kept(answers[0])).etag
    )
    found = [
        Found(loaded.value, loaded.kind, age, ttl, "hit", True)
        for number, age, ttl in hits_of_them
        for loaded in [answers[number % len(answers)]]
    ]
    held = iter(found)
    cache: Any = SimpleNamespace(get=lambda key: tuple(next(held)[:4]))
    headers = {} if asked is None else {"if-none-match": asked}
    request = Request("GET", f"{EVENT_PREFIX}1", "", "HTTP/1.1", headers, 0, True)
    fast_path = hits.fast_path_finder(cache, frozenset(), Counter())(request)
    assert fast_path
    for each in found:
        assert fast_path() == serialize(*response.render(each, asked))


@pytest.mark.parametrize(
    ("kind", "stored", "last_says"),
    [
        (OK, value.success(Event("1", None, [])), b"max-age=8\r\n"),
        (
            PAUSED,
            value.failure(error(Paused, status=429), extra_wait=1),
            b"Retry-After: 10\r\n",
        ),
    ],
)
def test_a_hit_is_rendered_once_a_second(
    kind: str, stored: value.StoredTuple, last_says: bytes
) -> None:
    """Within one second, hits share one head, and each is counted.

    The head is costly to render.
    """
    held = [
        found("hit", kind=kind, ttl=ttl)._replace(value=stored)
        for ttl in (9.9, 9.1, 9.0, 8.9)
    ]
    waiting = iter(held)
    cache: Any = SimpleNamespace(get=lambda key: (held[0].value, *next(waiting)[1:4]))
    served = Counter[bytes]()
    fast_path = hits.fast_path_finder(cache, frozenset(), served)(
        Request("GET", f"{EVENT_PREFIX}1", "", "HTTP/1.1", {}, 0, True)
    )
    assert fast_path
    first, second, third, last = (answer[0] for _ in held if (answer := fast_path()))
    assert first is second is third
    assert last_says in last
    assert served == {b"%d" % value.StoredAnswer(*stored).status: 4}


class Silent(ImATeapot):
    """An error without a description."""

    description = ""


def test_what_applies_to_all_responses() -> None:
    """An error that a route raises is answered in the envelope, with the id in the log.

    OPTIONS is answered with a 204, and a path of slashes with a 404.
    """
    bug = ZeroDivisionError("by nought")
    raised: list[tuple[Exception, int, str, dict[str, str]]] = [
        (
            TooManyWaiting(),
            503,
            "too many requests wait for Calendar42",
            {"Cache-Status": "c42c; detail=refused", "Retry-After": "1"},
        ),
        (BadIds("not an id"), 400, "not an id", {}),
        (ImATeapot("short"), 418, "short", {}),
        (Silent(), 418, "", {}),
        (
            MethodNotAllowed(["HEAD", "GET"], "not so"),
            405,
            "GET isn't allowed here, only GET, HEAD",
            {"Allow": "GET, HEAD"},
        ),
        (NotFound(), 404, "there is no such path; /openapi.json lists all", {}),
        (bug, 500, "the service failed; its log says why", {}),
    ]
    app = Flask("made-up")
    waiting = iter(raised)
    logged: list[tuple[int, str, Exception | None]] = []

    def on_error(status: int, message: str, exception: Exception | None) -> str:
        logged.append((status, message, exception))
        return f"id-{len(logged)}"

    app_hooks.register(
        app, origins=frozenset(), on_full=lambda: None, on_error=on_error
    )

    @app.get("/")
    def fail() -> str:
        raise next(waiting)[0]

    client = app.test_client()
    for number, (error, status, message, headers) in enumerate(raised, 1):
        answer: Any = client.get("/")
        assert (answer.status_code, answer.content_type) == (status, "application/json")
        said = answer.json["error"]
        assert (said["status_code"], said["message"]) == (status, message)
        expected = {
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            "X-Request-ID": f"id-{number}",
            **headers,
        }
        for name in ("Content-Type", "Content-Length"):
            del answer.headers[name]
        assert dict(answer.headers) == expected
        assert logged[-1] == (status, message, bug if error is bug else None)
    options = client.options("/")
    assert options.status == "204 No Content"
    assert "Content-Type" not in options.headers
    assert client.options("/nothing").status == "404 Not Found"
    assert client.get("//").status_code == 404
    as_from_a_socket = {"PATH_INFO": "//"}
    assert client.get("/", environ_overrides=as_from_a_socket).status_code == 404
