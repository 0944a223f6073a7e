"""How a log line looks: one line per record, whatever is in it, as text or as one JSON object.

A record may bring values of its own, for programs to read, as `extra={"fields": {…}}`: the JSON object has them as they
are, the text has what its message says.
"""

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class _Text(logging.Formatter):
    """Escapes control characters, so that no id and no upstream message can forge a line or move a cursor."""

    def __init__(self, secret: str) -> None:
        super().__init__(_TEXT)
        self._secret = secret

    def format(self, record: logging.LogRecord) -> str:
        line = _blank(super().format(record), self._secret)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


class _Json(logging.Formatter):
    """Writes ASCII, so that nothing can be forged here either."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret

    def format(self, record: logging.LogRecord) -> str:
        line = getattr(record, "fields", {}) | {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        blank = {key: _blank(text, self._secret) for key, text in line.items() if isinstance(text, str)}
        return json.dumps(line | blank, default=str)


def _blank(text: str, secret: str) -> str:
    return text.replace(secret, "***") if secret else text


def configure(level: str, form: str, secret: str) -> None:
    """Send all logs of `level` and above to stderr, as `form` ("text" or "json"); `secret` is blanked out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(secret) if form == "json" else _Text(secret))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def complain(lines: Iterable[str], form: str) -> None:
    """Print why the service does not start: as log lines if `form` is "json", otherwise as they are."""
    for line in lines:
        record = logging.LogRecord("c42c", logging.ERROR, "", 0, line, None, None)
        print(_Json("").format(record) if form == "json" else line, file=sys.stderr)
