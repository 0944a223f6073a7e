"""Settings: what is taken, what is refused, and with which words."""

from collections.abc import Callable

import pytest

import main
from operations import settings
from tests.fixtures import (
    TOKEN,
    Service,
)

Start = Callable[..., Service]


WRONG = {
    "C42_TOKEN": ["a b", "a\nb", "caf\u00e9", "a\x00", "\udcff"],
    "C42_EXPIRY": ["soon", "-1", "0", "nan", "inf", "-inf", "", "1e9", "4,2", "0x1", "\n", "1\n2"],
    "C42_LOGLEVEL": ["LOUD", "", "10", "INFO\n"],
    "C42_BASE_URL": [
        "ftp://x", "", "x", "http://", "http:///api", "http://x:99999/", "http://x:y/", "http://x?a", "http://x/#b",
        "http://x y/", "http://x/\n", "http://*.x/", "http://.../", "http://[zz]/", "http://a@x/", "http://\x00/",
    ],
    "C42_HOST": ["", "a b", "http://x", "127.0.0.1:80\n", "/a"],
    "C42_PORT": ["99999", "0", "-1", "http", "", "80.5", "\u0663", "5000\n", "1" * 5000],
    "C42_TIMEOUT": ["0", "-1", "nan", "", "9999"],
    "C42_FAULT_EXPIRY": ["0", "-1", "nan", "", "5", "5\n"],
    "C42_MAX_ENTRIES": ["0", "-1", "many", "", "1e5"],
    "C42_THREADS": ["0", "16", "-1", "", "99999"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_setting(capsys: pytest.CaptureFixture[str], name: str, value: str) -> None:
    """A senseless value is exit status 2 and one printable line, which names the variable and the value."""
    assert main.main([], {"C42_TOKEN": TOKEN, name: value}) == 2
    said, complaint = capsys.readouterr()
    assert (said, complaint.count("\n"), complaint[:-1].isprintable()) == ("", 1, True)
    assert len(complaint) < 400
    if name == "C42_TOKEN":
        assert complaint == "C42_TOKEN makes no sense: it takes printable ASCII without spaces\n"
    elif "@" in value:
        assert complaint.startswith(f"{name} makes no sense: it takes ")
    else:
        assert complaint.startswith(f"{name}={value.encode('unicode_escape').decode()[:80]}")
        assert " makes no sense: it takes " in complaint


@pytest.mark.parametrize("environ", [{}, {"C42_TOKEN": ""}])
def test_no_token(capsys: pytest.CaptureFixture[str], environ: dict[str, str]) -> None:
    """A missing token is exit status 2 and one line that names it."""
    assert main.main([], environ) == 2
    assert capsys.readouterr() == ("", "C42_TOKEN is missing: token for Calendar42\n")


def test_right_settings() -> None:
    """Settings have the documented defaults, times in seconds, and take the values at their bounds."""
    config = settings.read({"C42_TOKEN": TOKEN})
    assert config.expiry == pytest.approx(252)
    assert (config.fault_expiry, config.timeout) == (6, 10)
    assert (config.host, config.port, config.loglevel) == ("127.0.0.1", 5000, "INFO")
    assert (config.max_entries, config.threads, config.max_waiting) == (100_000, 256, 240)
    assert config.base_url == "https://demo.calendar42.com/api/v2/"
    assert settings.read({"C42_TOKEN": TOKEN, "C42_EXPIRY": "0.05"}).expiry == 3.0
    assert settings.read({"C42_TOKEN": TOKEN, "C42_EXPIRY": "0.05"}).fault_expiry == 3.0
    edges = {"C42_PORT": "65535", "C42_THREADS": "17", "C42_MAX_ENTRIES": "1", "C42_LOGLEVEL": "debug"}
    config = settings.read({"C42_TOKEN": TOKEN, "C42_BASE_URL": "HTTP://[::1]:80/a//", **edges})
    assert (config.port, config.max_waiting, config.max_entries, config.loglevel) == (65535, 1, 1, "DEBUG")
    assert config.base_url == "HTTP://[::1]:80/a/"
    assert TOKEN not in repr(config)
