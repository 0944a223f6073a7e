"""The answers that clients haven't taken, bounded in bytes for all clients together."""

from operator import attrgetter
from typing import Protocol

from serving.limits import FREED_PART


class Recipient(Protocol):
    """A connection with an answer that its client hasn't taken in full."""

    last_progress: float  # when its client took the last byte, or was answered

    def drop(self) -> None:
        """Disconnect the client at once, and remove it here."""


class UnsentAnswers:
    """Counts what is held for clients that take their answers slowly.

    If that is more than `max_bytes`, those that have gone longest without taking a byte
    are dropped, down to fifteen sixteenths, so that not every new answer causes a
    search. The client of the new answer isn't dropped for it. One body that goes to
    many clients is held, and counted, once.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._answers: dict[Recipient, list[bytes]] = {}
        self._holders: dict[int, int] = {}  # how many clients hold an answer, by its id

    def add(self, client: Recipient, data: bytes) -> None:
        """Count an answer that `client` hasn't taken yet."""
        self._answers.setdefault(client, []).append(data)
        holders = self._holders.get(id(data), 0)
        self._holders[id(data)] = holders + 1
        if holders == 0:
            self._bytes += len(data)
        if self._bytes > self._max_bytes:
            self._drop_slowest(keep=client)

    def remove(self, client: Recipient) -> None:
        """Stop counting the answers of `client`: it has taken them, or is gone."""
        for data in self._answers.pop(client, ()):
            holders = self._holders.pop(id(data)) - 1
            if holders > 0:
                self._holders[id(data)] = holders
            else:
                self._bytes -= len(data)

    def _drop_slowest(self, keep: Recipient) -> None:
        enough = self._max_bytes - self._max_bytes // FREED_PART
        others = [client for client in self._answers if client is not keep]
        others.sort(key=attrgetter("last_progress"))
        for client in others:
            client.drop()
            if self._bytes <= enough:
                break
