"""The log: one line per record, as text or as a JSON object, on stderr.

Logging holds nobody up. The thread that logs makes the line and queues it; another
thread writes it. If stderr takes nothing for so long that the queue is full, further
lines are dropped and counted, and the log says how many when it goes on.
`flush()` waits at most `FLUSH_SECONDS` for the queued lines; call it before `os._exit`.
`logging.shutdown()` would not return while stderr takes nothing: Flask and Python
have handlers of their own, which flush stderr, and that waits for the writing thread.

Values for programs to read, `extra={"fields": {…}}`, are only in the JSON object; a
request's id is in both.
"""

import json
import logging
import os
import re
import sys
import time
from contextlib import suppress
from contextvars import Context, ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue

MAX_QUEUED = 2**20  # characters
FLUSH_SECONDS = 1.0

# Of the request that the thread works on.
request_id = ContextVar("request_id", default="")


class _Formatter(logging.Formatter):
    """Makes each record one line, without the token.

    Control characters are escaped, so that no id and no message of Calendar42's can
    forge a line.
    """

    def __init__(self, form: str, token: str = "") -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._is_json = form == "json"
        self._token: re.Pattern[str] | None = None
        if token:
            self._token = _find_token(token)

    def format(self, record: logging.LogRecord) -> str:
        if self._is_json:
            line = json.dumps(self._fields(record), default=str)
        else:
            line = super().format(record)
        if self._token:
            line = self._token.sub("***", line)
        return _escape(line)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return local time with its offset from UTC."""
        local = datetime.fromtimestamp(record.created, UTC).astimezone()
        return local.isoformat(sep=" ", timespec="milliseconds")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        its_id = request_id.get()
        if its_id:
            line += f" request={its_id}"
        return line

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        created = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, object] = dict(getattr(record, "fields", {}))
        fields["time"] = created.isoformat(timespec="milliseconds")
        fields["level"] = record.levelname
        fields["logger"] = record.name
        fields["pid"] = os.getpid()
        fields["message"] = record.getMessage()
        its_id = request_id.get()
        if its_id:
            fields["request_id"] = its_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return fields


def _find_token(token: str) -> re.Pattern[str]:
    """Return a pattern that finds the token, however it is escaped.

    `repr`, JSON or both may have escaped its quotes and backslashes.
    """
    pattern = ""
    if token[0] in "\\\"'":
        pattern = r"(?<!\\)"  # looks at each run of backslashes once
    for slashes, quote, rest in re.findall(r"""(\\*)(["']?)([^\\"']*)""", token):
        if slashes:
            pattern += rf"\\{{{len(slashes)},}}"
        elif quote:
            pattern += r"\\*"
        pattern += quote + re.escape(rest)
    return re.compile(pattern)


def _escape(line: str) -> str:
    """Write control characters as in Python's string literals."""
    if line.isprintable():
        return line
    chars = [char if char.isprintable() else repr(char)[1:-1] for char in line]
    return "".join(chars)


class _Writer(QueueListener):
    """The thread that writes the queued lines.

    `written` counts their characters; only this thread changes it.
    """

    written = 0

    def handle(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # nobody can read it any more
            if sys.stderr:  # None if it was closed when Python started
                sys.stderr.write(f"{record.msg}\n")
        self.written += len(record.msg)


class _Handler(QueueHandler):
    """Queues lines for the thread that writes them, which starts with the first line.

    The handler's own lock guards all fields: `Handler.handle` holds it. That lock is
    reentrant and `SimpleQueue` is too, so a signal handler may log and flush.
    """

    def __init__(self) -> None:
        super().__init__(SimpleQueue())
        self._pid = 0  # of the process with the thread
        self._begin()

    def _begin(self) -> None:
        """Begin with an empty queue."""
        self.queue = SimpleQueue()
        self.dropped = 0  # lines
        self._unreported = 0  # of these
        self._queued = 0  # characters, the written ones included
        self._writer = _Writer(self.queue)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Make the line here: request id and exception are those of this thread."""
        return logging.makeLogRecord({"msg": self.format(record)})

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._pid != os.getpid():
            self._start()
        waiting = self._queued - self._writer.written
        limit = MAX_QUEUED
        if self._unreported:
            limit //= 2  # or the log would alternate between lines and reports
        if waiting + len(record.msg) > limit:
            self.dropped += 1
            self._unreported += 1
            return
        if self._unreported:
            self._report()
        self._put(record)

    def flush(self) -> None:
        """Wait until all is written, or `FLUSH_SECONDS`."""
        if self._pid != os.getpid():
            return
        self.acquire()
        if self._unreported:
            self._report()
        self.release()
        end = time.monotonic() + FLUSH_SECONDS
        while self._writer.written < self._queued and time.monotonic() < end:
            time.sleep(0.001)

    def close(self) -> None:
        """Have the thread end once it has written the queued lines."""
        super().close()
        if self._pid == os.getpid():
            self._writer.enqueue_sentinel()

    def _start(self) -> None:
        """Start the thread in this process, with an empty queue.

        After a fork, the parent still writes what it had queued.
        """
        self._begin()
        self._writer.start()
        self._pid = os.getpid()

    def _report(self) -> None:
        """Queue a line about those that were dropped."""
        text = f"dropped {self._unreported} log lines: stderr is read too slowly"
        record = logging.LogRecord("c42c", logging.WARNING, "", 0, text, None, None)
        self._unreported = 0
        # In a context of its own, because it's about no request.
        self._put(Context().run(self.prepare, record))

    def _put(self, record: logging.LogRecord) -> None:
        self._queued += len(record.msg)
        self.queue.put_nowait(record)


def configure(level: str, form: str, token: str) -> None:
    """Log to stderr as `form` ("text" or "json"), without the token.

    Our own lines are logged from `level` on, those of libraries from WARNING on.
    """
    handler = _Handler()
    handler.setLevel(level)
    handler.setFormatter(_Formatter(form, token))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("c42c").setLevel(level)


def flush() -> None:
    """Wait until all queued lines are written, `FLUSH_SECONDS` at most."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def dropped() -> int:
    """Return how many lines were dropped because the queue was full."""
    handlers = logging.getLogger().handlers
    return sum(one.dropped for one in handlers if isinstance(one, _Handler))


def complain(text: str, form: str) -> None:
    """Print why the service does not start.

    If `form` is "json", these are log lines; otherwise the text as it is. Waits at most
    `FLUSH_SECONDS`.
    """
    handler = _Handler()
    if form == "json":
        handler.setFormatter(_Formatter(form))
    for line in text.splitlines():
        handler.handle(
            logging.LogRecord("c42c", logging.ERROR, "", 0, line, None, None)
        )
    handler.flush()
    handler.close()
