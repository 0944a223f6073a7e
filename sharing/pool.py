"""A pool of threads that never keeps the process from ending.

`ThreadPoolExecutor` joins its threads when Python exits, and one that looks up a name
may be stuck for as long as the name server hangs.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Task(NamedTuple, Generic[T]):
    future: Future[T]
    function: Callable[[], T]


class DaemonPool:
    """Runs functions in at most `size` threads, which are started when first needed."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._tasks = SimpleQueue[_Task[object] | None]()
        self._idle = threading.Semaphore(0)  # threads that wait for a task
        self._lock = threading.Lock()  # guards `_started`
        self._started = 0

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` in a thread and return the future of its result.

        Raises RuntimeError if the system allows no thread at all.
        """
        future = Future[T]()
        if not self._idle.acquire(blocking=False):
            self._add_thread()
        self._tasks.put(_Task(future, function))  # type: ignore[arg-type]
        return future

    def close(self) -> None:
        """End all threads once they have done what was submitted."""
        with self._lock:
            for _ in range(self._started):
                self._tasks.put(None)

    def _add_thread(self) -> None:
        with self._lock:
            if self._started == self._size:
                return
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._started:
                    raise
                return  # one of the running threads will take the task
            self._started += 1

    def _work(self) -> None:
        while task := self._tasks.get():
            if task.future.set_running_or_notify_cancel():
                try:
                    result = task.function()
                except BaseException as error:
                    task.future.set_exception(error)
                else:
                    task.future.set_result(result)
            del task  # so that its result isn't kept until the next task comes
            self._idle.release()
