"""`python -m standin` runs the stand-in by hand until Ctrl-C.

It prints its address and the ids to try.
"""

import argparse
import contextlib
import threading

from standin import DEMO_EVENTS, Standin

parser = argparse.ArgumentParser(
    prog="python -m standin", description="A Calendar42 stand-in on loopback."
)
parser.add_argument(
    "--port", type=int, default=0, help="where to listen (default: any free port)"
)
parser.add_argument(
    "--token", default="demo-token", help="the token to accept (default: %(default)s)"
)
options = parser.parse_args()
with (
    contextlib.suppress(KeyboardInterrupt),
    Standin(options.token, options.port) as upstream,
):
    print(f"{upstream.base_url}  (Authorization: Token {options.token})")
    for name, event_id in DEMO_EVENTS.items():
        print(f"{name:16} {event_id}", flush=True)
    threading.Event().wait()
