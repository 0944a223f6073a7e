"""The soak test's checker finds what it is there to find, and accepts what is right."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import ROOT, until
from tests.soak.__main__ import Pulse
from tests.soak.checker import Answered, Checker, Rules
from tests.soak.upstream import FAULTS, Stamp, UpstreamCall, is_removed

RULES = Rules(expiry=3.0, fault_expiry=0.6, timeout=2.0)
HIT = {"cache-control": "max-age=1", "cache-status": "c42c; hit; ttl=1"}
FAULT = {"cache-control": "no-store", "cache-status": "c42c; hit; ttl=0"}
OUR_504 = {
    "error": {
        "status_code": 504,
        "message": "Calendar42 did not answer",
        "code": "GATEWAY_TIMEOUT",
    }
}
OUR_502 = {
    "error": {
        "status_code": 502,
        "message": "Calendar42 sent no JSON",
        "code": "BAD_GATEWAY",
    }
}


class SoakStory:
    """What an upstream was asked, and a checker that knows it."""

    def __init__(self) -> None:
        self._calls: dict[int, UpstreamCall] = {}
        self._by_event: defaultdict[str, deque[UpstreamCall]] = defaultdict(deque)
        self.checker = Checker(RULES, self._calls, self._by_event)

    def call(
        self,
        *event_ids: str,
        asked: float,
        endpoint: str = "events",
        fault: str = "",
        **more: Any,
    ) -> UpstreamCall:
        """Have the upstream asked; by default it answers after 10 ms."""
        statuses = FAULTS[fault][1] if fault else frozenset({200})
        call = UpstreamCall(
            len(self._calls) + 1,
            more.pop("instance", 0),
            endpoint,
            event_ids,
            asked,
            fault,
            statuses,
        )
        call.single = len(event_ids) == 1
        call.ended = more.pop("ended", asked + 0.01)
        self._calls[call.serial] = call
        for event_id in event_ids:
            self._by_event[event_id].append(call)
        self.checker.called(call)
        return call

    def load(self, event_id: str = "small-1", asked: float = 100.0) -> dict[str, Any]:
        """Have an event loaded, and return the right answer."""
        event = self.call(event_id, asked=asked)
        page = self.call(event_id, asked=asked + 0.001, endpoint="event-subscriptions")
        names = [
            str(Stamp(event_id, page.serial, page.asked, 1, position, 7))
            for position in range(7)
            if not is_removed(position)
        ]
        return {
            "id": event_id,
            "title": str(Stamp(event_id, event.serial, event.asked, 1)),
            "names": names,
        }

    def answer(
        self,
        said: Any,
        *,
        sent: float,
        event_id: str = "small-1",
        status: int = 200,
        **more: Any,
    ) -> list[str]:
        """Check an answer that took 10 ms; return the kinds of violations so far."""
        options: dict[str, Any] = {
            "received": sent + 0.01,
            "event_ids": [event_id],
            "headers": HIT,
        } | more
        self.checker.check(
            Answered(
                sent=sent, status=status, body=json.dumps(said).encode(), **options
            )
        )
        return sorted(self.checker.found)


@pytest.fixture
def story() -> SoakStory:
    return SoakStory()


def test_accepts_what_is_right(story: SoakStory) -> None:
    """A right answer is no violation while it lasts, alone, in a list or as a 304."""
    said = story.load()
    headers = HIT | {"etag": '"1"'}
    assert not story.answer(said, sent=100.0, headers=headers)
    assert not story.answer(said, sent=101.9)
    story.checker.check(
        Answered(
            sent=101.9,
            received=101.9,
            event_ids=["small-1"],
            status=304,
            headers=headers,
            body=b"",
        )
    )
    gone = {
        "deleted-1": {
            "status_code": 404,
            "message": "the event is deleted",
            "code": "NOT_FOUND",
        }
    }
    listed = {"meta_data": {"count": 1}, "data": [said], "errors": gone}
    assert not story.answer(
        listed, sent=101.9, event_ids=["small-1", "deleted-1", "small-1"], is_list=True
    )


@pytest.mark.parametrize("late", [0.2, 2.0])
def test_finds_stale_answers(story: SoakStory, late: float) -> None:
    """An answer is stale if it comes later than its lifetime after its call began."""
    said = story.load(asked=100.0)
    assert story.answer(said, sent=103.0 + late, headers={}) == ["stale"]


def test_our_own_delay_makes_no_answer_stale(story: SoakStory) -> None:
    """Delays of this process count from when the pipelined requests were sent."""
    said = story.load(asked=100.0)
    story.checker.lag = lambda since: 0.5 if since <= 102.0 else 0.0
    assert not story.answer(said, sent=103.5, pipelined=102.0, headers={})
    assert story.answer(said, sent=103.5, pipelined=102.1, headers={}) == ["stale"]


def still(story: SoakStory, begin: float, seconds: float) -> None:
    """Have this machine stand still for a while."""
    end = begin + seconds
    story.checker.lag = lambda since: seconds if since <= end else 0.0


@pytest.mark.parametrize(
    ("seconds", "found"), [(0.0, ["unexplained"]), (0.8, ["unexplained"]), (1.0, [])]
)
def test_a_machine_that_stands_still_causes_time_outs(
    story: SoakStory, seconds: float, found: list[str]
) -> None:
    """A time-out needs no fault if the machine stood still for half of the time."""
    story.call("small-1", asked=100.0)
    still(story, 100.0, seconds)
    assert story.answer(OUR_504, sent=100.0, status=504, headers=FAULT) == found


@pytest.mark.parametrize(("seconds", "found"), [(0.1, ["unexplained"]), (0.5, [])])
def test_a_machine_that_stands_still_notices_faults_late(
    story: SoakStory, seconds: float, found: list[str]
) -> None:
    """A fault may be found later by twice the time for which the machine stood still.

    It is kept from then.
    """
    story.call("small-1", asked=100.0, fault="not JSON")
    still(story, 100.0, seconds)
    assert story.answer(OUR_502, sent=101.2, status=502, headers=FAULT) == found


@pytest.mark.parametrize(
    ("seconds", "found"), [(0.0, ["called in a pause"]), (0.3, [])]
)
def test_a_machine_that_stands_still_begins_pauses_late(
    story: SoakStory, seconds: float, found: list[str]
) -> None:
    """While the machine stood still, nobody could read the 429."""
    story.call("small-1", asked=100.0, fault="pause")
    still(story, 100.0, seconds)
    story.call("small-2", asked=100.4)
    assert list(story.checker.found) == found


def test_a_machine_that_stands_still_excuses_nothing_later(story: SoakStory) -> None:
    """What comes after the machine stood still needs its reason, as always."""
    still(story, 100.0, 1.0)
    story.call("small-1", asked=102.0, ended=102.3)
    assert story.answer(OUR_504, sent=102.0, status=504, headers=FAULT) == [
        "unexplained"
    ]


def test_the_pulse_knows_the_longest_delay() -> None:
    """Our own delay is the longest one that was noticed since a moment."""
    pulse = Pulse()
    for number, delay in enumerate([5.0, 30.0, 10.0, 20.0, 10.0]):
        pulse.note(100.0 + number, delay)
    longest = [pulse.lag(since) for since in (0.0, 101.0, 101.5, 103.0, 103.5)]
    assert longest == [30.0, 30.0, 20.0, 20.0, 10.0]
    assert pulse.lag(105.0) < 5.0


def test_finds_stale_304s(story: SoakStory) -> None:
    """The body that a 304 confirms must not be stale."""
    said, headers = story.load(asked=100.0), {"etag": '"1"'}
    assert not story.answer(said, sent=100.0, headers=headers)
    answer = Answered(
        sent=104.0,
        received=104.0,
        event_ids=["small-1"],
        status=304,
        headers=headers,
        body=b"",
    )
    story.checker.check(answer)
    assert list(story.checker.found) == ["stale"]


def test_finds_304s_of_nothing(story: SoakStory) -> None:
    """A 304 with an ETag that nobody ever got is wrong."""
    assert story.answer("", sent=100.0, status=304, headers={"etag": '"2"'}) == [
        "wrong 304"
    ]


def test_finds_untruthful_lifetimes(story: SoakStory) -> None:
    """`max-age`, less `Age`, must not exceed what is left of the answer's life."""
    said = story.load(asked=100.0)
    assert not story.answer(
        said, sent=101.0, headers={"cache-control": "max-age=3", "age": "1"}
    )
    assert story.answer(said, sent=101.0, headers={"cache-control": "max-age=3"}) == [
        "untruthful"
    ]


