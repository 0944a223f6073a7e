"""What is kept and sent of Calendar42's answers, down to the bytes of a response."""

EVENTS = "/events-with-subscriptions"
EVENT = EVENTS + "/<event_id>"  # as Flask writes a route
