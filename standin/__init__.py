"""Stands in for Calendar42 on real sockets, in the demo and the tests.

It knows some events, and has faults on demand. `data` has the events, `api` answers as
Calendar42 would, `rules` says what goes wrong, `server` has the sockets, and `demo` is
what `make demo` shows.
"""

from standin.data import DEMO_EVENTS
from standin.demo import Demo, greeting
from standin.rules import Gate, Rule
from standin.server import Standin

__all__ = ["DEMO_EVENTS", "Demo", "Gate", "Rule", "Standin", "greeting"]
