"""A connection to Redis that keeps nobody waiting.

One thread, with one connection, sends what the callers ask for: all that has come while it was busy goes out as one
pipeline. A caller waits as long as it says, whatever holds the thread up: a slow name server, a handshake, an answer
that comes in drops. Where Redis does not answer as it should, it is lost: from then on nobody waits for it at all. The
thread goes on trying every few seconds, whether or not anybody asks, and says once in the log when Redis is lost, and
once when it is back.

`Link._lock` guards the underscored attributes that several threads write. The client is the thread's own, but that a
caller which sees it hang cuts its connection.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

SOCKET_TIMEOUT = 0.2  # seconds for each read, and for connecting
QUICK = 0.08  # seconds: a Redis that takes longer to answer one small question does not count as back
HANGS = 0.5  # seconds after which nothing will come of an exchange
PROBE_EVERY = 5.0  # seconds
TICK = 0.5  # seconds
SLICE = 0.02  # seconds

log = logging.getLogger("c42c.redis")

Command = tuple[Any, ...]


class Lost(Exception):
    """Redis gave no right answer in time, or did not lately and is not asked."""


@dataclass(slots=True)
class Budget:
    """How many seconds a caller may still wait for Redis.

    It waits in short slices, and a slice counts as no longer than it should have been: in a crowd of threads that
    all want to run at once, what takes long is not Redis.
    """

    left: float

    def get(self, replies: "SimpleQueue[Reply]") -> "Reply":
        """Return the reply, or raise Empty when nothing is left."""
        while self.left > 0:
            began, slice_ = time.monotonic(), min(self.left, SLICE)
            try:
                return replies.get(timeout=slice_)
            except Empty:
                continue
            finally:
                self.left -= min(slice_, time.monotonic() - began)
        raise Empty


Reply = list[Any] | None  # None: Lost


@dataclass(slots=True, eq=False)
class _Task:
    commands: Sequence[Command]
    replies: "SimpleQueue[Reply]" = field(default_factory=SimpleQueue)  # gets one
    is_off: bool = False  # nobody wants it any more


class Link:
    """Asks the Redis at `url`. Any thread may use it.

    `probe` is a command that shows whether Redis does what is needed: then its answer is `right`. The commands that
    `regular` returns are sent on every tick, half a second; nobody gets the answers.
    """

    def __init__(self, url: str, *, probe: Command, right: Any, regular: Callable[[], Sequence[Command]]) -> None:
        self._probe = probe
        self._right = right
        self._regular = regular
        self._lock = threading.Lock()
        self._up: bool | None = None  # None: not known yet
        self._known = threading.Event()
        self._since = float("inf")  # when the exchange under way began
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._closed = False
        self._client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=SOCKET_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        self._thread = threading.Thread(target=self._run, name="c42c-redis", daemon=True)
        self._thread.start()

    @property
    def up(self) -> bool:
        """Whether Redis is asked at present."""
        return bool(self._up)

    def wait_until_known(self, timeout: float) -> None:
        """Return when the first try to reach Redis has ended, one way or the other; it has failed after `timeout`."""
        if not self._known.wait(timeout):
            self.lose("it does not answer")

    def ask(self, commands: Sequence[Command], budget: Budget, *, keep: bool = False) -> list[Any]:
        """Return what Redis answers to all `commands`, or raise Lost when the budget is used up.

        What could not be sent by then is not sent at all, or, to `keep` it, as soon as it can be.
        """
        if not self._up:
            self._cut_if_it_hangs()
            raise Lost
        task = _Task(commands)
        self._tasks.put(task)
        try:
            replies = budget.get(task.replies)
        except Empty:
            task.is_off = not keep
            self._cut_if_it_hangs()
            raise Lost from None
        if replies is None:
            raise Lost
        return replies

    def close(self) -> None:
        """End the thread and the connection."""
        self._closed = True
        self._tasks.put(None)
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        probe_at = tick_at = 0.0
        while not self._closed:
            tasks = self._take(max(0.0, min(probe_at, tick_at) - time.monotonic()))
            now = time.monotonic()
            if now >= probe_at:
                self._try()
                probe_at = time.monotonic() + PROBE_EVERY
            regular: Sequence[Command] = ()
            if now >= tick_at:
                regular, tick_at = self._regular(), now + TICK
            self._serve([task for task in tasks if not task.is_off], regular)

    def _take(self, timeout: float) -> list[_Task]:
        """Return all tasks that are there; wait for the first."""
        tasks = []
        try:
            task = self._tasks.get(timeout=timeout)
            while True:
                tasks += [task] if task else []
                task = self._tasks.get_nowait()
        except Empty:
            return tasks

    def _serve(self, tasks: list[_Task], regular: Sequence[Command]) -> None:
        commands = [command for task in tasks for command in task.commands]
        replies: list[Any] | None = None
        if self._up and (commands or regular):
            try:
                replies = self._exchange([*commands, *regular])
            except Exception as error:  # whatever redis-py makes of what it reads
                self.lose(error)
        at = 0
        for task in tasks:
            task.replies.put(replies and replies[at : at + len(task.commands)])
            at += len(task.commands)

    def _try(self) -> None:
        try:
            for _ in range(2):  # the first may have to connect
                began = time.monotonic()
                if self._exchange([self._probe]) != [self._right]:
                    raise Lost("it answers nonsense")
        except Exception as error:
            self.lose(error)
        else:
            if self._up is not False or time.monotonic() - began <= QUICK:
                self._find()
        self._known.set()

    def _cut_if_it_hangs(self) -> None:
        if time.monotonic() - self._since > HANGS:
            self.lose("it hangs")
            self._client.connection_pool.disconnect()

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types here
        self._since = time.monotonic()
        try:
            replies = pipeline.execute(raise_on_error=False)
        finally:
            self._since = float("inf")
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def lose(self, reason: Exception | str) -> None:
        """Ask nothing more until a try has shown that Redis is back; `reason` goes to the log, once."""
        with self._lock:
            was_up, self._up = self._up, False
        if was_up is not False:
            log.warning("Redis is lost, and every process is on its own: %s", self._describe(reason))

    def _find(self) -> None:
        with self._lock:
            was_up, self._up = self._up, True
        if not was_up:
            log.info("Redis is %s: answers are shared", "there" if was_up is None else "back")

    def _describe(self, reason: Exception | str) -> str:
        """Say what is wrong without the password, which a strange server may send back."""
        text = str(reason)
        if isinstance(reason, redis.ResponseError | redis.ConnectionError | redis.TimeoutError):
            text = f"{type(reason).__name__}: {text}"
        elif isinstance(reason, Exception):
            return type(reason).__name__  # the text may hold what came, in another spelling
        if password := self._client.connection_pool.connection_kwargs.get("password"):
            for spelling in (password, repr(password.encode())[2:-1]):  # redis-py shows what it can't read as bytes
                text = text.replace(spelling, "***")
        return text[:200]
