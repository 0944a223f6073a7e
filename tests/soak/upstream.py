"""The soak test's own upstream, which stamps its answers and keeps a log.

A stamp is the event and the time at which it was asked for. An event's id says what it
is: `small-1`, `large-1` (several pages), `deleted-1`, `unknown-1`. All times are
`time.monotonic()`, in seconds.

This upstream shares no code with `standin/`, so that a mistake there can't hide one in
the service.
"""

import asyncio
import itertools
import json
import random
import re
import socket
import struct
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PAGE = 100
KEPT = 60.0  # seconds for which the log remembers a call
PAUSE = 1.0  # seconds, that a 429 asks for
LONGEST_HANG = 30.0  # seconds; the service has long given up

# What can go wrong, how often in comparison with the others, and the statuses that the
# service may answer with.
FAULTS: dict[str, tuple[int, frozenset[int]]] = {
    "slow": (30, frozenset({200})),
    "hints": (3, frozenset({502})),  # 103 and then 200
    "stray": (6, frozenset({200})),  # a second response behind the right one
    "moved page": (12, frozenset({200, 502})),
    **{
        str(status): (2, frozenset({status}))
        for status in (400, 401, 403, 408, 410, 500, 503)
    },
    "pause": (1, frozenset({429})),
    "hang": (2, frozenset({504})),
    "hang in the body": (1, frozenset({504})),
    "trickle": (1, frozenset({504})),
    "reset": (4, frozenset({502})),
    "reset in the body": (3, frozenset({502})),
    "cut short": (3, frozenset({502})),
    "not JSON": (3, frozenset({502})),
    "wrong shape": (3, frozenset({502})),
    "wrong event": (6, frozenset({502})),
    "redirect": (2, frozenset({502})),
    "switch protocols": (2, frozenset({502})),
}
_PLAIN = frozenset({200})
_REQUEST = re.compile(
    rb"GET (?:http://[^/ ]+)?/api/v2/(events|event-subscriptions)/"
    rb"(?:([^/? ]+)/)?(?:\?(\S*))? HTTP/1.1\r"
)


@dataclass(eq=False, slots=True)
class UpstreamCall:
    """One call by the service."""

    serial: int
    instance: int
    endpoint: str
    event_ids: tuple[str, ...]
    asked: float
    fault: str = ""  # "" if the answer is right and prompt
    statuses: frozenset[int] = (
        _PLAIN  # that the service may answer with because of this call
    )
    ended: float | None = (
        None  # just before its last byte was sent, or when the service hung up
    )
    single: bool = True  # not a list
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a title, a name or a message says about its origin."""

    event_id: str
    serial: int
    asked: float
    version: int = 0
    position: int = 0  # of a name
    total: int = 0

    def __str__(self) -> str:
        place = f"{self.position}/{self.total}"
        return f"{self.event_id}|{self.serial}|{self.asked:.4f}|{self.version}|{place}"

    @classmethod
    def parse(cls, text: str) -> "Stamp":
        """Read a stamp; ValueError if it is none."""
        event_id, serial, asked, version, place = text.split("|")
        position, total = place.split("/")
        return cls(
            event_id, int(serial), float(asked), int(version), int(position), int(total)
        )


def is_removed(position: int) -> bool:
    """Whether the subscription at this place of every event's list has been removed."""
    return position % 17 == 5


