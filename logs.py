"""How a log line looks: one line per record, whatever is in it."""

import logging
import sys


class _OneLine(logging.Formatter):
    """Escapes control characters, so that no id and no upstream message can forge a line or move a cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in super().format(record))


def configure(level: str) -> None:
    """Send all logs of `level` and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
