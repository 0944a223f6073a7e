"""Validates event ids and lists of them."""

import re

RULE = "an event id is 1 to 128 letters, digits, hyphens and underscores"
LIST_FORM = "expected ids separated by commas, such as ?event_ids=a,b,c"
MAX_IDS = 100  # in a list: the largest page of Calendar42
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
# In brackets, as Calendar42 writes a list, or without.
_LIST = re.compile(r"\[([^\[\]]+)\]|([^\[\]]+)")


class BadIds(ValueError):
    """Not an event id, or not a list of them; the text says what is wrong."""


def validate_id(event_id: str) -> str:
    """Return `event_id` if it is one, else raise `BadIds`.

    Other characters could change the meaning of a URL.
    """
    if not _EVENT_ID.fullmatch(event_id):
        raise BadIds(RULE)
    return event_id


def parse_list(values: list[str]) -> list[str]:
    """Return the ids of `event_ids=a,b,c` or `event_ids=[a,b,c]`, else raise `BadIds`.

    `values` are all of that parameter, which may come several times.
    """
    event_ids: list[str] = []
    for value in values:
        found = _LIST.fullmatch(value)
        if not found:
            raise BadIds(LIST_FORM)
        text = found[1] or found[2]
        event_ids += text.split(",")
    if not event_ids:
        raise BadIds(LIST_FORM)
    if len(event_ids) > MAX_IDS:
        raise BadIds(
            f"event_ids has {len(event_ids)} entries; at most {MAX_IDS} are allowed"
        )
    for position, event_id in enumerate(event_ids, 1):
        if not _EVENT_ID.fullmatch(event_id):
            raise BadIds(f"entry {position} of event_ids is wrong: {RULE}")
    return event_ids
