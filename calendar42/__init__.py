"""The upstream: one GET, the meaning of its answer, extraction from its JSON, errors, and event ids."""

EVENTS, SUBSCRIPTIONS = "events", "event-subscriptions"  # its endpoints
