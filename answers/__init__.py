"""What is kept and sent: from an outcome of Calendar42 to the bytes of a response."""

EVENTS = "/events-with-subscriptions"
EVENT = EVENTS + "/<event_id>"  # as Flask writes a route
