"""What `answers` makes of an outcome, without a service: its encoding for Redis, and the bytes of a hit."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from answers import hits, response, value
from cache import FAULT, KINDS, NEGATIVE, OK, Found, Loaded
from serving.request import Request

unhurried = settings(deadline=None)  # a busy machine is not a finding

ENVELOPE = value.envelope(503, "later")
GOOD = Loaded(value.success({"id": "1", "title": "Ein schöner Titel\n", "names": ["Ada"]}), OK, 252.0)
BAD = Loaded(value.failure(503, "", body="<p>Störung".encode(), upstream_status=503, retry_after=7.5), FAULT, 6.0)

bodies = st.one_of(st.binary(min_size=1), st.sampled_from([ENVELOPE, b"{}", b'{"error":{}}', b"\n", "ü\n".encode()]))
seconds = st.floats(min_value=0, allow_infinity=False, exclude_min=True)
good = st.builds(
    lambda title, names, lifetime: Loaded(value.success({"id": "1", "title": title, "names": names}), OK, lifetime),
    st.none() | st.text(),
    st.lists(st.text()),
    seconds,
)
bad = st.builds(
    lambda status, body, upstream_status, retry_after, kind, lifetime: Loaded(
        value.failure(status, "why", body=body, upstream_status=upstream_status, retry_after=retry_after),
        kind,
        lifetime,
    ),
    st.integers(400, 599),
    st.just(b"") | bodies,
    st.integers(0, 599),
    st.just(0.0) | seconds,
    st.sampled_from([kind for kind in KINDS if kind != OK]),
    seconds,
)


@unhurried
@given(good | bad)
def test_what_redis_keeps_is_read_as_it_was(loaded: Loaded) -> None:
    """Every answer that is packed for Redis is unpacked as it was, content type and ETag included."""
    assert value.unpack(value.pack(loaded)) == loaded


def check(packed: bytes) -> None:
    """Check that `packed` is refused with ValueError, or is exactly what `pack` makes of a value that can be sent."""
    try:
        loaded = value.unpack(packed)
    except ValueError:
        return
    status, content_type, body, etag, upstream_status, retry_after = value_of(loaded)
    assert value.pack(loaded) == packed
    assert loaded == Loaded(loaded.value, loaded.kind, loaded.lifetime)
    assert [type(part) for part in value_of(loaded)] == [int, str, bytes, str, int, float]
    assert content_type in ("application/json", "text/plain", "text/plain; charset=utf-8")
    assert etag == value.make_etag(body)
    assert body
    assert (status == 200) == (loaded.kind == OK)
    assert status == 200 or 400 <= status < 600
    assert 0 <= upstream_status < 600
    assert 0 <= retry_after < float("inf")
    assert 0 < loaded.lifetime < float("inf")
    assert loaded.kind in KINDS


def value_of(loaded: Loaded) -> Any:
    return loaded.value


@unhurried
@given(st.binary())
@example(b"[" * 100_000)
@example(b'"123456"\n')
def test_bytes_of_any_kind_are_an_answer_or_refused(packed: bytes) -> None:
    """Whatever stands in Redis is unpacked as an answer that this service made, or refused with ValueError."""
    check(packed)


@unhurried
@given(good | bad, st.integers(0), st.binary(max_size=8), st.integers(0, 8))
def test_a_changed_answer_is_refused(loaded: Loaded, at: int, new: bytes, length: int) -> None:
    """An answer of which some bytes were lost, added or changed in its body is refused."""
    packed = value.pack(loaded)
    body_at = packed.index(b"\n") + 1
    at = body_at + at % (len(packed) - body_at + 1)
    changed = packed[:at] + new + packed[at + length :]
    if changed != packed:
        with pytest.raises(ValueError, match="not a packed answer"):
            value.unpack(changed)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(KINDS)
odd = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2))


@unhurried
@given(good | bad, st.integers(0, 5), odd, st.booleans())
def test_a_head_with_an_odd_part_is_an_answer_or_refused(loaded: Loaded, at: int, part: Any, spaced: bool) -> None:
    """Whatever stands in the place of one part of an answer's head, it is an answer with that part, or refused."""
    head, _, body = value.pack(loaded).partition(b"\n")
    parts = json.loads(head)
    parts[at] = part
    check(json.dumps(parts, indent=" " if spaced else None).encode().replace(b"\n", b" ") + b"\n" + body)


@pytest.mark.parametrize(
    ("loaded", "old", "new"),
    [
        (GOOD, b'"ok"', b'"good"'),
        (GOOD, b'"ok"', b'"fault"'),
        (GOOD, b'"ok"', b'["ok"]'),
        (GOOD, b"252.0", b"NaN"),
        (GOOD, b"252.0", b"Infinity"),
        (GOOD, b"252.0", b"0.0"),
        (GOOD, b"252.0", b"-1.0"),
        (GOOD, b"252.0", b"252"),
        (GOOD, b"252.0", b"2.52e2"),
        (GOOD, b"252.0", b"true"),
        (GOOD, b" 200, 200,", b" 199, 200,"),
        (GOOD, b" 200, 200,", b" 404, 200,"),
        (GOOD, b" 200, 200,", b" 200.0, 200,"),
        (GOOD, b" 200, 200,", b" 200, 600,"),
        (GOOD, b" 200, 200,", b" 200, -1,"),
        (GOOD, b" 200, 200,", b" 200, true,"),
        (GOOD, b" 200, 200,", b"  200, 200,"),
        (GOOD, b" 0.0,", b" -0.5,"),
        (GOOD, b" 0.0,", b" Infinity,"),
        (GOOD, b" 0.0,", b" 0,"),
        (GOOD, b"]\n", b", 1]\n"),
        (GOOD, b"]\n", b"]"),
        (BAD, b'"fault"', b'"ok"'),
        (BAD, b"503, 503", b"200, 503"),
        (BAD, b"503, 503", b"304, 503"),
        (BAD, b"503, 503", b"399, 503"),
        (BAD, b"503, 503", b"600, 503"),
    ],
)
def test_what_no_answer_has_is_refused(loaded: Loaded, old: bytes, new: bytes) -> None:
    """A kind, a lifetime, a status or a spelling that no answer of this service has is refused."""
    packed = value.pack(loaded)
    assert packed.count(old) == 1
    with pytest.raises(ValueError, match="not a packed answer"):
        value.unpack(packed.replace(old, new))


def test_a_body_without_a_byte_is_refused() -> None:
    """An answer without a body is refused, though its ETag fits."""
    head = json.dumps([OK, 252.0, 200, 200, 0.0, value.make_etag(b"")])
    with pytest.raises(ValueError, match="not a packed answer"):
        value.unpack(head.encode() + b"\n")


def test_the_outermost_values_are_read() -> None:
    """The highest and lowest statuses and lifetimes that an answer can have are read."""
    for status, upstream_status, lifetime, retry_after in [(400, 0, 5e-324, 0.0), (599, 599, 1.7e308, 1.7e308)]:
        made = value.failure(status, "why", upstream_status=upstream_status, retry_after=retry_after)
        loaded = Loaded(made, NEGATIVE, lifetime)
        assert value.unpack(value.pack(loaded)) == loaded


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
    asked = condition and condition.format(value_of(answers[0])[3])
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
        line, fields, body = response.render(each, asked)
        assert shortcut() == (response.serialize(line, fields), body)