def test_finds_faults_that_clients_may_keep(story: SoakStory) -> None:
    """A fault is `no-store`."""
    story.call("small-1", asked=100.0, fault="not JSON")
    assert story.answer(OUR_502, sent=100.0, status=502) == ["untruthful"]


def test_finds_mixed_answers(story: SoakStory) -> None:
    """A title or a name of another event is found, under whatever id it comes."""
    mine, other = story.load("small-1"), story.load("small-2")
    for key in ("title", "names"):
        assert story.answer(mine | {key: other[key]}, sent=100.1) == ["mixed"]
    story.checker.found.clear()
    assert "mixed" in story.answer(other, sent=100.1, event_id="small-1")


@pytest.mark.parametrize("names", [slice(1, None), slice(0, -1), slice(0, 0)])
def test_finds_incomplete_answers(story: SoakStory, names: slice) -> None:
    """All names of one moment belong to an answer, none missing."""
    said = story.load()
    assert story.answer(said | {"names": said["names"][names]}, sent=100.1) == [
        "incomplete"
    ]


def test_finds_moved_pages(story: SoakStory) -> None:
    """Names of two versions of the list don't make an answer."""
    said = story.load()
    last = Stamp.parse(said["names"][-1])
    moved = str(Stamp(last.event_id, last.serial, last.asked, 2, last.position, 8))
    assert story.answer(said | {"names": [*said["names"][:-1], moved]}, sent=100.1) == [
        "incomplete"
    ]


