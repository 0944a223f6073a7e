"""What a reply of Calendar42 means, and how much memory replies may take.

The README has a table of what replies mean.
"""

import errno
import html
import json
import os
import re
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from calendar42 import Endpoint
from calendar42.errors import C42Error, TooLarge

MAX_BODY = 8 * 2**20  # bytes of one reply, unpacked
MAX_BODIES = 64 * 2**20  # bytes of all replies that are being read
MAX_ERROR_BODY = 8 * 2**10  # bytes of an error that are passed through
# Content-Encodings that `requests` undoes, though only gzip was asked for.
_UNDONE = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})
_NESTED = 5  # levels of escaping that are undone
_ESCAPES = re.compile(r"[\\&%\0]")  # a text without these has nothing escaped


class Reply(NamedTuple):
    """What came back.

    A `body` over its limit is cut somewhere beyond it.
    """

    status: int
    headers: Mapping[str, str]  # by name, in whatever case
    body: bytes | bytearray

    @property
    def retry_after(self) -> str:
        """What the header of this name says; nothing if there is none."""
        return self.headers.get("Retry-After", "")


class Room:
    """Counts the bytes that all threads hold of replies; there is room for `size`.

    Nobody waits for room, so replies that are half read can't wait for each other.
    """

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()  # guards `_left`
        self._left = size

    def take(self, size: int) -> None:
        """Take so many bytes; raise `ENOBUFS` if there is no room for them."""
        with self._lock:
            if size > self._left:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            self._left -= size

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._left += size


def max_body(status: int) -> int:
    """Return how many bytes of a reply with this status are worth reading."""
    if status == 200:
        return MAX_BODY
    if 400 <= status <= 599:
        # The second half may hold the end of a token that is to be redacted.
        return 2 * MAX_ERROR_BODY
    return 0


def read_json(endpoint: Endpoint, reply: Reply) -> Any:
    """Return the JSON of a good reply; raise `C42Error` if it isn't one."""
    if reply.status != 200:
        message = f"Calendar42 answered {reply.status}"
        raise C42Error(endpoint, message, upstream_status=reply.status)
    if len(reply.body) > MAX_BODY:
        message = f"Calendar42 sent more than {MAX_BODY} bytes"
        raise TooLarge(endpoint, message)
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        raise C42Error(endpoint, "Calendar42 sent no JSON") from None


class Redactor:
    """Keeps the token out of what is handed on."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._plain_token = _plain(token)

    def redact(self, text: str) -> str:
        """Return `text` without the token; nothing of it, if the token is escaped.

        That is only looked for in texts of usual length: with millions of characters,
        it would hold up all other threads.
        """
        text = text.replace(self._token, "***")
        if len(text) <= 2 * MAX_ERROR_BODY and self._is_hidden_in(text):
            return "***"
        return text

    def error_body(self, reply: Reply) -> bytes:
        """Return the part of an error's body to pass through.

        It is nothing if the body contains the token, or an escaped one, or is encoded
        in a way that nobody asked for.
        """
        coding = reply.headers.get("Content-Encoding", "")
        if coding.strip().lower() not in _UNDONE:
            return b""
        said = reply.body[: 2 * MAX_ERROR_BODY].decode("latin-1")
        if self.redact(said) != said:
            return b""
        return bytes(reply.body[:MAX_ERROR_BODY])

    def _is_hidden_in(self, text: str) -> bool:
        """Tell whether the token may be in a text, escaped."""
        if not _ESCAPES.search(text):
            return False
        try:
            return self._plain_token in _plain(text)
        except ValueError:
            # An HTML reference to a number with thousands of digits may hide it.
            return True


def _plain(text: str) -> str:
    """Undo escaping in JSON, HTML and URLs, even if nested."""
    for _ in range(_NESTED):
        text = re.sub(r"(?<!\\)\\+(?:u00|x)([0-9a-fA-F]{2})", _character, text)
        text = unquote(html.unescape(text))
        text = text.replace("\0", "")  # UTF-16 has one beside each character
    return text.replace("\\", "")


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16))
