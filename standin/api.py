"""Calendar42's answers, as far as they are known: no sockets, no faults, no locks."""

import json
import re
from dataclasses import dataclass, field
from http.client import responses
from typing import Any
from urllib.parse import parse_qsl, unquote

from standin.data import Catalogue, JsonObject

API_ROOT = "/api/v2/"
_DEFAULT_LIMIT, _MOST_LIMIT = 10, 100
_CODES = {500: "GENERAL_SYSTEM_ERROR"}  # the others are their phrase: NOT_FOUND
_ROUTE = re.compile(rf"{API_ROOT}(?:(events)/(?:([^/]+)/)?|(event-subscriptions)/)")
_ID_LIST = re.compile(r"\[([^\[\]]+)\]")
_WELL_FORMED_ID = re.compile(r"[0-9a-f]{32}_[0-9]{14}")


@dataclass(eq=False)
class Call:
    """One request as it arrived, and what it names, known or not."""

    method: str
    target: str  # path and query, as they were sent
    headers: dict[str, str]

    def __post_init__(self) -> None:
        self.path, _, query = self.target.partition("?")
        self.query = dict(parse_qsl(query, keep_blank_values=True))
        route = _ROUTE.fullmatch(
            self.path if self.path.endswith("/") else self.path + "/"
        )
        self.endpoint: str = (
            (route[1] or route[3]) if route else ""
        )  # "": a path that the API does not have
        self.event_id = unquote(route[2]) if route and route[2] else None
        id_list = _ID_LIST.fullmatch(
            self.query.get("ids" if self.endpoint == "events" else "event_ids", "")
        )
        listed = [one.strip() for one in id_list[1].split(",")] if id_list else []
        self.named_ids = (
            [self.event_id] if self.event_id else list(dict.fromkeys(listed))
        )

    def number(self, name: str, default: int) -> int | None:
        """Return a number from the query, or None if the value isn't a number."""
        text = self.query.get(name, str(default))
        return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


@dataclass(frozen=True)
class Answer:
    """Status, body and the headers beyond type and length."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def error(status: int, message: str = "", **headers: str) -> Answer:
    """Return an error in the envelope that Calendar42 puts around every one."""
    phrase = responses.get(status, "Unknown")
    code = _CODES.get(status, re.sub("[^A-Z]+", "_", phrase.upper()))
    envelope = {"status_code": status, "message": message or phrase, "code": code}
    return Answer(status, _encode({"error": envelope}), headers)


def reply(call: Call, catalogue: Catalogue, token: str) -> Answer:
    """Return what a sound Calendar42 with this catalogue says to this call."""
    if not call.endpoint:
        return error(404, "Not found")
    if not call.path.endswith("/"):
        return Answer(
            301, b"", {"Location": f"{call.path}/{call.target.removeprefix(call.path)}"}
        )
    if call.headers.get("Authorization") != f"Token {token}":
        return error(401, "Invalid token")
    if call.method != "GET":
        return error(405, f"Method {call.method} not allowed", Allow="GET")
    if call.event_id is not None:
        return _one_event(call.event_id, catalogue)
    return _page(
        call,
        _events(call, catalogue)
        if call.endpoint == "events"
        else _rows(call, catalogue),
    )


def _one_event(event_id: str, catalogue: Catalogue) -> Answer:
    if event_id not in catalogue.rows:
        return error(404, f"Event {event_id} not found")
    data = [catalogue.events[event_id]] if event_id in catalogue.events else []
    return Answer(200, _encode({"meta_data": {"count": len(data)}, "data": data}))


def _events(call: Call, catalogue: Catalogue) -> list[JsonObject]:
    # The API doesn't keep the order asked for, so this reverses it: a client that
    # relies on it fails its tests.
    asked = list(reversed(call.named_ids)) or list(catalogue.events)
    return [catalogue.events[one] for one in asked if one in catalogue.events]


def _rows(call: Call, catalogue: Catalogue) -> list[JsonObject] | None:
    """Return the rows that match.

    For a single unknown event, which Calendar42 answers with a 500, return None.
    """
    asked, known = set(call.named_ids), catalogue.rows
    # Calendar42's documentation has short ids too, so every id in the catalogue counts
    # as well-formed.
    if not asked or not all(
        one in known or _WELL_FORMED_ID.fullmatch(one) for one in asked
    ):
        asked = set(known)
    if len(asked) == 1 and asked.isdisjoint(known):
        return None
    # Each row once: the catalogue lists some of them under two events.
    return list(
        {row["id"]: row for one in known if one in asked for row in known[one]}.values()
    )


def _page(call: Call, found: list[JsonObject] | None) -> Answer:
    limit, offset = call.number("limit", _DEFAULT_LIMIT), call.number("offset", 0)
    if limit is None or offset is None or not 1 <= limit <= _MOST_LIMIT:
        return error(
            400, f"limit must be a number from 1 to {_MOST_LIMIT}, and offset a number"
        )
    if found is None:
        return error(500, "invalid subscription id given")
    sync_token = max((one.get("sync_token", 0) for one in found), default=0)
    meta_data = {"count": len(found), "sync_token": sync_token, "offset": offset}
    return Answer(
        200, _encode({"meta_data": meta_data, "data": found[offset : offset + limit]})
    )


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
