"""The upstream: one GET, the meaning of its answer, extraction from its JSON, errors,
and event ids.
"""

EVENTS_ENDPOINT = "events"
SUBSCRIPTIONS_ENDPOINT = "event-subscriptions"
ENDPOINTS = (EVENTS_ENDPOINT, SUBSCRIPTIONS_ENDPOINT)  # all that are called
