"""Settings: valid ones are accepted, and others rejected with what is expected."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import main
from operations import VERSION, settings
from standin import DEMO_EVENTS, Standin
from tests.fixtures import (
    PATIENCE,
    ROOT,
    TOKEN,
    MakeInside,
    Service,
    Start,
    at_once,
    new_id,
    until,
)

EIGHT = "at least 8 printable ASCII characters without spaces"
WRONG = {
    "C42_TOKEN": [
        "a b c d e", "abcdefg", "abcdefg\nh", "caf\u00e9caf\u00e9", "12345678\x00",
        "\udcff",
    ],
    "C42_EXPIRY": [
        "soon", "-1", "0", "nan", "inf", "-inf", "", "525600.1", "4,2", "0x1",
        "\n", "1\n2",
    ],
    "C42_LOGLEVEL": ["LOUD", "", "10", "INFO\n"],
    "C42_LOGFORMAT": ["xml", "", "JSON", "json\n"],
    "C42_BASE_URL": [
        "ftp://x", "", "x", "http://", "http:///api", "http://x:99999/", "http://x:y/",
        "http://x?a", "http://x/#b", "http://x y/", "http://x/\n", "http://*.x/",
        "http://.../", "http://[zz]/", "http://a@x/", "http://\x00/",
    ],
    "C42_HOST": ["", "a b", "http://x", "127.0.0.1:80\n", "/a", ".", "a..b", "a" * 64],
    "C42_PORT": ["65536", "0", "-1", "http", "", "80.5", "\u0663", "5000\n", "1" * 50],
    "C42_TIMEOUT": ["0", "-1", "nan", "", "3600.1"],
    "C42_FAULT_EXPIRY": ["0", "-1", "nan", "", "5", "5\n"],
    "C42_REFRESH_AHEAD": ["51", "-1", "many", "", "2.5", "10%"],
    "C42_MAX_MIB": ["0", "-1", "many", "", "1.5", "128 MiB", "1000001"],
    "C42_MAX_ENTRIES": ["0", "1", "-1", "many", "", "1e5", "100000001"],
    "C42_THREADS": ["0", "16", "-1", "", "10001"],
    "C42_DRAIN": ["-1", "nan", "", "3601", "soon"],
}  # fmt: skip


def complaints(capsys: pytest.CaptureFixture[str], **environ: str) -> list[str]:
    """Start the service with settings that it must reject; return what it says."""
    assert main.main([], environ) == 2
    said, complained = capsys.readouterr()
    assert said == ""
    return complained.splitlines()


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
)
def test_wrong_setting(
    capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    """An invalid value is exit status 2 and one printable line about it.

    It names the variable and the value, but no secret.
    """
    (line,) = complaints(capsys, **{"C42_TOKEN": TOKEN, name: value})
    assert line.isprintable()
    assert len(line) < 400
    if name == "C42_TOKEN":
        assert line == f"C42_TOKEN is invalid: expected {EIGHT}"
    elif "@" in value:
        assert line.startswith(f"{name} is invalid: expected ")
    else:
        assert line.startswith(f"{name}={value.encode('unicode_escape').decode()[:80]}")
        assert " is invalid: expected " in line


def test_words(capsys: pytest.CaptureFixture[str]) -> None:
    """All invalid settings are reported at once, each with what was expected."""
    wrong = {
        "C42_EXPIRY": "soon",
        "C42_PORT": "0",
        "C42_DRAIN": "-1",
        "C42_LOGFORMAT": "xml",
        "C42_THREADS": "16",
    }
    assert complaints(capsys, **wrong) == [
        "C42_EXPIRY=soon is invalid: expected a number of minutes greater than 0, "
        "at most 525600",
        "C42_LOGFORMAT=xml is invalid: expected text or json",
        "C42_PORT=0 is invalid: expected a whole number from 1 to 65535",
        "C42_THREADS=16 is invalid: expected a whole number from 17 to 10000",
        "C42_DRAIN=-1 is invalid: expected a whole number from 0 to 3600",
        "C42_TOKEN is missing: expected Calendar42's token, "
        "or C42_TOKEN_FILE with the path of a file",
    ]


def test_a_mistake_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A lifetime that is no number has one line, however short C42_EXPIRY is."""
    (line,) = complaints(
        capsys, C42_TOKEN=TOKEN, C42_EXPIRY="0.01", C42_FAULT_EXPIRY="soon"
    )
    assert line.startswith("C42_FAULT_EXPIRY=soon is invalid: expected a number")


