"""Answers the requests that the server rejects before the app sees them."""

from collections.abc import Callable

from answers import response
from serving.interface import Serialized, serialize


class Rejections:
    """Makes the error for each rejected request, as the app would answer it.

    `on_rejection` gets its status. `log` gets status and message, and returns the id
    under which the log has them.
    """

    def __init__(
        self,
        origins: frozenset[str],
        *,
        on_rejection: Callable[[int], None],
        log: Callable[[int, str], str],
    ) -> None:
        self._origins = origins  # whose pages may read answers
        self._on_rejection = on_rejection
        self._log = log

    def reject(self, status: int, message: str, origin: str) -> Serialized:
        """Count, log and answer a request.

        `origin` is its Origin header, as far as it can be read.
        """
        self._on_rejection(status)
        request_id = self._log(status, message)
        rendered = response.error(status, message, ("X-Request-ID", request_id))
        if status == 503:
            rendered.headers.append(response.SOON)
        rendered.headers.extend(response.cors(self._origins, origin, "GET"))
        return serialize(*rendered)
