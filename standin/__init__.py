"""A Calendar42 stand-in on real sockets, for the demo and the tests: known events, and faults on demand.

`data` has the events, `api` says what Calendar42 would, `rules` what goes wrong, `server` has the sockets.
"""

from standin.data import EVENTS, SHOWN
from standin.rules import Gate, Rule
from standin.server import Standin

__all__ = ["EVENTS", "SHOWN", "Gate", "Rule", "Standin"]
