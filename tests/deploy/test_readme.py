"""README.md: every command works as printed, and every transcript is what appears.

They are run in a fresh copy of the project.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from operations.settings import Settings
from standin import DEMO_EVENTS, Standin
from tests.deploy.tools import free_ports, ran
from tests.fixtures import PATIENCE, ROOT, TOKEN, until

PAGE = (ROOT / "README.md").read_text()
DOCUMENTS = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
KEEPS_STATE = re.compile(r"(source|export) ")
VOLATILE = {
    "max-age=": "[0-9]+",
    "ttl=": "[0-9]+",
    "Date: ": ".+ GMT",
    "X-Request-ID: ": "[0-9a-f]{16}",
}


class Step(NamedTuple):
    """A command of the page, and what the page says that it prints."""

    command: str
    printed: str


def steps(block: str) -> list[Step]:
    """Read a block of the page."""
    return [
        Step(*part.rstrip("\n").partition("\n")[::2]) for part in block.split("$ ")[1:]
    ]


def blocks(heading: str) -> list[list[Step]]:
    """Return the commands of each block below a heading of the page."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [
        steps(block)
        for block in re.findall(r"^```console\n(.*?)^```$", section, re.M | re.S)
    ]


def normal(text: str) -> str:
    """Replace what differs each time."""
    for before, pattern in VOLATILE.items():
        text = re.sub(f"{before}{pattern}", f"{before}…", text)
    return text.replace("\r\n", "\n")


class Terminal:
    """A terminal in a fresh copy of the project, where nothing is set up."""

    def __init__(self, folder: Path, **environ: str) -> None:
        names = ran(
            "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"
        ).split("\0")
        for name in names:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (self.port,) = free_ports(1)
        self._folder = folder
        self._environ = (
            {name: os.environ[name] for name in ("HOME", "PATH")}
            | {"C42_PORT": str(self.port)}
            | environ
        )
        self._state: list[str] = []

    def run(self, command: str) -> tuple[str, str]:
        """Run a command, which must end well; return its stdout and stderr."""
        if KEEPS_STATE.match(command):
            self._state.append(command)
        ended = subprocess.run(
            self._command(command),
            check=False,
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        return ended.stdout.replace(str(self.port), "5000"), ended.stderr

    @contextmanager
    def serve(self, command: str) -> Iterator[None]:
        """Run a service until the end of the block, as with Ctrl-C.

        It stops without complaint.
        """
        log = self._folder / "printed"
        with log.open("w") as printed:
            process = subprocess.Popen(
                self._command(command),
                cwd=self._folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

            def serves() -> bool:
                assert process.poll() is None, log.read_text()
                return " INFO c42c serving on " in log.read_text()

            try:
                until(serves, f"{command} to serve", patience=300)
                yield
            finally:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(PATIENCE)
            # If the service ends first, make sometimes complains about the signal.
            said = re.sub(r"^make: .*\n", "", log.read_text(), flags=re.M)
            assert said.endswith(" INFO c42c stopped\n")

    def _command(self, command: str) -> list[str]:
        here = command.replace("127.0.0.1:5000", f"127.0.0.1:{self.port}")
        return ["bash", "-ec", "\n".join([*self._state, here])]


def test_demo_and_calls(tmp_path: Path, upstream: Standin) -> None:
    """`make demo` starts, and the calls answer what the page shows, byte for byte.

    It takes less than 20 seconds of CPU time.
    """
    [[demo], run, *_] = blocks("Start it")
    assert [demo.command, run[-1].command] == ["make demo", "make run"]
    terminal = Terminal(tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with terminal.serve(demo.command):
        for command, printed in (step for block in blocks("Call it") for step in block):
            assert normal(terminal.run(command)[0]) == normal(printed)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 20
    for command, _ in run[:-1]:
        terminal.run(command)
    with terminal.serve(run[-1].command):
        pass
    checked = Terminal(tmp_path, C42_TOKEN=TOKEN, C42_BASE_URL=upstream.base_url).run(
        "make check-service"
    )[0]
    assert "FAIL" not in checked


def test_the_classic_way(tmp_path: Path, upstream: Standin) -> None:
    """Without make, the service starts and stops.

    Its two test scripts print nothing.
    """
    [_, _, classic, scripts] = blocks("Start it")
    *preparations, serve = classic
    terminal = Terminal(tmp_path)
    for command, _ in preparations:
        terminal.run(command)
    with terminal.serve(serve.command):
        pass
    assert [terminal.run(command) for command, _ in scripts] == [("", "")] * len(
        scripts
    )
    assert "C42_TOKEN" in terminal.run("python main.py --help")[0]
    terminal.run(f"export C42_TOKEN={TOKEN} C42_BASE_URL={upstream.base_url}")
    printed, _ = terminal.run(f"python main.py --event {DEMO_EVENTS['plain']}")
    assert json.loads(printed)["title"] == "Dinner with the neighbours"


def test_no_command_is_left_out() -> None:
    """The tests above run all commands of the page, those within its text included."""
    in_blocks = sum(map(len, blocks("Start it") + blocks("Call it")))
    assert len(re.findall(r"^\$ ", PAGE, re.M)) == in_blocks > 10
    in_text = set(
        re.findall(r"`((?:make|python3?|pip|curl|source|git|flask) [^`]*)`", PAGE)
    )
    assert in_text == {
        "make demo",
        "source c42c/bin/activate",
        "make check-service",
        "python main.py --event EVENT_ID",
        "python main.py --help",
    }


def test_settings_are_complete() -> None:
    """The page has every setting with its default."""
    table = PAGE.partition("## Configure it\n")[2].partition("\n## ")[0]
    shown: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`C42_.*?) \| (.*?) \|", table, re.M):
        shown |= zip(
            re.findall(r"`(.*?)`", names), default.strip("`").split(", "), strict=True
        )
    declared = {
        f"C42_{one.name.upper()}": one.metadata["default"] or "none"
        for one in fields(Settings)
    }
    assert shown == declared | {"C42_TOKEN": "required"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of a document leads to a file.

    Every `make` target that it names exists.
    """
    text = document.read_text()
    links = {
        link.partition("#")[0] for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", text)
    }
    assert {link for link in links if not (document.parent / link).exists()} == set()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert (
        set(re.findall(r"(?:`|^    )(?:[A-Z_0-9]+=\S+ )*make ([a-z-]+)", text, re.M))
        <= targets
    )
