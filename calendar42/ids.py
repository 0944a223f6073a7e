"""Validates event ids and lists of them."""

import re

_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
RULE = "an event id is 1 to 128 letters, digits, hyphens and underscores"
MAX_IDS = 100  # ids: the largest page of Calendar42


class BadIds(ValueError):
    """Not an event id, or not a list of them; the text says what is wrong."""


def validate_id(event_id: str) -> str:
    """Return `event_id`, or raise `BadIds`: other characters could change the meaning
    of a URL.
    """
    if not _EVENT_ID.fullmatch(event_id):
        raise BadIds(RULE)
    return event_id


def parse_list(values: list[str]) -> list[str]:
    """Return the ids of `event_ids=[a,b,c]`, Calendar42's form of a list, given all
    `values` of that parameter.
    """
    if len(values) != 1 or not re.fullmatch(r"\[[^\[\]]+\]", values[0]):
        raise BadIds("expected one list of ids in brackets, such as ?event_ids=[a,b,c]")
    event_ids = values[0][1:-1].split(",")
    if len(event_ids) > MAX_IDS:
        raise BadIds(
            f"event_ids has {len(event_ids)} entries; at most {MAX_IDS} are allowed"
        )
    for position, event_id in enumerate(event_ids, 1):
        if not _EVENT_ID.fullmatch(event_id):
            raise BadIds(f"entry {position} of event_ids is wrong: {RULE}")
    return event_ids
