"""What the server and the app that it serves hand to each other."""

from collections.abc import Callable, Iterable

from serving.request import Request

# An answer: status line and header lines, each with its CRLF; and the body.
Serialized = tuple[bytes, bytes]
# Answers one particular request, or returns None if that needs a worker.
FastPath = Callable[[], Serialized | None]
# Finds the fast path of a request, if it has one. A fast path is remembered for as long
# as its request is: it must hold no more than it needs, and not the request itself.
FindFastPath = Callable[[Request], FastPath | None]
# Takes an answer, or None if the app raised.
OnDone = Callable[[Serialized | None], None]
# Makes an error from a status, a message, and the Origin header or "".
MakeRejection = Callable[[int, str, str], Serialized]
# Has a request, given as its head, answered by a worker.
Dispatch = Callable[[bytes, OnDone], object]

FAILED = "the service failed; its log says why"


def serialize(
    status: str, headers: Iterable[tuple[str, str]], body: bytes
) -> Serialized:
    """Return an answer as bytes; `status` is the code and the reason."""
    lines = [f"HTTP/1.1 {status}"]
    lines += [f"{name}: {text}" for name, text in headers]
    lines.append("")
    return "\r\n".join(lines).encode("latin-1"), body
