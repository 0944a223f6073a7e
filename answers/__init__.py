"""Turns Calendar42's answers into what is cached, and that into HTTP responses."""

LIST_PATH = "/events-with-subscriptions"
EVENT_PREFIX = LIST_PATH + "/"
EVENT_PATH = EVENT_PREFIX + "<event_id>"  # as Flask writes a route