def test_finds_two_loads_at_once(story: SoakStory) -> None:
    """An instance doesn't ask for an event that it is asking for already.

    The event may be alone or in a list.
    """
    story.call("small-1", asked=100.0, ended=100.5)
    story.call("small-1", asked=100.5)
    assert not story.checker.found
    story.call("small-1", "small-2", asked=101.0, ended=None)
    story.call("small-2", asked=102.0)
    assert list(story.checker.found) == ["loaded twice at once"]


def test_finds_loads_of_two_instances(story: SoakStory) -> None:
    """Two instances don't load an event at once, unless something has happened.

    It may have happened to one of them or to Redis.
    """
    story.call("small-1", asked=100.0, ended=101.0)
    story.call("small-1", asked=100.5, instance=1)
    assert story.checker.doubled_elsewhere == 0
    story.checker.calm_since = 101.0
    story.call("small-1", asked=108.0, ended=109.0)
    story.call("small-1", asked=108.5, instance=1)
    assert story.checker.doubled_elsewhere == 1
    assert (
        not story.checker.found
    )  # whether Redis was asked at all, the instances' counters tell


def test_finds_calls_in_a_pause(story: SoakStory) -> None:
    """Nothing is asked while the pause lasts that a 429 asked for."""
    story.call("small-1", asked=100.0, fault="pause")
    story.call("small-2", asked=101.1)
    assert not story.checker.found
    story.checker.suspended(1, 101.2, 101.6)  # which hasn't read the 429 until then
    story.call("small-1", asked=101.1, fault="pause", instance=1)
    story.call("small-2", asked=101.65, instance=1)
    assert not story.checker.found
    story.call("small-3", asked=100.5)
    assert list(story.checker.found) == ["called in a pause"]


@pytest.mark.parametrize(("took", "found"), [(3.1, []), (3.3, ["answered late"])])
def test_finds_late_answers(story: SoakStory, took: float, found: list[str]) -> None:
    """Every request is answered within the time-out and a second.

    The tolerance is less than a fifth of that.
    """
    story.call("small-1", asked=100.0, fault="hang", ended=None)
    said = {
        "error": {
            "status_code": 504,
            "message": "Calendar42 did not answer",
            "code": "GATEWAY_TIMEOUT",
        }
    }
    assert (
        story.answer(said, sent=100.0, received=100.0 + took, status=504, headers=FAULT)
        == found
    )


def test_finds_missing_answers(story: SoakStory) -> None:
    """Only an instance that was stopped or dead may leave a request unanswered."""
    story.checker.suspended(1, 100.0, 102.0)
    story.checker.lost(1, 101.0, 101.1, "reset")
    assert not story.checker.found
    story.checker.lost(0, 101.0, 101.1, "reset")
    assert list(story.checker.found) == ["no answer"]


