"""What Calendar42 is: one GET, what its answer means, what is read out of it, its errors and ids."""

EVENTS, SUBSCRIPTIONS = "events", "event-subscriptions"  # its endpoints
