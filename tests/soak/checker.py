"""Checks every answer against what the upstream said, and when.

All times are `time.monotonic()` of this process. The checker can't see when the service
began a load or sent an answer, only when the upstream was asked (later than the load
began) and when the answer arrived (later than it was sent). The first makes it lenient
by itself; the second needs a tolerance: `SLACK` for what two processes and a socket
take on a quiet machine, and twice the longest delay of this process's own event loop
meanwhile, since the service's share the same cores. By as much, the service may also
be late to read a reply, to notice a fault, or to time out.
"""

import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.soak.upstream import PAUSE, Stamp, UpstreamCall, is_removed

SLACK = 0.15  # seconds
SHOWN = 3  # violations of each kind that are printed in full
# Seconds after an outage until instances must load together again: five until they ask
# Redis again, and one for that.
SETTLING = 6.0
DEFINITE = frozenset(range(400, 500)) - {401, 403, 407, 408, 421, 425, 429}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the service was told, in seconds."""

    expiry: float
    fault_expiry: float
    timeout: float


@dataclass(slots=True, kw_only=True)
class Answered:
    """One response of the service, and the request it answers. Times are in seconds.

    A pipelined request counts as sent once the answer before its own has been received;
    `pipelined` is when it was really sent: if this process was slow since, the answer
    waited to be read.
    """

    sent: float
    received: float
    event_ids: Sequence[str]
    status: int
    headers: Mapping[str, str]  # lower-case names
    body: bytes
    instance: int = 0
    pipelined: float = math.inf
    is_list: bool = False
    read_late: bool = False  # by a slow reader: `received` says nothing

    @property
    def fresh_for(self) -> float | None:
        """The seconds for which a client may keep it; None if it says nothing."""
        for part in self.headers.get("cache-control", "").split(","):
            name, _, value = part.strip().partition("=")
            if name == "max-age":
                return float(value) - float(self.headers.get("age", 0))
        return None


@dataclass
class Checker:
    """Collects violations.

    `calls` and `by_event` are the upstream's log; `lag` gives our own delay since a
    time.
    """

    rules: Rules
    calls: Mapping[int, UpstreamCall]
    by_event: Mapping[str, Sequence[UpstreamCall]]
    lag: Callable[[float], float] = lambda since: 0.0
    counts: Counter[str] = field(default_factory=Counter)  # answers, by status
    found: Counter[str] = field(default_factory=Counter)  # violations, by kind
    shown: list[str] = field(default_factory=list)
    calm_since: float | None = (
        # When the last outage of Redis or an instance ended; None: one is under way.
        None
    )
    _bodies: dict[tuple[str, str], bytes] = field(
        default_factory=dict
    )  # by request and ETag
    _running: defaultdict[str, deque[UpstreamCall]] = field(
        default_factory=lambda: defaultdict(deque)
    )
    _pauses: dict[int, UpstreamCall] = field(
        default_factory=dict
    )  # by instance, the latest 429
    _suspended: defaultdict[int, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    doubled_elsewhere: int = (
        0  # loads of what another instance was loading, in calm times
    )

    def violation(self, kind: str, text: str) -> None:
        """Note one."""
        self.found[kind] += 1
        if self.found[kind] <= SHOWN:
            self.shown.append(f"{kind}: {text}")

    def suspended(self, instance: int, begin: float, end: float) -> None:
        """Note that an instance was stopped or dead for a while.

        Nothing is expected of it then.
        """
        self._suspended[instance].append((begin, end))
        self._pauses.pop(instance, None)

    def called(self, call: UpstreamCall) -> None:
        """Check that a call that has just begun is allowed.

        Nobody else may be loading its events, and there may be no pause.
        """
        pause = self._pauses.get(call.instance)
        in_pause = False
        if pause and pause.ended:
            tolerance = self._tolerance(pause.ended)
            in_pause = tolerance < call.asked - pause.ended < PAUSE - tolerance
        # An instance that was away may not have read the 429 yet.
        if (
            pause
            and in_pause
            and not self._was_away(call.instance, pause.asked, call.asked)
        ):
            self.violation("called in a pause", f"{call} after {pause}")
        if call.fault == "pause":
            self._pauses[call.instance] = call
        if call.endpoint != "events":
            return
        for event_id in call.event_ids:
            running = self._running[event_id]
            while running and self._is_over(running[0], call.asked):
                running.popleft()
            for other in running:
                if self._is_over(other, call.asked) or self._was_away(
                    other.instance, other.asked, call.asked
                ):
                    continue
                if other.instance == call.instance:
                    self.violation(
                        "loaded twice at once", f"{event_id}: {other} and {call}"
                    )
                elif self._is_awaited(other, call.asked):
                    self.doubled_elsewhere += 1
            running.append(call)

    def _is_awaited(self, call: UpstreamCall, now: float) -> bool:
        """Whether other instances still wait for this call.

        They wait for half of the time-out, if the call isn't slow and nothing has
        happened to Redis for a while.
        """
        if self.calm_since is None or call.asked <= self.calm_since + SETTLING:
            return False
        longest = self.rules.timeout / 2 - self._tolerance(call.asked - SLACK)
        return now < call.asked + longest

    def _is_over(self, call: UpstreamCall, now: float) -> bool:
        if call.ended is not None and call.ended <= now:
            return True
        longest = self.rules.timeout - self._tolerance(call.asked - SLACK)
        return now > call.asked + longest

    def lost(self, instance: int, sent: float, now: float, what: str) -> None:
        """Check that a request without an answer was for an instance that was away."""
        if not self._was_away(instance, sent, now):
            when = f"sent at {sent:.3f}, {now - sent:.3f} s ago"
            self.violation("no answer", f"instance {instance}, {when}: {what}")

    def _was_away(self, instance: int, begin: float, end: float) -> bool:
        return any(
            begin <= until + 0.5 and since <= end
            for since, until in self._suspended[instance]
        )

    def _tolerance(self, since: float) -> float:
        return SLACK + 2 * self.lag(since)

    def check(self, answer: Answered) -> None:
        """Check one answer for one event or a list."""
        self.counts[str(answer.status)] += 1
        away = self._was_away(answer.instance, answer.sent, answer.received)
        took, tolerance = (
            answer.received - answer.sent,
            self._tolerance(min(answer.sent, answer.pipelined)),
        )
        if (
            took > self.rules.timeout + 1 + tolerance
            and not answer.read_late
            and not away
        ):
            self._complain("answered late", answer, f"after {took:.2f} s")
        key = (",".join(answer.event_ids), answer.headers.get("etag", ""))
        if answer.status == 304:
            if answer.body or key not in self._bodies:
                self._complain(
                    "wrong 304", answer, "it has a body, or nobody ever got this ETag"
                )
                return
            answer.body, answer.status = self._bodies[key], 200
        elif answer.status == 200 and key[1]:
            self._bodies[key] = answer.body
            if len(self._bodies) > 5000:
                del self._bodies[next(iter(self._bodies))]
        try:
            is_text = answer.headers.get("content-type", "").startswith("text/plain")
            # A body that isn't in the envelope is passed through as text, and has no
            # stamp.
            said = (
                {"error": {"status_code": answer.status, "message": ""}}
                if is_text
                else json.loads(answer.body)
            )
            if answer.is_list:
                self._check_list(answer, said)
            else:
                self._check_part(answer, answer.event_ids[0], answer.status, said)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._complain("unreadable", answer, repr(error))

    def _check_list(self, answer: Answered, said: Any) -> None:
        data, errors = {part["id"]: part for part in said["data"]}, said["errors"]
        wanted = [
            event_id
            for event_id in dict.fromkeys(answer.event_ids)
            if event_id not in errors
        ]
        if (
            list(data) != wanted
            or len(said["data"]) != len(wanted)
            or not errors.keys() <= set(answer.event_ids)
        ):
            self._complain(
                "wrong list", answer, f"has {list(data)} and errors for {list(errors)}"
            )
        for event_id, part in data.items():
            self._check_part(answer, event_id, 200, part)
        for event_id, part in errors.items():
            self._check_part(answer, event_id, part["status_code"], {"error": part})

    def _check_part(
        self, answer: Answered, event_id: str, status: int, said: Any
    ) -> None:
        if status == 200:
            self._check_success(answer, event_id, said)
            return
        message = said["error"]["message"]
        if said["error"]["status_code"] != status:
            self._complain(
                "wrong status", answer, f"{status}, but the body says {said}"
            )
        if (
            event_id.startswith(("deleted", "unknown"))
            and status == 404
            and "|" not in message
        ):
            return  # the service's own words; it stays so
        if status not in DEFINITE and answer.fresh_for is not None:
            self._complain("untruthful", answer, "a fault may not be kept by clients")
        if "|" in message:
            self._check_stamped(answer, event_id, status, Stamp.parse(message))
        else:
            self._check_unstamped(answer, event_id, status)

    def _check_success(self, answer: Answered, event_id: str, said: Any) -> None:
        title, names = (
            Stamp.parse(said["title"]),
            [Stamp.parse(name) for name in said["names"]],
        )
        stamps = [title, *names]
        if list(said) != ["id", "title", "names"] or {
            said["id"],
            *(one.event_id for one in stamps),
        } != {event_id}:
            self._complain("mixed", answer, f"{event_id} has {said}")
        total = names[0].total if names else 0
        right = [position for position in range(total) if not is_removed(position)]
        if (
            not names
            or [one.position for one in names] != right
            or len({one.version for one in names}) > 1
        ):
            said = Counter((one.serial, one.version, one.total) for one in names)
            self._complain(
                "incomplete",
                answer,
                f"{event_id}; names by (call, version, total): {dict(said)}",
            )
        for stamp in stamps:
            call = self.calls.get(stamp.serial)
            if call and (event_id not in call.event_ids or 200 not in call.statuses):
                self._complain("mixed", answer, f"{event_id}: {stamp} is of {call}")
        self._check_age(
            answer, event_id, min(one.asked for one in stamps), self.rules.expiry
        )

    def _check_stamped(
        self, answer: Answered, event_id: str, status: int, stamp: Stamp
    ) -> None:
        call = self.calls.get(stamp.serial)
        if call and (event_id not in call.event_ids or status not in call.statuses):
            self._complain("mixed", answer, f"{event_id}: {status} from {call}")
        if status in DEFINITE and (call is None or call.single):
            self._check_age(answer, event_id, stamp.asked, self.rules.expiry)
            return
        # Of a list's events, only one may be known, so that its call for subscriptions
        # looks like that of one event.
        load = self._load(call, event_id, answer.received) if call else []
        of_list = any(
            not one.single and {*one.event_ids} <= {*answer.event_ids} for one in load
        )
        if of_list and answer.is_list:
            # The failure of a list is told to that list, whenever the rest of it comes,
            # and isn't kept.
            return
        found = (
            self._load_ended(call, event_id, answer.received) if call else stamp.asked
        )
        kept = (
            self.rules.fault_expiry
            if status != 429
            else max(PAUSE, self.rules.fault_expiry)
        )
        self._check_age(answer, event_id, found, kept)
        is_kept = not answer.is_list and status != 429  # a pause is for all events
        if (
            call
            and not call.single
            and is_kept
            and "; hit" in answer.headers.get("cache-status", "")
        ):
            self._complain("list's fault kept", answer, f"{event_id}: {call}")

    def _check_unstamped(self, answer: Answered, event_id: str, status: int) -> None:
        """Check that something upstream explains an error without a stamp.

        It must have happened in time.
        """
        reach = self.rules.fault_expiry + self._tolerance(
            min(answer.sent, answer.pipelined)
        )
        if status == 429:
            reach += max(PAUSE, self.rules.fault_expiry)
            calls: Sequence[UpstreamCall] = list(self.calls.values())[
                -5000:
            ]  # a pause is for every event
        else:
            calls = self.by_event.get(event_id, ())
        is_hit = not answer.is_list and "; hit" in answer.headers.get(
            "cache-status", ""
        )
        for call in calls:
            ended = self._load_ended(call, event_id, answer.received)
            explains = status in call.statuses and (
                call.single or not is_hit or status == 429
            )
            if status == 504 and self._may_be_late(call, answer.received):
                explains = True
            if (
                explains
                and call.asked <= answer.received
                and ended >= answer.sent - reach
            ):
                return
        if status == 504 and self._was_away(
            answer.instance, answer.sent - reach - self.rules.timeout, answer.received
        ):
            return  # it slept through its own deadline
        if (
            status == 504
            and answer.is_list
            and answer.received - answer.sent >= self.rules.timeout
        ):
            # The rest of the list took all the time, and there was none left for what
            # had expired meanwhile.
            return
        self._complain(
            "unexplained",
            answer,
            f"{event_id}: {status}; calls: {list(calls)[-3:] if status != 429 else ''}",
        )

    def _load_ended(self, call: UpstreamCall, event_id: str, now: float) -> float:
        """Return when a load ended at the latest, given one of its calls.

        A fault is as old as that.
        """
        return max(
            self._call_ended(one, now) for one in self._load(call, event_id, now)
        )

    def _load(
        self, call: UpstreamCall, event_id: str, now: float
    ) -> list[UpstreamCall]:
        """Return the calls that may be of the same load, this one included."""
        began, end = (
            call.asked - SLACK,
            (call.ended or now) + SLACK,
        )  # one may begin a moment after another has ended
        others = [
            one
            for one in self.by_event.get(event_id, ())
            if one.instance == call.instance
        ]
        return [
            call,
            *(
                one
                for one in others
                if one.asked <= end and began <= (one.ended or now)
            ),
        ]

    def _call_ended(self, call: UpstreamCall, now: float) -> float:
        ended, due = call.ended or now, call.asked + self.rules.timeout
        if self._was_away(call.instance, due, ended):
            return ended  # its instance noticed the time-out when it was back
        return min(now, min(ended, due) + 2 * self.lag(call.asked))

    def _may_be_late(self, call: UpstreamCall, now: float) -> bool:
        """Whether the load may have timed out because the machine stood still.

        It may have stood still before the call arrived, or after its reply was sent.
        """
        took = (call.ended or now) - call.asked
        return took + 2 * self.lag(call.asked - SLACK) >= self.rules.timeout

    def _check_age(
        self, answer: Answered, event_id: str, since: float, lifetime: float
    ) -> None:
        if self._was_away(answer.instance, answer.sent, answer.received):
            return
        seen = (
            answer.sent
            if answer.read_late
            else answer.received - self._tolerance(min(answer.sent, answer.pipelined))
        )
        if seen > since + lifetime:
            self._complain(
                "stale",
                answer,
                f"{event_id} is {seen - since:.3f} s old at least, of {lifetime:g}",
            )
        elif (
            answer.fresh_for is not None and seen + answer.fresh_for > since + lifetime
        ):
            age = seen - since
            self._complain(
                "untruthful",
                answer,
                f"{event_id} is {age:.3f} s old at least, of {lifetime:g}",
            )

    def _complain(self, kind: str, answer: Answered, text: str) -> None:
        asked = ",".join(answer.event_ids)
        times = f"sent {answer.sent:.3f}, received {answer.received:.3f}"
        lines = [
            text,
            f"[{asked}] {answer.status} {times}, instance {answer.instance}",
            str(dict(answer.headers)),
            answer.body[:300].decode(errors="replace"),
        ]
        self.violation(kind, "\n    ".join(lines))
