"""A Calendar42 stand-in on real sockets, for the demo and the tests: known events, and
faults on demand.

`data` has the events, `api` answers as Calendar42 would, `rules` what goes wrong,
`server` has the sockets, and `demo` is what `make demo` shows.
"""

from standin.data import DEMO_EVENTS
from standin.demo import Demo, greeting
from standin.rules import Gate, Rule
from standin.server import Standin

__all__ = ["DEMO_EVENTS", "Demo", "Gate", "Rule", "Standin", "greeting"]