def test_words_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With C42_LOGFORMAT=json, the reasons why a start fails are logged as JSON."""
    lines = complaints(capsys, C42_PORT="0", C42_LOGFORMAT="json")
    records = [json.loads(line) for line in lines]
    assert [record["message"][:9] for record in records] == ["C42_PORT=", "C42_TOKEN"]
    assert {(record["level"], record["logger"]) for record in records} == {
        ("ERROR", "c42c")
    }


@pytest.mark.parametrize(
    ("origin", "shorter"),
    [
        ("http://a.b:80", "http://a.b"),
        ("https://[::1]:443", "https://[::1]"),
    ],
)
def test_an_origin_with_an_implied_port(
    capsys: pytest.CaptureFixture[str], origin: str, shorter: str
) -> None:
    """An origin with its scheme's own port is rejected with the right one.

    No browser sends that port.
    """
    port = origin.rpartition(":")[2]
    origins = f"https://c.d,{origin}"
    assert complaints(capsys, C42_TOKEN=TOKEN, C42_CORS_ORIGINS=origins) == [
        f"C42_CORS_ORIGINS={origins} is invalid: expected {shorter}, because browsers "
        f"leave out port {port}"
    ]


def test_defaults() -> None:
    """Settings have the documented defaults; times are in seconds."""
    config = settings.read({"C42_TOKEN": TOKEN})
    assert config == settings.Settings(
        token=TOKEN,
        token_file="",
        expiry=252.0,
        loglevel="INFO",
        logformat="text",
        base_url="https://demo.calendar42.com/api/v2/",
        host="127.0.0.1",
        port=5000,
        timeout=10,
        fault_expiry=6,
        refresh_ahead=0.1,
        max_entries=100_000,
        max_mib=128,
        threads=256,
        drain=0,
        cors_origins=frozenset(),
        cache_url="",
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("token", "8letters", "8letters"),
        ("expiry", "0.05", 3.0),
        ("expiry", "525600", 31_536_000.0),
        ("loglevel", "debug", "DEBUG"),
        ("loglevel", "Critical", "CRITICAL"),
        ("logformat", "json", "json"),
        ("base_url", "HTTP://[::1]:80/a//", "HTTP://[::1]:80/a/"),
        ("host", "a" * 63 + ".b.", "a" * 63 + ".b."),
        ("host", "fe80::1", "fe80::1"),
        ("port", "1", 1),
        ("port", "65535", 65535),
        ("timeout", ".01", 0.01),
        ("timeout", "3600", 3600.0),
        ("fault_expiry", "4.2", 252.0),
        ("max_entries", "2", 2),
        ("max_entries", "100000000", 100_000_000),
        ("max_mib", "1", 1),
        ("max_mib", "1000000", 1_000_000),
        ("threads", "17", 17),
        ("threads", "10000", 10_000),
        ("drain", "3600", 3600),
        ("cors_origins", "*", frozenset("*")),
    ],
)
def test_bounds(name: str, text: str, value: object) -> None:
    """Values at the bounds are accepted."""
    config = settings.read({"C42_TOKEN": TOKEN, f"C42_{name.upper()}": text})
    assert getattr(config, name) == value


@pytest.mark.parametrize(
    "name", [one.name for one in fields(settings.Settings) if "expiry" in one.name]
)
def test_lifetimes(name: str) -> None:
    """Every lifetime is at most C42_EXPIRY, and in the log's first line.

    Instances that differ in one share no answers.
    """
    environ = {"C42_TOKEN": TOKEN, "C42_EXPIRY": "0.05"}  # less than any default
    config = settings.read(environ)
    assert getattr(config, name) == 3.0
    assert settings.facts(config)[name] == 3.0
    variable = f"C42_{name.upper()}"
    other = settings.read({**environ, variable: "0.01"})
    assert settings.scope(other) != settings.scope(config)
    if name != "expiry":
        with pytest.raises(settings.SettingsError) as raised:
            settings.read({**environ, variable: "0.06"})
        assert f"{variable}=0.06 is invalid" in str(raised.value)


def test_secrets_are_not_shown() -> None:
    """The settings' `repr` has neither the token nor the password of Redis."""
    url = "redis://:hush-hush@127.0.0.1/"
    config = settings.read({"C42_TOKEN": TOKEN, "C42_CACHE_URL": url})
    assert TOKEN not in repr(config)
    assert "hush" not in repr(config)


