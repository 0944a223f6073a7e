"""What `answers` makes of an outcome, without a service: its encoding for Redis, and the bytes of a hit."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from answers import hits, response, value
from cache import KINDS, OK, Found, Loaded
from calendar42.errors import C42Error
from serving.request import Request

unhurried = settings(deadline=None)  # a busy machine is not a finding

ENVELOPE = value.envelope(503, "later")
bodies = st.one_of(st.binary(min_size=1), st.sampled_from([ENVELOPE, b"{}", b'{"error":{}}', b"\n", "ü\n".encode()]))
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
    lambda title, names, lifetime: Loaded(value.success({"id": "1", "title": title, "names": names}), OK, lifetime),
    st.none() | st.text(),
    st.lists(st.text()),
    seconds,
)
bad = st.builds(
    lambda error, kind, lifetime: Loaded(value.failure(error), kind, lifetime),
    errors,
    st.sampled_from([kind for kind in KINDS if kind != OK]),
    seconds,
)


@unhurried
@given(good | bad)
def test_what_redis_keeps_is_read_as_it_was(loaded: Loaded) -> None:
    """Every answer that is packed for Redis is unpacked as it was, of exactly the same types."""
    unpacked = value.unpack(value.pack(loaded))
    assert unpacked == loaded
    assert list(map(type, as_kept(unpacked))) == [bytes, int, str, str, int, float] == list(map(type, as_kept(loaded)))
    assert type(unpacked.value) is type(loaded.value) is tuple, "the garbage collector tracks any other"


def as_kept(loaded: Loaded) -> value.Kept:
    return cast(value.Kept, loaded.value)


@unhurried
@given(st.binary())
@example(b"[" * 100_000)
@example(b'"123456"\n')
def test_other_bytes_are_refused(packed: bytes) -> None:
    """Whatever else stands in Redis is refused with ValueError."""
    with pytest.raises(ValueError, match="not a packed answer"):
        value.unpack(packed)


@unhurried
@given(good | bad, st.integers(0), st.binary(max_size=8), st.integers(0, 8))
def test_a_changed_answer_is_refused(loaded: Loaded, at: int, new: bytes, length: int) -> None:
    """A packed answer of which any bytes were lost, added or changed is refused."""
    packed = value.pack(loaded)
    at %= len(packed) + 1
    changed = packed[:at] + new + packed[at + length :]
    if changed != packed:
        with pytest.raises(ValueError, match="not a packed answer"):
            value.unpack(changed)


@unhurried
@given(bad)
def test_an_error_is_json_in_the_envelope_or_plain_text(loaded: Loaded) -> None:
    """An error is sent as JSON only if it is in the envelope; nothing is sent that a browser would run."""
    kept = value.Value(*as_kept(loaded))
    if kept.content_type == "application/json":
        error = json.loads(kept.body)["error"]
        assert [type(error[name]) for name in ("status_code", "message", "code")] == [int, str, str]
    else:
        assert kept.content_type in ("text/plain", "text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"error": {"status_code": 400, "message": "no", "code": "BAD_REQUEST"}}', "application/json"),
        (b'{"error": {"status_code": 400, "message": "no", "code": "BAD_REQUEST"}, "more": NaN}', None),
        (b'{"error": {"status_code": true, "message": "no", "code": "BAD_REQUEST"}}', None),
        (b'{"error": {"status_code": 400, "message": null, "code": "BAD_REQUEST"}}', None),
        (b'{"error": {"status_code": 400, "message": "no"}}', None),
        (b'{"error": "no"}', None),
        (b'["error"]', None),
        (b"[" * 65536, None),
        (b"<script>alert(1)</script>", None),
        (b"<p>caf\xe9</p>", "text/plain"),
    ],
)
def test_content_types_of_errors(body: bytes, content_type: str | None) -> None:
    """What is not an envelope is plain text, in UTF-8 if it can be; whatever the upstream called it."""
    error = C42Error(endpoint="events", message="", status=400, upstream_status=400, body=body)
    kept = value.Value(*value.failure(error))
    assert (kept.content_type, kept.body) == (content_type or "text/plain; charset=utf-8", body)


@unhurried
@given(
    st.lists(good | bad, min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1e6), st.floats(0, 3, exclude_min=True)), min_size=1),
    st.none() | st.sampled_from(["*", "{}", 'W/{}, "a"', '"a"', "", "é"]),
)
def test_hits_are_what_the_route_answers(
    answers: list[Loaded], hits_of_them: list[tuple[int, float, float]], condition: str | None
) -> None:
    """A request asked again and again gets what the route would say: of any answer, of another, at any age."""
    asked = condition and condition.format(value.Value(*as_kept(answers[0])).etag)
    found = [
        Found(loaded.value, loaded.kind, age, ttl, "hit", True)
        for number, age, ttl in hits_of_them
        for loaded in [answers[number % len(answers)]]
    ]
    held = iter(found)
    cache: Any = SimpleNamespace(get=lambda key: tuple(next(held)[:4]))
    headers = {} if asked is None else {"if-none-match": asked}
    request = Request("GET", f"{hits.PREFIX}1", "", "HTTP/1.1", headers, 0, True)
    shortcut = hits.immediate(cache, frozenset(), Counter())(request)
    assert shortcut
    for each in found:
        assert shortcut() == response.serialize(response.render(each, asked))
