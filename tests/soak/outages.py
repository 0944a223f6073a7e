"""The processes of a soak test, and their outages.

They are the instances of the service and a Redis.
"""

import asyncio
import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.machine import free_port
from tests.soak.checker import Checker, Rules
from tests.soak.upstream import SoakUpstream

ROOT = Path(__file__).parents[2]
TOKEN = "soak-0123456789abcdef"
PATIENCE = 20.0  # seconds until something that should happen counts as failed
# So a log is read at 8 KB a second; an instance writes more under this traffic.
READ_AT_ONCE = 4096  # bytes
READ_PAUSE = 0.5  # seconds
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)

_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


class Resources(NamedTuple):
    """What a process holds."""

    threads: int
    descriptors: int
    kilobytes: int  # resident


class Process:
    """A program that can be started again. It never outlives this one.

    What it prints goes to a file, or, if `reads_slowly`, to a pipe that is read more
    slowly than a busy service logs.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str] = os.environ,
        *,
        reads_slowly: bool = False,
    ) -> None:
        self._command = command
        self.environ = dict(environ)
        self._reads_slowly = reads_slowly
        # It lives as long as this object.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.started = 0.0

    def start(self) -> None:
        """Start it; its output goes to the log."""
        self.started = time.monotonic()
        output = self._log.fileno()
        if self._reads_slowly:
            source, output = os.pipe()
            self._reader = threading.Thread(target=self._read_slowly, args=(source,))
            self._reader.start()
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is ours
            # It takes no lock and allocates nothing.
            preexec_fn=_die_with_parent,  # noqa: PLW1509
        )

        if self._reads_slowly:
            os.close(output)

    def _read_slowly(self, source: int) -> None:
        """Move what is printed to the log, until the program ends."""
        with open(source, "rb", buffering=0) as pipe:
            while data := pipe.read(READ_AT_ONCE):
                self._log.write(data)
                self._log.flush()
                if self._process and self._process.poll() is None:
                    time.sleep(READ_PAUSE)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has printed, through all its lives."""
        return os.pread(self._log.fileno(), 2**26, 0).decode(errors="replace")

    def send(self, what: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process
        self._process.send_signal(what)

    def wait(self) -> int | None:
        """Wait for its end, and return its exit status; None if it does not come."""
        assert self._process
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return None
        if self._reader:
            self._reader.join()
        return status

    def kill(self) -> None:
        """End it at once, even if it is suspended or was never started."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def resources(self) -> Resources:
        """Read what it holds now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        threads, resident = (
            int(re.findall(rf"^{name}:\s+(\d+)", status, re.M)[0])
            for name in ("Threads", "VmRSS")
        )
        return Resources(threads, len(os.listdir(f"/proc/{self.pid}/fd")), resident)


class Instance(Process):
    """An instance of the service."""

    def __init__(self) -> None:
        self.port = free_port()
        environ = {
            name: value
            for name, value in os.environ.items()
            if not re.match(r"C42_|.*_PROXY$", name, re.I)
        }
        super().__init__(
            [sys.executable, "main.py"],
            environ | {"C42_PORT": str(self.port), "C42_TOKEN": TOKEN},
            reads_slowly=True,
        )

    async def ready(self) -> None:
        """Return once it answers."""
        until = time.monotonic() + PATIENCE
        while not await self.numbers("/readyz"):
            if time.monotonic() > until:
                raise TimeoutError(f"an instance does not start:\n{self.log[-2000:]}")
            await asyncio.sleep(0.05)

    async def shares(self) -> None:
        """Return once it has found Redis."""
        until = time.monotonic() + PATIENCE
        while not re.search(r"^c42_shared_tier_up 1", await self.numbers(), re.M):
            if time.monotonic() > until:
                raise TimeoutError("an instance does not find Redis")
            await asyncio.sleep(0.1)

    async def numbers(self, path: str = "/metrics") -> str:
        """Return one of its pages for operators; nothing if it can't be had."""
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                head = f"GET {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n"
                writer.write(head.encode())
                text = (await reader.read(-1)).decode()
                writer.close()
        except (OSError, TimeoutError):
            return ""
        return text if text.startswith("HTTP/1.1 200") else ""


class SoakRedis(Process):
    """A Redis that keeps nothing on disk."""

    def __init__(self) -> None:
        self.port = free_port()
        options = [
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        super().__init__(["redis-server", *options, "--dir", tempfile.gettempdir()])

    async def tell(self, *words: str) -> None:
        """Give it a command."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(" ".join(words).encode() + b"\r\n")
        async with asyncio.timeout(PATIENCE):
            if not (reply := await reader.readline()).startswith(b"+OK"):
                raise RuntimeError(f"Redis says {reply!r} to {words}")
        writer.close()


async def start(
    instances: Sequence[Instance],
    upstream: SoakUpstream,
    rules: Rules,
    redis: SoakRedis | None,
) -> None:
    """Start all instances and return once they answer."""
    for number, instance in enumerate(instances):
        port = await upstream.listen(number)
        instance.environ |= {
            "C42_BASE_URL": f"http://127.0.0.1:{port}/api/v2/",
            "C42_EXPIRY": str(rules.expiry / 60),
            "C42_FAULT_EXPIRY": str(rules.fault_expiry / 60),
            "C42_TIMEOUT": str(rules.timeout),
        }
        # Those that share answers have one base URL; proxies let the upstream tell them
        # apart.
        if redis:
            instance.environ["C42_CACHE_URL"] = f"redis://127.0.0.1:{redis.port}"
            instance.environ |= {
                "C42_BASE_URL": "http://upstream.test/api/v2/",
                "http_proxy": f"http://127.0.0.1:{port}",
            }
        instance.start()
    for instance in instances:
        await instance.ready()


class Outages:
    """Causes an outage, waits for recovery and then for a while, and repeats."""

    def __init__(
        self,
        redis: SoakRedis,
        instances: Sequence[Instance],
        checker: Checker,
        rng: random.Random,
    ) -> None:
        self._redis = redis
        self._instances = instances
        self._checker = checker
        self._rng = rng
        self.happened: list[str] = []

    async def run(self) -> None:
        """Go on until cancelled."""
        acts = [
            self.redis_hangs,
            self.redis_is_killed,
            self.redis_is_full,
            self.redis_is_flushed,
            self.an_instance_hangs,
            self.an_instance_is_killed,
        ]
        while True:
            for act in self._rng.sample(acts, len(acts)):
                self._checker.calm_since = time.monotonic()
                alone = await self._alone()
                await asyncio.sleep(self._rng.uniform(7, 9))
                if self._checker.doubled_elsewhere > await self._alone() - alone:
                    self._checker.violation(
                        "loaded by two instances",
                        f"{self._checker.doubled_elsewhere} times",
                    )
                self._checker.calm_since, self._checker.doubled_elsewhere = None, 0
                self.happened.append(act.__name__)
                await act()
                await self._all_share()

    async def redis_hangs(self) -> None:
        await self._suspend(self._redis, self._rng.uniform(0.1, 3))

    async def redis_is_killed(self) -> None:
        self._redis.kill()
        await asyncio.sleep(self._rng.uniform(0, 2))
        self._redis.start()

    async def redis_is_full(self) -> None:
        await self._redis.tell("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(self._rng.uniform(1, 3))
        await self._redis.tell("CONFIG", "SET", "maxmemory", "0")

    async def redis_is_flushed(self) -> None:
        await self._redis.tell("FLUSHALL")

    async def an_instance_hangs(self) -> None:
        number = self._rng.randrange(len(self._instances))
        began, seconds = time.monotonic(), self._rng.uniform(0.5, 4)
        self._checker.suspended(number, began, began + seconds)
        await self._suspend(self._instances[number], seconds)
        self._checker.suspended(number, began, time.monotonic())

    async def an_instance_is_killed(self) -> None:
        number = self._rng.randrange(len(self._instances))
        began = time.monotonic()
        self._checker.suspended(number, began, began + PATIENCE)
        self._instances[number].kill()
        self._instances[number].start()
        await self._instances[number].ready()
        self._checker.suspended(number, began, time.monotonic())

    async def _suspend(self, process: Process, seconds: float) -> None:
        process.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:  # also if the soak test ends meanwhile
            process.send(signal.SIGCONT)

    async def _all_share(self) -> None:
        """Return once all instances have found Redis again."""
        for instance in self._instances:
            try:
                await instance.shares()
            except TimeoutError:
                self._checker.violation(
                    "Redis not found again", f"{PATIENCE} s after {self.happened[-1]}"
                )

    async def _alone(self) -> int:
        """How many loads all instances have made without Redis."""
        texts = [await instance.numbers() for instance in self._instances]
        found = [
            re.search(
                r'^c42_shared_tier_loads_total\{result="alone"\} (\d+)', text, re.M
            )
            for text in texts
        ]
        return sum(int(match[1]) for match in found if match)
