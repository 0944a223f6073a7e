"""The URL of Redis, and the rights of its user."""

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

import main
from bench.machine import free_port
from operations import settings
from sharing.check import check
from sharing.client import address, make_client
from tests.fixtures import PATIENCE, ROOT, TOKEN, new_id, until
from tests.machines import (
    PASSWORD,
    VALUE,
    Make,
    MakeProxy,
    Redis,
    Said,
    patient,
    silence,
)


class Secured(NamedTuple):
    """A Redis with a password, on a port, a port with TLS, and a socket."""

    server: Redis
    tls_port: int
    socket: Path
    certificate: Path

    def url(self, form: str) -> str:
        """Fill in where it is."""
        return form.format(
            port=self.server.port,
            tls=self.tls_port,
            socket=self.socket,
            certificate=self.certificate,
        )


@pytest.fixture(scope="module")
def secured(
    certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    tls_port = free_port()
    socket = tmp_path_factory.mktemp("redis") / "socket"
    public = certificate / "fullchain.pem"
    options = {
        "--requirepass": "se/cret",
        "--unixsocket": str(socket),
        "--tls-port": str(tls_port),
        "--tls-cert-file": str(public),
        "--tls-key-file": str(certificate / "privkey.pem"),
        "--tls-auth-clients": "no",
    }
    server = Redis(*chain.from_iterable(options.items()))
    yield Secured(server, tls_port, socket, public)
    server.kill()


@pytest.mark.parametrize(
    ("form", "database"),
    [
        ("redis://:se%2Fcret@127.0.0.1:{port}/1", 1),
        ("redis://default:se%2Fcret@localhost:{port}?db=2", 2),
        ("unix://:se%2Fcret@{socket}?db=3", 3),
        ("rediss://:se%2Fcret@localhost:{tls}/4?ssl_ca_certs={certificate}", 4),
    ],
)
def test_addresses(form: str, database: int, secured: Secured, machine: Make) -> None:
    """Redis is reached by TCP, TLS and a Unix socket, with password and database."""
    one = machine(secured.url(form))
    one.ask(event_id := new_id())
    assert one.shares
    port = secured.server.port
    with redis.Redis(port=port, password="se/cret", db=database, protocol=2) as client:
        assert client.exists(one.key(event_id))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("rediss://:se%2Fcret@localhost:{tls}", "self-signed certificate"),
        ("redis://:wrong@127.0.0.1:{port}", "wrong or missing user or password"),
        ("redis://127.0.0.1:{port}", "wrong or missing user or password"),
    ],
)
def test_what_redis_rejects(
    form: str, reason: str, secured: Secured, machine: Make, said: Said
) -> None:
    """A certificate that nobody vouches for, or a wrong password, is a loss."""
    one = machine(secured.url(form))
    assert one.ask(new_id()).value == VALUE
    assert not one.shares
    assert said(reason) == said("is lost") == 1


SCALING = (ROOT / "docs/scaling.md").read_text()
OPERATING = (ROOT / "docs/operating.md").read_text()
RIGHTS = re.findall(r"ACL SETUSER c42c (.+)", SCALING)[0].split()
COMMANDS = [right for right in RIGHTS if right.startswith("+")]


def set_user(server: Redis, *rights: str) -> str:
    """Give Redis's user exactly these rights; return the URL with that user."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "c42c", "reset", *rights)
    return f"redis://c42c:password@127.0.0.1:{server.port}/2"


def test_a_user_with_few_rights(own_redis: Redis, machine: Make) -> None:
    """The rights that docs/scaling.md names are enough for the user of Redis."""
    url = set_user(own_redis, *RIGHTS)
    first, second = (machine(url) for _ in range(2))
    event_id = new_id()
    assert first.ask(event_id).source == "miss"
    assert second.ask(event_id).source == "shared"
    first.pause.begin("30")
    first.ask(new_id())
    with redis.Redis(port=own_redis.port, db=2, protocol=2) as client:
        client.set(first.key(event_id := new_id()), "wrong", px=60000)
        assert first.ask(event_id).source == "miss"
        assert second.ask(event_id).source == "shared"
        assert first.shares
        assert "cmdstat_hello" not in client.info("commandstats")  # new in Redis 6


POOR = [
    (f"may not run {command[1:].upper()}", [each for each in RIGHTS if each != command])
    for command in COMMANDS
] + [
    ("may not use the keys or commands that c42c needs", [*RIGHTS, "resetkeys", keys])
    for keys in ("~other:*", "~c42c:*:answer:*", "~c42c:*:pause", "%R~c42c:*")
]


@pytest.mark.parametrize(("reason", "rights"), POOR)
def test_a_user_that_lacks_a_right(
    reason: str, rights: list[str], own_redis: Redis, machine: Make, said: Said
) -> None:
    """Without a right of docs/scaling.md, Redis is lost, once, and the log names it."""
    one = machine(set_user(own_redis, *rights), retry_after=0.0)
    for _ in range(3):
        assert one.ask(new_id()).value == VALUE
        assert not one.shares
    assert (said("is lost"), said("is there")) == (1, 0)
    assert said(f"its user {reason}") == 1
    set_user(own_redis, *RIGHTS)
    until(one.shares_again)


def test_removing_one_event(own_redis: Redis, machine: Make) -> None:
    """The command in docs/operating.md deletes one event's answer, and nothing else."""
    first, second = machine(own_redis.url), machine(own_redis.url)
    wrong, right = "1460_0", "1460_01"
    for event_id in (wrong, right):
        first.ask(event_id)
    (command,) = re.findall(r"redis-cli --scan.+EVENT_ID.+", OPERATING)
    command = command.replace("EVENT_ID", wrong)
    command = command.replace("redis-cli", f"redis-cli -p {own_redis.port}")
    subprocess.run(["sh", "-c", command], check=True, timeout=PATIENCE)
    assert second.ask(right).source == "shared"
    assert second.ask(wrong).source == "miss"