@pytest.mark.parametrize("shown", ["x" * 80, "x" * 81])
def test_long_values_are_cut(shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At most 80 characters of an invalid value are shown."""
    expected = shown[:80]
    if len(shown) > 80:
        expected += "…"
    (line,) = complaints(capsys, C42_TOKEN=TOKEN, C42_EXPIRY=shown)
    assert line.startswith(f"C42_EXPIRY={expected} is invalid: ")


@pytest.mark.parametrize(
    ("percent", "share"), [("0", 0.0), ("1", 0.01), ("25", 0.25), ("50", 0.5)]
)
def test_refresh_ahead_is_a_share(percent: str, share: float) -> None:
    """C42_REFRESH_AHEAD is given in percent, and read as a share of the lifetime."""
    config = settings.read({"C42_TOKEN": TOKEN, "C42_REFRESH_AHEAD": percent})
    assert config.refresh_ahead == share


@pytest.mark.parametrize(("threads", "waiting"), [("256", 240), ("17", 1)])
def test_threads_that_never_wait(
    inside: MakeInside, threads: str, waiting: int
) -> None:
    """All worker threads but sixteen may wait for Calendar42."""
    assert inside(C42_THREADS=threads).status()["cache"]["max_waiting"] == waiting


def test_token_file(tmp_path: Path, start: Start) -> None:
    """The token is read from C42_TOKEN_FILE, without its line break.

    It never gets into the environment.
    """
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\r\n")
    service = start(C42_TOKEN="", C42_TOKEN_FILE=str(path))
    assert service.event(DEMO_EVENTS["plain"]).status_code == 200
    assert (
        TOKEN.encode() not in Path(f"/proc/{service.process.pid}/environ").read_bytes()
    )
    assert TOKEN not in repr(settings.read({"C42_TOKEN_FILE": str(path)}))


def test_wrong_token_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A token file that is missing, empty or holds something else is a mistake.

    Neither its content nor its path is shown.
    """
    shown, missing = "C42_TOKEN_FILE", "can't be read: No such file or directory"
    wrong = f"is invalid: expected a file that holds {EIGHT}"
    contents = {
        "empty": b"",
        "short": b"hush\n",
        "two": b"hush-hush\nhush-hush\n",
        "odd": b"hush-hush\xff",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert complaints(capsys, C42_TOKEN_FILE=f"{tmp_path}/{name}") == [
            f"{shown} {wrong}"
        ]
    for path in f"{tmp_path}/none", "it-is-the-token", "it/is/the/token":
        assert complaints(capsys, C42_TOKEN_FILE=path) == [f"{shown} {missing}"]
    assert complaints(capsys, C42_TOKEN_FILE=str(tmp_path)) == [
        f"{shown} can't be read: Is a directory"
    ]
    both = "C42_TOKEN and C42_TOKEN_FILE are both set: expected only one of them"
    assert complaints(capsys, C42_TOKEN=TOKEN, C42_TOKEN_FILE=f"{tmp_path}/none") == [
        both
    ]


def test_warnings(start: Start) -> None:
    """A variable that isn't a setting causes a warning and nothing else."""
    service = start(C42_EXPIRE="1", C42_="2")
    until(lambda: "serving on" in service.log, "the lines of the start")
    assert (
        "WARNING c42c C42_EXPIRE is not a setting; did you mean C42_EXPIRY?\n"
        in service.log
    )
    assert "WARNING c42c C42_ is not a setting\n" in service.log
    assert service.event(DEMO_EVENTS["plain"]).status_code == 200


def test_what_is_warned_about() -> None:
    """Each C42_… variable that isn't a setting has one printable line.

    It has the closest name if there is one that is close.
    """
    environ = {"C42_TOKEN_FIL": "", "C42_WORKERS": "", "C42_\n": "", "D42_TOKEN": ""}
    assert settings.warnings(environ | {"C42_TOKEN": TOKEN}) == [
        r"C42_\n is not a setting",
        "C42_TOKEN_FIL is not a setting; did you mean C42_TOKEN_FILE?",
        "C42_WORKERS is not a setting",
    ]


def test_the_log_begins_with_the_settings(tmp_path: Path, start: Start) -> None:
    """The log's first line has the version and the settings that matter.

    They are the upstream, the lifetimes, where the token comes from and where Redis is,
    without its password.
    """
    path = tmp_path / "token"
    path.write_text(TOKEN)
    redis = "redis://somebody:hush-hush@127.0.0.1:1/2"
    service = start(C42_TOKEN="", C42_TOKEN_FILE=str(path), C42_CACHE_URL=redis)
    assert service.stop() == 0
    assert "hush-hush" not in service.log
    first = service.log.splitlines()[0]
    assert f" INFO c42c start version={VERSION} upstream=http://127.0.0.1:" in first
    for fact in (
        "timeout=10.0 expiry=252.0 fault_expiry=6.0 refresh_ahead=0.1",
        "token_from=C42_TOKEN_FILE",
        "redis=redis://127.0.0.1:1/2",
    ):
        assert fact in first
    service = start(C42_LOGFORMAT="json")
    assert service.stop() == 0
    facts = json.loads(service.log.splitlines()[0])
    assert (facts["expiry"], facts["token_from"], facts["redis"]) == (
        252,
        "C42_TOKEN",
        None,
    )


def test_an_old_python() -> None:
    """Python 3.10 can read main.py, and prints one line that says what is needed."""
    source = (ROOT / "main.py").read_text()
    ast.parse(source, feature_version=(3, 10))
    pretend = "import sys; sys.version_info = (3, 10, 0); sys.version = '3.10.0 (main)'"
    no_imports = "sys.path = []; sys.modules['argparse'] = sys.modules['flask'] = None"
    code = f"{pretend}; {no_imports}; exec({source!r}, {{'__name__': '__main__'}})"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        1,
        "",
        "c42c needs Python 3.11 or newer, and this is 3.10.0\n",
    )


def test_one_mode(capsys: pytest.CaptureFixture[str]) -> None:
    """`--demo` and `--check` together are a mistake: there is nothing to check."""
    with pytest.raises(SystemExit) as exited:
        main.main(["--demo", "--check"], {})
    assert exited.value.code == 2
    assert "argument --check: not allowed with argument --demo" in (
        capsys.readouterr().err
    )


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` has a line for each setting, and `--version` prints the version.

    The line of C42_EXPIRY has its default.
    """
    with pytest.raises(SystemExit):
        main.main(["--help"], {})
    said = capsys.readouterr().out
    assert [name for name in WRONG if f"\n  {name} " not in said] == []
    assert "minutes an answer is cached (4.2)\n" in said
    with pytest.raises(SystemExit):
        main.main(["--version"], {})
    assert capsys.readouterr().out == f"c42c {VERSION}\n"


def test_one_event(upstream: Standin) -> None:
    """`main.py --event` prints what the service would answer, in UTF-8.

    If that is an error, the exit status is 1. An id that is empty, or could be taken
    for more of the address, is malformed.
    """
    environ = {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url}
    event_id = new_id()
    upstream.add_event(event_id, title="Caf\u00e9")

    def printed(wanted: str) -> tuple[int, bytes]:
        ended = subprocess.run(
            [sys.executable, ROOT / "main.py", "--event", wanted],
            env=os.environ | environ | {"PYTHONIOENCODING": "ascii"},
            check=False,
            capture_output=True,
            timeout=PATIENCE,
        )
        return ended.returncode, ended.stdout

    good, unknown, *wrong = at_once(
        lambda: printed(event_id),
        lambda: printed(DEMO_EVENTS["unknown"]),
        lambda: printed("a.b"),
        lambda: printed(""),
        lambda: printed(f"{event_id}?a"),
        lambda: printed("\udcff"),  # a byte that isn't UTF-8
    )
    answer = f'{{"id":"{event_id}","title":"Caf\u00e9","names":[]}}\n'
    assert good == (0, answer.encode())
    assert unknown[0] == 1
    assert json.loads(unknown[1])["error"]["status_code"] == 404
    for status, body in wrong:
        assert status == 1
        assert json.loads(body)["error"]["status_code"] == 400


def test_one_event_without_stdout(upstream: Standin) -> None:
    """`main.py --event` gives its exit status even if stdout is closed."""
    event_id = new_id()
    upstream.add_event(event_id)
    ended = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} main.py --event {event_id} >&-"],
        cwd=ROOT,
        env=os.environ | {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url},
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)


@pytest.mark.parametrize("options", [["--event", DEMO_EVENTS["unknown"]], ["--check"]])
def test_a_full_disk(upstream: Standin, options: list[str]) -> None:
    """`--event` and `--check` fail if they can't print, and say why."""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, ROOT / "main.py", *options],
            env=os.environ | {"C42_TOKEN": TOKEN, "C42_BASE_URL": upstream.base_url},
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert ended.returncode == 1
    *_, last = ended.stderr.splitlines()
    assert last == "cannot print: No space left on device"


@pytest.mark.parametrize("options", [["--event", "a"], ["--check"]])
def test_ctrl_c_while_calendar42_is_silent(options: list[str]) -> None:
    """Ctrl-C ends `--event` and `--check` at once: they don't wait for Calendar42."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        port = silent.getsockname()[1]
        environ = {
            "C42_TOKEN": TOKEN,
            "C42_BASE_URL": f"http://127.0.0.1:{port}/",
            "C42_TIMEOUT": "600",
        }
        process = subprocess.Popen(
            [sys.executable, ROOT / "main.py", *options],
            env=os.environ | environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
            connection.close()
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in said) == (130, False)


@pytest.mark.parametrize("app", ["main", "main:create_app"])
def test_flask_finds_the_app(app: str) -> None:
    """`flask --app main routes` works, with and without the name of the factory."""
    command = [sys.executable, "-m", "flask", "--app", app, "routes"]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"C42_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "/events-with-subscriptions/<event_id>" in ran.stdout


def test_flask_without_a_token() -> None:
    """`flask --app main run` says in one line what is missing."""
    ended = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "main", "run"],
        cwd=ROOT,
        env=os.environ | {"C42_TOKEN": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: C42_TOKEN is missing: expected ")


def test_one_version(service: Service) -> None:
    """The contract, the metrics and the status page have the same version."""
    assert service.get("/openapi.json").json()["info"]["version"] == VERSION
    assert service.get("/status.json").json()["version"] == VERSION
    assert f'version="{VERSION}"' in service.get("/metrics").text
