"""The upstream: one GET, the meaning of its answer, extraction from its JSON, errors,
and event ids.
"""

EVENTS_ENDPOINT, SUBSCRIPTIONS_ENDPOINT = (
    "events",
    "event-subscriptions",
)  # its endpoints