def test_finds_faults_without_a_reason(story: SoakStory) -> None:
    """An error of the service's own needs a call that explains it, not long ago."""
    story.load()
    assert story.answer(OUR_502, sent=100.1, status=502, headers=FAULT) == [
        "unexplained"
    ]
    story.checker.found.clear()
    story.call("small-1", asked=110.0, fault="not JSON")
    assert not story.answer(OUR_502, sent=110.1, status=502, headers=FAULT)
    assert not story.answer(OUR_502, sent=110.6, status=502, headers=FAULT)
    assert story.answer(OUR_502, sent=111.0, status=502, headers=FAULT) == [
        "unexplained"
    ]


@pytest.mark.parametrize(("until", "found"), [(102.4, []), (101.0, ["unexplained"])])
def test_a_suspended_instance_times_out_late(
    story: SoakStory, until: float, found: list[str]
) -> None:
    """Another instance's time-out is as old as the moment at which it was noticed.

    The instance may have been suspended until then.
    """
    story.call("small-1", asked=100.0, ended=102.5, fault="hang", instance=1)
    story.checker.suspended(1, 101.0, until)
    assert story.answer(OUR_504, sent=102.9, status=504, headers=FAULT) == found


@pytest.mark.parametrize(("took", "found"), [(2.05, []), (1.0, ["unexplained"])])
def test_finds_time_outs_without_a_reason(
    story: SoakStory, took: float, found: list[str]
) -> None:
    """An event times out without a call only if the rest of its list took too long."""
    other = story.load("small-2")
    late = {
        "status_code": 504,
        "message": "Calendar42 did not answer",
        "code": "GATEWAY_TIMEOUT",
    }
    said = {"meta_data": {"count": 1}, "data": [other], "errors": {"small-1": late}}
    options: dict[str, Any] = {
        "event_ids": ["small-1", "small-2"],
        "is_list": True,
        "headers": {},
    }
    assert story.answer(said, sent=100.0, received=100.0 + took, **options) == found


@pytest.mark.parametrize(("status", "lifetime"), [(500, 0.6), (401, 0.6), (410, 3.0)])
def test_finds_errors_that_are_kept_too_long(
    story: SoakStory, status: int, lifetime: float
) -> None:
    """A refusal is kept for as long as a good answer, a fault isn't.

    An error that is passed on says when it was made.
    """
    call = story.call("small-1", asked=100.0, ended=100.0, fault=str(status))
    said = {
        "error": {
            "status_code": status,
            "message": str(Stamp("small-1", call.serial, 100.0)),
            "code": "SOAK",
        }
    }
    assert not story.answer(said, sent=100.0 + lifetime, status=status, headers={})
    assert story.answer(said, sent=100.2 + lifetime, status=status, headers={}) == [
        "stale"
    ]


def test_finds_faults_of_lists_that_are_kept_for_their_members(
    story: SoakStory,
) -> None:
    """The failure of a list isn't an answer for one of its events."""
    story.call("small-1", "small-2", asked=100.0, fault="not JSON")
    assert story.answer(OUR_502, sent=100.1, status=502, headers=FAULT) == [
        "unexplained"
    ]


@pytest.mark.parametrize("of_list", [True, False])
def test_a_list_of_which_one_event_is_known(story: SoakStory, of_list: bool) -> None:
    """A list's failure may come late, even if the call was for one event only.

    The call that failed was for the only event that is known.
    """
    ids = ("small-1", "unknown-1") if of_list else ("small-1",)
    story.call(*ids, asked=100.0, ended=100.1)
    call = story.call(
        "small-1", asked=100.12, endpoint="event-subscriptions", fault="500"
    )
    message = str(Stamp("small-1", call.serial, 100.12))
    errors = {
        one: {"status_code": 404, "message": f"Event {one} not found"} for one in ids
    }
    errors["small-1"] = {"status_code": 500, "message": message}
    said = {"meta_data": {"count": 0}, "data": [], "errors": errors}
    found = story.answer(
        said, sent=100.0, received=101.2, event_ids=list(ids), is_list=True, headers={}
    )
    assert found == ([] if of_list else ["stale"])


def test_stopping_a_soak_test_leaves_no_process(tmp_path: Path) -> None:
    """SIGTERM ends a soak test and all that it has started."""
    command = [sys.executable, "-m", "tests.soak", "--alone", "--seconds", "60"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as soak:
        children = Path(f"/proc/{soak.pid}/task/{soak.pid}/children")
        until(children.read_text, "the service to be started")
        child = int(children.read_text().split()[0])
        soak.send_signal(signal.SIGTERM)
        assert soak.wait() == 130
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
