"""The format of log lines: one line per record, as text or as a JSON object.

Values for programs to read, `extra={"fields": {…}}`, are only in the JSON object; a
request's id is in both.
"""

import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

request_id = ContextVar(
    "request_id", default=""
)  # of the request that the thread works on


class _Formatter(logging.Formatter):
    """Escapes control characters, so that no id and no upstream message can forge a
    line; redacts the token.
    """

    def __init__(self, form: str, token: str = "") -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._is_json = form == "json"
        self._token = json.dumps(token)[1:-1] if self._is_json else token

    def format(self, record: logging.LogRecord) -> str:
        line = (
            json.dumps(self._fields(record), default=str)
            if self._is_json
            else super().format(record)
        )
        line = line.replace(self._token, "***") if self._token else line
        return "".join(
            char if char.isprintable() else repr(char)[1:-1] for char in line
        )

    def formatMessage(self, record: logging.LogRecord) -> str:
        its_id = request_id.get()
        return super().formatMessage(record) + (f" request={its_id}" if its_id else "")

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = getattr(record, "fields", {}) | {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname,
            "logger": record.name,
            "pid": os.getpid(),
            "message": record.getMessage(),
        }
        if its_id := request_id.get():
            fields["request_id"] = its_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return fields


def configure(level: str, form: str, token: str) -> None:
    """Log to stderr as `form` ("text" or "json"), without the token: from `level` on,
    and libraries from WARNING on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level)
    handler.setFormatter(_Formatter(form, token))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("c42c").setLevel(level)


def complain(text: str, form: str) -> None:
    """Print why the service does not start: as log lines if `form` is "json", otherwise
    as it is.
    """
    for line in text.splitlines():
        record = logging.LogRecord("c42c", logging.ERROR, "", 0, line, None, None)
        print(
            _Formatter(form).format(record) if form == "json" else line, file=sys.stderr
        )
