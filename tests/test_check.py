"""`python main.py --check`: it names what is wrong, and exits with 1 if anything is."""

import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import main
from bench.machine import free_port
from operations import check
from standin import Standin
from tests.fixtures import PATIENCE, TOKEN, Start, no_descriptors
from tests.machines import Redis, patient


def checked(
    capsys: pytest.CaptureFixture[str], upstream: Standin | None = None, **environ: str
) -> tuple[int, str]:
    """Run --check in this process; return its exit status and what it printed."""
    own = {"C42_TOKEN": TOKEN, "C42_TIMEOUT": "5"}
    if upstream:
        own["C42_BASE_URL"] = upstream.base_url
    status = main.main(["--check"], own | environ)
    said = capsys.readouterr().out
    assert TOKEN not in said
    return status, said


def test_check_is_a_program(start: Start, upstream: Standin) -> None:
    """If all is well, `main.py --check` has a line for each check, and exits with 0."""
    upstream.rule(headers={"Date": _http_date(0)})
    service = start("--check", ready=False)
    assert service.process.wait(PATIENCE) == 0
    checked = ["settings", "answer", "token", "clock"]
    assert [line.split(":")[0] for line in service.log.splitlines()] == [
        f"ok    {one}" for one in checked
    ]
    assert upstream.calls("events") == 1


def _http_date(offset: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=offset), usegmt=True)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"status": 401}, "FAIL  token: Calendar42 rejects it (401); see C42_TOKEN"),
        ({"status": 403}, "FAIL  token: Calendar42 rejects it (403)"),
        ({"status": 404}, "see C42_BASE_URL"),
        ({"status": 429}, "too many calls (429)"),
        ({"status": 500}, "has a fault (500)"),
        ({"status": 503}, "has a fault (503)"),
        ({"body": "<html>\n\x1b[2J"}, "not Calendar42's API"),
        ({"status": 301, "headers": {"Location": "/"}}, "not Calendar42's API"),
        (
            {"reset": True},
            "(Connection reset by peer); see C42_BASE_URL, DNS, proxies and firewalls",
        ),
        ({"truncate": True}, "(sent no whole answer)"),
        (
            {"headers": {"Date": _http_date(-600)}},
            "ahead of Calendar42; see its time service",
        ),
        (
            {"headers": {"Date": _http_date(600)}},
            "behind Calendar42; see its time service",
        ),
    ],
)
def test_check_finds(
    capsys: pytest.CaptureFixture[str],
    upstream: Standin,
    fault: Mapping[str, object],
    says: str,
) -> None:
    """A wrong answer is one line of the check, which exits with status 1."""
    upstream.rule(**fault)  # type: ignore[arg-type]
    status, said = checked(capsys, upstream)
    assert (status, said.count("FAIL")) == (1, 1)
    assert says in said
    assert "\x1b" not in said


def test_check_slow_answer(
    capsys: pytest.CaptureFixture[str],
    upstream: Standin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow answer isn't taken for clocks that differ.

    It may take longer than clocks may differ.
    """
    monkeypatch.setattr(check, "MAX_SKEW", 0.9)
    upstream.rule(delay=2, headers={"Date": _http_date(2)})
    status, said = checked(capsys, upstream, C42_TIMEOUT="30")
    assert (status, said.splitlines()[-1]) == (
        0,
        "ok    clock: within 1 s of Calendar42's",
    )


def test_check_without_stdout() -> None:
    """`python main.py --check` gives its exit status even if stdout is closed."""
    ended = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} main.py --check >&-"],
        env={"C42_TOKEN": ""},
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stderr) == (1, "")


def test_check_wrong_token(
    capsys: pytest.CaptureFixture[str], upstream: Standin
) -> None:
    """If the upstream rejects the token, the check says so."""
    status, said = checked(capsys, upstream, C42_TOKEN="wrong-token")
    assert status == 1
    assert "FAIL  token: Calendar42 rejects it (401)" in said


def test_check_hang(capsys: pytest.CaptureFixture[str], upstream: Standin) -> None:
    """If the upstream never answers, the check gives up after C42_TIMEOUT."""
    upstream.rule(hang=True)
    status, said = checked(capsys, upstream, C42_TIMEOUT="0.2")
    assert status == 1
    assert "FAIL  answer: none within 0.2 s" in said


def test_check_no_way(capsys: pytest.CaptureFixture[str]) -> None:
    """The check names the cause: unknown host, closed port or missing token."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        status, said = checked(
            capsys, C42_BASE_URL=f"http://127.0.0.1:{taken.getsockname()[1]}/"
        )
    assert status == 1
    assert "Connection refused" in said
    status, said = checked(capsys, C42_BASE_URL="http://c42c.invalid/")
    assert status == 1
    assert (
        "FAIL  answer: none from c42c.invalid (Name or service not known); "
        "see C42_BASE_URL, DNS" in said
    )
    assert "warn  encryption: none" in said
    status, said = checked(capsys, C42_TOKEN="")
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith("FAIL  settings: C42_TOKEN is missing: ")


def test_check_without_descriptors(capsys: pytest.CaptureFixture[str]) -> None:
    """If no file descriptor is left, the check says so, and where the limit is."""
    with no_descriptors():
        status, said = checked(capsys, C42_BASE_URL="http://127.0.0.1:1/")
    assert status == 1
    assert (
        "FAIL  answer: none from 127.0.0.1:1 (Too many open files); see ulimit -a"
        in said
    )


