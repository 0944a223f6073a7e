"""Clients of every kind: patient, impatient, slow, rude.

Each answer they get goes to the checker.
"""

import asyncio
import contextlib
import random
import socket
import struct
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.soak.checker import Answered, Checker

PATH = "/events-with-subscriptions/"
PATIENCE = (
    15.0  # seconds until a client gives up, long after the service should have answered
)
# So hot that they are asked for several times in the last tenth of each lifetime.
HOT = ["small-hot-0", "small-hot-1", "large-hot-0"]
KINDS = {"small": 40, "large": 8, "deleted": 3, "unknown": 3}
EVENTS = [f"{kind}-{number}" for kind, many in KINDS.items() for number in range(many)]


@dataclass
class SoakClient:
    """One client, which does one thing after another.

    It talks to any of the instances at `ports`.
    """

    ports: Sequence[int]
    checker: Checker
    number: int
    rng: random.Random
    pause: float  # seconds between two requests, on average
    _etags: dict[str, str] = field(default_factory=dict)
    _new: int = 0

    async def run(self) -> None:
        """Go on until cancelled."""
        habits: dict[Callable[[_Wire], Awaitable[None]], int] = {
            self._ask_in_turn: 60,
            self._ask_for_list: 14,
            self._pipeline: 8,
            self._vanish: 5,
            self._read_slowly: 1,
            self._close_half: 3,
            self._make_mistakes: 2,
        }
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / self.pause))
            habit = self.rng.choices(list(habits), list(habits.values()))[0]
            instance, began = self.rng.randrange(len(self.ports)), time.monotonic()
            wire = None
            try:
                wire = await _Wire.open(self.ports[instance], self.checker, instance)
                await habit(wire)
            except (OSError, EOFError, TimeoutError) as error:
                since = wire.since if wire else began
                self.checker.lost(
                    instance, since, time.monotonic(), f"{habit.__name__}: {error!r}"
                )
            finally:
                if wire:
                    wire.close()

    async def _ask_in_turn(self, wire: "_Wire") -> None:
        """Ask for a few events on one connection, some of them with a condition."""
        for _ in range(self.rng.randint(1, 12)):
            event_id = self._event()
            known = self._etags.get(event_id) if self.rng.random() < 0.3 else None
            wire.send(
                _request(event_id, more=f"If-None-Match: {known}\r\n" if known else "")
            )
            answer = await wire.receive([event_id])
            self._etags[event_id] = answer.headers.get("etag", "")
            await asyncio.sleep(self.rng.expovariate(1 / self.pause))

    async def _ask_for_list(self, wire: "_Wire") -> None:
        events = [self._event() for _ in range(self.rng.choice((2, 3, 5, 12)))]
        wire.send(_request(f"?event_ids=[{','.join(events)}]"))
        await wire.receive(events, is_list=True)

    async def _pipeline(self, wire: "_Wire") -> None:
        """Send several requests before reading the first answer."""
        events = [self._event() for _ in range(self.rng.randint(2, 8))]
        wire.send(b"".join(map(_request, events)))
        for event_id in events:
            await wire.receive([event_id])

    async def _vanish(self, wire: "_Wire") -> None:
        """Send a request or half of one, and go without the answer."""
        request = _request(self._event())
        wire.send(request[: self.rng.choice((len(request), len(request) // 2))])
        await asyncio.sleep(self.rng.uniform(0, 0.3))
        if self.rng.random() < 0.5:
            wire.reset()

    async def _read_slowly(self, wire: "_Wire") -> None:
        """Ask for a lot, and read it a little at a time."""
        events = [self.rng.choice(EVENTS[40:48]) for _ in range(20)]
        wire.send(b"".join(map(_request, events)))
        for event_id in events:
            await asyncio.sleep(0.1)
            await wire.receive([event_id], read_late=True)

    async def _close_half(self, wire: "_Wire") -> None:
        """Say that no more requests will come, and wait for the answer."""
        event_id = self._event()
        wire.send(_request(event_id))
        wire.writer.write_eof()
        await wire.receive([event_id])

    async def _make_mistakes(self, wire: "_Wire") -> None:
        """Ask for things that don't exist; no call is made."""
        method, target, status = self.rng.choice(
            (("GET", "a%20b", 400), ("POST", "a", 405), ("GET", "a/b", 404))
        )
        wire.send(_request(target, method))
        answer = await wire.read([])
        self.checker.counts[str(answer.status)] += 1
        if answer.status != status or not answer.body.startswith(b'{"error":'):
            self.checker.violation("wrong refusal", f"{method} {target}: {answer}")

    def _event(self) -> str:
        luck = self.rng.random()
        if luck > 0.7:
            return self.rng.choice(HOT)
        if luck > 0.03:
            return self.rng.choice(EVENTS)
        self._new += 1
        return f"small-new-{self.number}-{self._new}"


class _Wire:
    """A connection to an instance."""

    def __init__(
        self,
        reader: StreamReader,
        writer: StreamWriter,
        checker: Checker,
        instance: int,
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.since = self.sent = (
            time.monotonic()
        )  # `since` is when the answer that is due now could begin
        self._checker = checker
        self._instance = instance

    @classmethod
    async def open(cls, port: int, checker: Checker, instance: int) -> Self:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port), checker, instance)

    def close(self) -> None:
        """Let go."""
        self.writer.close()

    def reset(self) -> None:
        """Reset the connection."""
        with contextlib.suppress(OSError):
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.writer.transport.abort()

    def send(self, data: bytes) -> None:
        """Send one or more requests, or a part of one."""
        self.since = self.sent = time.monotonic()
        self.writer.write(data)

    async def receive(
        self, events: Sequence[str], *, is_list: bool = False, read_late: bool = False
    ) -> Answered:
        """Read the next answer and have it checked."""
        answer = await self.read(events)
        answer.is_list, answer.read_late = is_list, read_late
        if not read_late:
            self.since = answer.received
        self._checker.check(answer)
        return answer

    async def read(self, events: Sequence[str]) -> Answered:
        """Read the next answer."""
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head[:-4].split("\r\n")
            headers = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in lines)
            }
            status = int(first.split(" ")[1])
            body = (
                b""
                if status == 304
                else await self.reader.readexactly(int(headers["content-length"]))
            )
        return Answered(
            sent=self.since,
            pipelined=self.sent,
            received=time.monotonic(),
            instance=self._instance,
            event_ids=events,
            status=status,
            headers=headers,
            body=body,
        )


def _request(target: str, method: str = "GET", more: str = "") -> bytes:
    return f"{method} {PATH}{target} HTTP/1.1\r\nHost: soak\r\n{more}\r\n".encode()
