"""Turns Calendar42's answers into what is cached and sent, down to the bytes of a response."""

EVENTS = "/events-with-subscriptions"
EVENT = EVENTS + "/<event_id>"  # as Flask writes a route