def test_check_typing_error(
    capsys: pytest.CaptureFixture[str], upstream: Standin
) -> None:
    """An unknown variable causes a warning, not a failure."""
    status, said = checked(capsys, upstream, C42_EXPIRI="5")
    assert status == 0
    assert (
        "warn  settings: C42_EXPIRI is not a setting; did you mean C42_EXPIRY?" in said
    )


class _List(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": []}')


@contextmanager
def tls_upstream(certificate: Path) -> Iterator[int]:
    """Answer every question with an empty list, over TLS; give the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "fullchain.pem", certificate / "privkey.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), _List) as server:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        # Clients hang up on what they don't trust.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_check_certificate(
    capsys: pytest.CaptureFixture[str],
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check accepts only a trusted certificate of its host, and names the fault."""
    with tls_upstream(certificate) as port:
        status, said = checked(capsys, C42_BASE_URL=f"https://localhost:{port}/")
        assert status == 1
        assert (
            "(certificate: self-signed certificate); "
            "see C42_BASE_URL, REQUESTS_CA_BUNDLE and the clock" in said
        )
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "fullchain.pem"))
        status, said = checked(capsys, C42_BASE_URL=f"https://127.0.0.1:{port}/")
        assert status == 1
        assert "(certificate: IP address mismatch" in said
        status, said = checked(capsys, C42_BASE_URL=f"https://localhost:{port}/")
        assert (status, said.count("ok    ")) == (0, 4)


def test_check_no_tls_there(
    capsys: pytest.CaptureFixture[str], upstream: Standin
) -> None:
    """If https:// leads to a port of plain HTTP, the failure names TLS."""
    status, said = checked(
        capsys, upstream, C42_BASE_URL=upstream.base_url.replace("http:", "https:")
    )
    assert (status, said.count("FAIL")) == (1, 1)
    assert re.search(r"FAIL  answer: none from 127.0.0.1:\d+ \(.*(SSL|TLS)", said)


REDIS_LINE = (
    r"ok    redis: connected to Redis \d+[.\d]* at 127.0.0.1:\d+; "
    "all commands that c42c needs are permitted"
)


def test_check_redis(capsys: pytest.CaptureFixture[str], upstream: Standin) -> None:
    """With C42_CACHE_URL, the check connects to Redis and tries each command."""
    redis = Redis()
    try:
        url = patient(redis.url, PATIENCE)
        status, said = checked(capsys, upstream, C42_CACHE_URL=url)
    finally:
        redis.kill()
    assert status == 0
    assert re.fullmatch(REDIS_LINE, said.splitlines()[-1])


def test_check_redis_without_a_right(
    capsys: pytest.CaptureFixture[str], upstream: Standin
) -> None:
    """If Redis rejects the user or a command, the check fails and says which.

    It shows no password.
    """
    rights = ("on", ">hush-hush", "~c42c:*", "+@all", "-pexpireat")
    redis = Redis("--user", "c42c", *rights)
    try:
        for user, reason in {
            "c42c:hush-hush@": "its user may not run PEXPIREAT",
            "c42c:not-hushed@": "wrong or missing user or password",
        }.items():
            url = patient(redis.url.replace("//", f"//{user}"), PATIENCE)
            status, said = checked(capsys, upstream, C42_CACHE_URL=url)
            assert (status, said.count("FAIL")) == (1, 1)
            address = f"127.0.0.1:{redis.port}"
            assert said.splitlines()[-1] == (
                f"FAIL  redis: Redis at {address}: {reason}; see C42_CACHE_URL"
            )
            assert "hush" not in said
    finally:
        redis.kill()


def test_check_no_redis(capsys: pytest.CaptureFixture[str], upstream: Standin) -> None:
    """A Redis that isn't there is a failure, even if all else is well.

    A URL that can't be one is an invalid setting.
    """
    url = patient(f"redis://127.0.0.1:{free_port()}/0", PATIENCE)
    status, said = checked(capsys, upstream, C42_CACHE_URL=url)
    assert (status, said.count("FAIL"), said.count("ok  ")) == (1, 1, 3)
    assert said.endswith(": Connection refused; see C42_CACHE_URL\n")
    status, said = checked(capsys, upstream, C42_CACHE_URL="redis://hush@x:y/")
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith(
        "FAIL  settings: C42_CACHE_URL is invalid: expected redis://"
    )
    assert "hush" not in said


def test_check_no_date(capsys: pytest.CaptureFixture[str], upstream: Standin) -> None:
    """An answer without a date that can be read is a warning."""
    upstream.rule(headers={"Date": "yesterday"})
    status, said = checked(capsys, upstream)
    assert status == 0
    assert said.endswith("warn  clock: not compared, because the answer has no date\n")


@pytest.mark.parametrize("offset", [-58, 58])
def test_check_a_small_difference(
    capsys: pytest.CaptureFixture[str], upstream: Standin, offset: int
) -> None:
    """Clocks may differ by less than a minute; the check says by how much."""
    upstream.rule(headers={"Date": _http_date(offset)})
    status, said = checked(capsys, upstream)
    assert status == 0
    seconds = re.search(r"ok    clock: within (\d+) s of Calendar42's\n", said)
    assert seconds is not None
    assert 50 <= int(seconds[1]) <= 60
