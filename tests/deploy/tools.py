"""What the tests of deployment share: running programs, free ports and nginx."""

import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.machine import free_port
from tests.fixtures import PATIENCE, ROOT, until


def find(program: str) -> str | None:
    """Return the path of a program; None if it's not installed.

    It may be one for administrators.
    """
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    return shutil.which(program, path=path)


def missing(*programs: str) -> str:
    """Return the names of those `programs` that are not installed."""
    return " and ".join(program for program in programs if find(program) is None)


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test where one of Debian's `programs` is not installed."""
    return pytest.mark.skipif(
        bool(missing(*programs)), reason=f"needs {missing(*programs)}, as Debian has it"
    )


def ran(
    *command: str | Path,
    cwd: Path = ROOT,
    timeout: float = 2 * PATIENCE,
    environ: Mapping[str, str] | None = None,
) -> str:
    """Run a program and return everything it printed; fail unless it exits with 0."""
    ended = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}"
    return ended.stdout


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens."""
    ports = set[int]()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether somebody listens on a port of this machine."""
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0


@contextmanager
def running(
    *command: str | Path, ports: Iterable[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the block; it listens on `ports` by then."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: all(map(listens, ports)), f"{command[0]} to listen")
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextmanager
def nginx(folder: Path, site: str, *ports: int) -> Iterator[None]:
    """Run nginx with a site in its http block until the end of the block.

    It listens on `ports` by then.
    """
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    config = folder / "nginx.conf"
    http = f"access_log off;\n{temporary}{site}"
    events = "events { worker_connections 1024; }"
    config.write_text(
        f"daemon off;\npid {folder}/pid;\n{events}\nhttp {{\n{http}\n}}\n"
    )
    command = [
        find("nginx") or "nginx",
        "-p",
        str(folder),
        "-c",
        str(config),
        "-e",
        str(folder / "error.log"),
    ]
    ran(*command, "-t")
    with running(*command, ports=ports):
        yield


def trust(certificate: Path) -> ssl.SSLContext:
    """Make a context for clients that trust the `certificate`."""
    return ssl.create_default_context(cafile=certificate / "fullchain.pem")