class SoakUpstream:
    """Serves one port for each instance, so that it knows which one calls.

    `observe` sees each call.
    """

    def __init__(self, seed: int, observe: Callable[[UpstreamCall], None]) -> None:
        self.calls: dict[int, UpstreamCall] = {}  # by serial, the last minute's
        self.by_event: defaultdict[str, deque[UpstreamCall]] = defaultdict(deque)
        self.played: Counter[str] = Counter()
        self.trouble = 0.0  # the share of calls that go wrong
        self.delay = 0.0  # seconds until a right answer
        self._random = random.Random(seed)
        self._observe = observe
        self._serials = itertools.count(1)
        self._versions: Counter[str] = Counter()
        self._totals: dict[
            tuple[int, tuple[str, ...]], int
        ] = {}  # at the latest first page
        self._servers: list[asyncio.Server] = []
        self._next_pause = 0.0

    async def listen(self, instance: int) -> int:
        """Open a port for an instance and return it."""

        async def serve(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"CONNECT "):  # the port is the instance's proxy
                    writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                    head = await reader.readuntil(b"\r\n\r\n")
                while await self._answer(
                    await self._arrive(instance, head), reader, writer
                ):
                    head = await reader.readuntil(b"\r\n\r\n")
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the service hung up, or all of it ends
            finally:
                writer.close()

        self._servers.append(
            await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
        )
        port: int = self._servers[-1].sockets[0].getsockname()[1]
        return port

    @property
    def faults(self) -> int:
        """How many calls have gone wrong."""
        return self.played.total() - self.played["none"]

    def close(self) -> None:
        """Take no more connections."""
        for server in self._servers:
            server.close()

    async def change(self) -> None:
        """Change names, titles and the amount of trouble for as long as it runs."""
        while True:
            self.trouble = self._random.choice((0.0, 0.05, 0.2, 0.5))
            for _ in range(self._random.randint(2, 8)):
                await asyncio.sleep(0.5)
                for event_id in self._random.sample(
                    sorted(self._versions), min(5, len(self._versions))
                ):
                    self._versions[event_id] += not event_id.startswith(
                        "large"
                    )  # those move only as a fault
                self._forget(time.monotonic() - KEPT)

    def _forget(self, before: float) -> None:
        for serial in [
            serial for serial, call in self.calls.items() if call.asked < before
        ]:
            del self.calls[serial]
        for event_id, calls in list(self.by_event.items()):
            while calls and calls[0].asked < before:
                calls.popleft()
            if not calls:
                del self.by_event[event_id]

    async def _arrive(self, instance: int, head: bytes) -> UpstreamCall:
        # Calls whose connections were closed before this one came end meanwhile.
        for _ in range(10):
            await asyncio.sleep(0)
        asked = time.monotonic()
        request = _REQUEST.match(head)
        if not request or b"\r\nauthorization: token soak-" not in head.lower():
            raise AssertionError(f"the service sent an unexpected request: {head!r}")
        endpoint, event_id, query = (
            (part or b"").decode() for part in request.groups()
        )
        listed = re.search(r"ids=(?:\[|%5B)(.*?)(?:\]|%5D)", query)
        event_ids = (
            (event_id,)
            if event_id
            else tuple(re.split(",|%2C", listed[1]))
            if listed
            else ()
        )
        call = UpstreamCall(next(self._serials), instance, endpoint, event_ids, asked)
        call.single = len(event_ids) == 1 and (bool(event_id) or endpoint != "events")
        offset = re.search(r"offset=(\d+)", query)
        call.offset = int(offset[1]) if offset else 0
        self._spoil(call)
        self.played[call.fault or "none"] += 1
        self.calls[call.serial] = call
        for one in event_ids:
            self._versions[one] += 0
            self.by_event[one].append(call)
        self._observe(call)
        return call

    def _spoil(self, call: UpstreamCall) -> None:
        """Choose what goes wrong with a call, if anything does."""
        if self._random.random() < self.trouble:
            names = list(FAULTS)
            fault = self._random.choices(
                names, [weight for weight, _ in FAULTS.values()]
            )[0]
            is_event = call.endpoint == "events"
            # What has a 404 without the envelope is passed through, and has no stamp to
            # check.
            has_body = not (is_event and call.event_ids[0].startswith("unknown"))
            right_place = {
                "moved page": call.offset > 0,
                "wrong event": is_event and has_body,
                "not JSON": has_body,
                "wrong shape": has_body,
            }
            if fault == "pause":
                right_place[fault] = call.asked > self._next_pause
                self._next_pause = max(self._next_pause, call.asked + 10)
            if right_place.get(fault, True):
                call.fault, call.statuses = fault, FAULTS[fault][1]
        if call.fault == "moved page":
            self._versions.update(
                one for one in call.event_ids if one.startswith("large")
            )
        if call.endpoint == "event-subscriptions":
            total, pages = (
                sum(map(self._total, call.event_ids)),
                (call.instance, call.event_ids),
            )
            if not call.offset:
                self._totals[pages] = total
            elif total != self._totals.get(pages):
                call.statuses |= {502}  # the list moved while it was read

    def _total(self, event_id: str) -> int:
        """How many subscriptions an event has.

        Every new version has another number, with a new one in front.
        """
        small, large = (
            3 + self._versions[event_id] % 40,
            150 + self._versions[event_id] % 120,
        )
        return large if event_id.startswith("large") else small

    def _event(self, call: UpstreamCall, event_id: str) -> dict[str, Any]:
        if event_id.startswith("deleted"):
            return {"id": event_id, "permission": "removed"}
        stamp = Stamp(event_id, call.serial, call.asked, self._versions[event_id])
        return {"id": event_id, "title": str(stamp), "permission": "subscribed_write"}

    def _rows(self, call: UpstreamCall, event_id: str) -> list[dict[str, Any]]:
        total = self._total(event_id)
        rows: list[dict[str, Any]] = []
        for position in range(total):
            row = {
                "id": f"{event_id}__{total - position}",
                "event_id": event_id,
                "permission": "subscribed_write",
            }
            stamp = Stamp(
                event_id,
                call.serial,
                call.asked,
                self._versions[event_id],
                position,
                total,
            )
            removed = {**row, "permission": "removed"}
            rows.append(
                removed
                if is_removed(position)
                else row | {"subscriber": {"first_name": str(stamp)}}
            )
        return rows

    def _say(self, call: UpstreamCall) -> tuple[int, Any]:
        """Return the status and the JSON of the right answer."""
        if call.endpoint == "events":
            events = [
                self._event(call, one)
                for one in reversed(call.event_ids)
                if not one.startswith("unknown")
            ]
            if call.single and not events:
                return 404, _error(call, 404)
            return 200, {"meta_data": {"count": len(events)}, "data": events}
        known = [one for one in call.event_ids if not one.startswith("unknown")]
        if not known:
            return 500, _error(call, 500)
        rows = [row for event_id in known for row in self._rows(call, event_id)]
        if (
            call.single
        ):  # a filter that Calendar42 can't read is ignored, so rows of others may come
            rows[1:1] = [
                row
                for row in self._rows(call, "small-other")
                if row["id"].endswith("__1")
            ]
        meta_data = {"count": len(rows), "offset": call.offset}
        return 200, {
            "meta_data": meta_data,
            "data": rows[call.offset : call.offset + PAGE],
        }

    def _respond(self, call: UpstreamCall) -> bytes:
        """Return the whole response, spoilt as the call's fault says."""
        status, said = self._say(call)
        more = ""
        match call.fault:
            case fault if fault.isdigit():
                status, said = int(fault), _error(call, int(fault))
            case "pause":
                status, said, more = (
                    429,
                    _error(call, 429),
                    f"Retry-After: {PAUSE:.0f}\r\n",
                )
            case "wrong shape":
                said = {"meta_data": {}, "data": [1, "two"]}
            case "wrong event":
                said = {
                    "meta_data": {"count": 1},
                    "data": [self._event(call, "small-other")],
                }
            case "redirect":
                status, more = 302, "Location: /api/v2/elsewhere/\r\n"
            case "switch protocols":
                status, more = 101, "Connection: Upgrade\r\nUpgrade: soak\r\n"
        if status != 200:
            call.statuses |= {status} if 400 <= status < 600 else set()
        body = (
            b"<html>soak</html>"
            if call.fault == "not JSON"
            else json.dumps(said).encode()
        )
        whole = _response(status, body, more)
        if call.fault == "hints":
            return b"HTTP/1.1 103 Early Hints\r\nLink: </soak>\r\n\r\n" + whole
        return (
            whole + _response(200, b'{"meta_data":{"count":0},"data":[]}')
            if call.fault == "stray"
            else whole
        )

    async def _answer(
        self,
        call: UpstreamCall,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Answer a call, or don't; return whether the connection stays open."""
        whole = self._respond(call)
        sent, gone = 0, False
        await asyncio.sleep(self.delay)
        if call.fault == "slow":
            gone = await _hung_up(reader, self._random.uniform(0.02, 0.3))
        elif call.fault == "trickle":
            while sent < len(whole) - 1 and not await _hung_up(reader, 0.1):
                writer.write(whole[sent : sent + 1])
                sent += 1
        elif call.fault == "hints":
            sent = whole.index(b"\r\n\r\n") + 4
            call.ended = time.monotonic()  # the service hangs up as soon as it reads it
            writer.write(whole[:sent])
            gone = await _hung_up(reader, self._random.uniform(0, 0.05))
        elif call.fault in ("hang in the body", "reset in the body", "cut short"):
            sent = len(whole) - 20
            writer.write(whole[:sent])
            await writer.drain()
        if call.fault.startswith("hang"):
            await _hung_up(reader, LONGEST_HANG)
        call.ended = time.monotonic()
        if call.fault.startswith("reset"):
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
            writer.transport.abort()
        if gone or call.fault.startswith(("reset", "hang", "trickle", "cut")):
            return False
        writer.write(whole[sent:])
        await writer.drain()
        return call.fault != "switch protocols"


async def _hung_up(reader: asyncio.StreamReader, within: float) -> bool:
    """Wait so many seconds, or until the service hangs up; return whether it did."""
    try:
        await asyncio.wait_for(reader.read(1), within)
    except TimeoutError:
        return False
    return True


def _error(call: UpstreamCall, status: int) -> dict[str, Any]:
    stamp = Stamp(call.event_ids[0] if call.single else "list", call.serial, call.asked)
    return {"error": {"status_code": status, "message": str(stamp), "code": "SOAK"}}


def _response(status: int, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} Soak\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body