# `--check`


def test_redis_is_checked(own_redis: Redis) -> None:
    """`check` says that Redis can be used, which version it is and where."""
    line = check(patient(set_user(own_redis, *RIGHTS), PATIENCE))
    version = r"connected to Redis [0-9.]+ at 127.0.0.1:[0-9]+; all commands that .*"
    assert re.fullmatch(version, line)


def test_an_old_redis_is_checked() -> None:
    """A Redis that can't tell its version, since it lacks HELLO, is taken for 5."""
    server = Redis("--rename-command", "HELLO", "")
    try:
        line = check(patient(server.url, PATIENCE))
    finally:
        server.kill()
    assert line.startswith(f"connected to Redis 5 at 127.0.0.1:{server.port}; ")


def test_what_the_check_finds(
    shared_redis: Redis, proxy: MakeProxy, said: Said
) -> None:
    """`check` says what failed at which address, and never shows the password."""
    here = f"127.0.0.1:{shared_redis.port}"
    hanging = proxy(0, silence).address
    for url, line in [
        (
            patient(f"redis://:{PASSWORD}@127.0.0.1:1", PATIENCE),
            "Redis at 127.0.0.1:1: Connection refused",
        ),
        (
            patient(f"redis://u:{PASSWORD}@{here}", PATIENCE),
            f"Redis at {here}: wrong or missing user or",
        ),
        (f"redis://{hanging}", f"Redis at {hanging}: no reply in time"),
        (
            patient(f"redis://{here}/99", PATIENCE),
            f"Redis at {here}: it has no such database",
        ),
        (f"unix://:{PASSWORD}@/no", "Redis at /no: No such file or directory"),
        (f"redis://:{PASSWORD}@", "expected redis://"),
    ]:
        with pytest.raises(ValueError, match=re.escape(line)) as raised:
            check(url)
        assert str(raised.value).startswith(line)
        assert "cret" not in str(raised.value)
    assert said("Redis") == 0


# The setting


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://:se/cret@localhost",
        "redis://",
        "redis://:se/cret@localhost",  # the slash should have been escaped
        "redis://user:12/se-cret@localhost",  # 12 isn't the port
        "redis://user:12?se-cret@localhost",
        "redis://user:12#se-cret@localhost",
        "redis://:secret@localhost:70000",
        "redis://:secret@localhost?no_such_option=1",
        "redis://:secret@localhost?db=one",
        "redis://localhost?password=se#cret",
        "redis://localhost/secret",
        "redis://:secret@localhost/-1",
        "redis://:secret@localhost?socket_timeout=0",
        "redis://:secret@localhost?socket_timeout=nan",
        "redis://:secret@localhost?socket_timeout=inf",
        "redis://:secret@localhost?ssl_ca_certs=/a.pem",  # only rediss:// has them
        "rediss://:secret@localhost?ssl_cert_reqs=always",
        "redis://[::1",
        "unix://:secret@",
    ],
)
def test_invalid_addresses(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid C42_CACHE_URL stops the start with one line that doesn't show it."""
    assert main.main([], {"C42_TOKEN": TOKEN, "C42_CACHE_URL": url}) == 2
    said = capsys.readouterr().err
    assert said.startswith("C42_CACHE_URL is invalid: expected redis://")
    assert said.count("\n") == 1
    assert "cret" not in said


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "localhost:6379"),
        ("redis://u:p%2F@h.example.com:1/15", "h.example.com:1"),
        ("rediss://[::1]/?ssl_ca_certs=/a&ssl_cert_reqs=required", "[::1]:6379"),
        ("unix://:secret@/run/redis.sock?db=3", "/run/redis.sock"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
    ],
)
def test_sound_addresses(url: str, shown: str) -> None:
    """C42_CACHE_URL takes what docs/scaling.md names.

    The log and `--check` show host and port, or the socket, and nothing else.
    """
    environ = {"C42_TOKEN": TOKEN, "C42_CACHE_URL": url}
    assert settings.read(environ, make_client).cache_url == url
    assert address(make_client(url)) == shown


WITHOUT_REDIS = """
import sys
sys.modules["redis"] = None
import main
sys.exit(main.main([], {"C42_TOKEN": "12345678", "C42_CACHE_URL": "redis://localhost"}))
"""


def test_redis_is_not_installed() -> None:
    """C42_CACHE_URL without the redis package stops the start, and says what to do."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_REDIS],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 2
    needs = "C42_CACHE_URL needs the redis package: pip install -r "
    assert ended.stderr == f"{needs}requirements-redis.txt\n"
