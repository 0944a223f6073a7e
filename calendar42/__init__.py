"""The upstream: its endpoints, the meaning of its replies, extraction from its JSON,
errors, event ids, and connections whose calls end at a deadline.
"""

EVENTS_ENDPOINT = "events"
SUBSCRIPTIONS_ENDPOINT = "event-subscriptions"
ENDPOINTS = (EVENTS_ENDPOINT, SUBSCRIPTIONS_ENDPOINT)  # all that are called
