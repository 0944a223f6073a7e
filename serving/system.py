"""What the server needs from the operating system: sockets, descriptors, streams."""

import ctypes
import errno
import os
import re
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress

BACKLOG = 1024
_FIRST_INHERITED = 3  # SD_LISTEN_FDS_START
# From malloc.h
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE_BLOCK = 256 * 1024  # bytes from which on a block is given back
_MAX_ARENAS = 2
_MISSING_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of `host`; `::` takes IPv4 clients too.

    An address that this machine doesn't have is skipped if there is another. Raise
    OSError, with a reason, if there is none, or if one can't be listened on.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listeners: list[socket.socket] = []
    skipped: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        if listeners and port == 0:  # the system chose one for the first
            port = listeners[0].getsockname()[1]
        try:
            listeners.append(_listen_at(family, str(address[0]), port, address[2:]))
        except OSError as error:
            if error.errno in _MISSING_FAMILY:
                skipped = error
                continue
            for listener in listeners:
                listener.close()
            raise
    if not listeners:
        raise skipped or OSError(errno.EADDRNOTAVAIL, "the host has no address")
    return listeners


def _listen_at(
    family: int, host: str, port: int, scope: tuple[object, ...]
) -> socket.socket:
    dual = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            (host, port, *scope),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=dual,
        )
    except OSError as error:
        # Its own text repeats the address, which the caller knows.
        raise OSError(error.errno, os.strerror(error.errno or 0)) from None
    return listener


def inherited_listeners(environ: Mapping[str, str]) -> list[socket.socket]:
    """Return the sockets that systemd has passed to this process (sd_listen_fds(3)).

    They belong to systemd: clients that nobody accepts wait for the next process. Raise
    OSError, with a reason, if one of them isn't a listening TCP socket.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environ.get("LISTEN_FDS", "0")
    if not re.fullmatch("[0-9]{1,9}", count):
        raise OSError(errno.EINVAL, "LISTEN_FDS is no number")
    listeners: list[socket.socket] = []
    for descriptor in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        is_ip = listener.family in (socket.AF_INET, socket.AF_INET6)
        is_stream = listener.type == socket.SOCK_STREAM
        is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not (is_ip and is_stream and is_listening):
            raise OSError(errno.EINVAL, "systemd passed no listening TCP socket")
        listeners.append(listener)
    return listeners


def raise_file_limit() -> int:
    """Allow as many open files as the system does, and return how many."""
    try:
        import resource
    except ImportError:  # it does not exist for Windows
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS rejects its own limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft


def open_standard_streams() -> None:
    """Open standard streams that are closed on the null device.

    Otherwise the next file or socket would become one of them: a message could end up
    in a client's connection, and libuv aborts when it closes such a descriptor.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
    if sys.stdout is None:  # it was closed when Python started
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


def return_memory_early() -> None:
    """Have the C library give large blocks back to the system as soon as they are free.

    By itself, glibc keeps them: it raises its threshold for that with the size of each
    block that is freed, up to 32 MiB, in each of many arenas.
    """
    with suppress(OSError, AttributeError):  # it is another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        libc.mallopt(_M_ARENA_MAX, _MAX_ARENAS)
