"""Mutants that no test can kill, since the change makes no difference that anybody could see; see `tests/mutants.py`.

An entry names the line's text rather than its number, so that it stays right when lines move.
"""

from typing import NamedTuple


class Equivalent(NamedTuple):
    """A change to a line, and why it can't matter."""

    file: str
    text: str
    change: str
    reason: str


EQUIVALENT: list[Equivalent] = []
