"""The rules of Calendar42.

Its endpoints, what its replies mean, what is read from its JSON, errors, event ids, and
connections whose calls end at a deadline.
"""

from typing import Final, Literal, get_args

# All that are called. The metrics and the status page have figures for each.
Endpoint = Literal["events", "event-subscriptions"]
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
EVENTS_ENDPOINT: Final = "events"
SUBSCRIPTIONS_ENDPOINT: Final = "event-subscriptions"
