"""The status page in each of its states, as axe-core sees it.

It's tried wide and narrow, light and dark.
"""

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from standin import DEMO_EVENTS, Gate, Standin
from tests.deploy.tools import needs
from tests.fixtures import Service, Start, new_id, until

AXE = """
    const done = arguments[0];
    axe.run().then(({passes, violations}) =>
      done([
        passes.length,
        violations.map(({id, nodes}) => `${id}: ${nodes.map(({html}) => html)}`),
      ]));
"""
SMALL = {
    "C42_THREADS": "20",
    "C42_TIMEOUT": "20",
}  # four requests may wait for the upstream


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Get axe-core by npm."""
    folder = tmp_path_factory.mktemp("axe")
    command = (
        "npm",
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--prefix",
        str(folder),
        "axe-core@4",
    )
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm can't install axe-core: {error}")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@contextmanager
def crowd(service: Service, upstream: Standin, *, more: int) -> Iterator[None]:
    """Have four requests wait for the upstream, and `more` be refused."""
    gate, event_id = Gate(), new_id()
    upstream.rule("events", event_id, gate=gate)
    waiting = [
        threading.Thread(target=service.event, args=(event_id,)) for _ in range(4)
    ]
    for thread in waiting:
        thread.start()
    until(
        lambda: service.get("/status.json").json()["cache"]["waiting"] == 4,
        "four to wait",
    )
    for _ in range(more):
        assert service.event(new_id()).status_code == 503
    try:
        if not more:
            yield
    finally:
        gate.open()
        for thread in waiting:
            thread.join()
    if more:
        yield


@contextmanager
def in_state(state: str, start: Start, upstream: Standin) -> Iterator[Service]:
    """Start a service, and give it some traffic and a trouble."""
    environ = {"stopping": {"C42_DRAIN": "60"}, "full": SMALL, "refusing": SMALL}.get(
        state, {}
    )
    with socket.socket() as closed:  # where nobody listens
        closed.bind(("127.0.0.1", 0))
        if state == "redis":
            environ = {"C42_CACHE_URL": f"redis://127.0.0.1:{closed.getsockname()[1]}"}
        service = start(**environ)
        for name in ("plain", "big", "unknown", "plain", "big", "unknown", "plain"):
            service.event(DEMO_EVENTS[name])
        if state in ("full", "refusing"):
            with crowd(service, upstream, more=10 if state == "refusing" else 0):
                yield service
            return
        if state == "faults":
            upstream.rule("events", status=503)
            service.event(new_id())
        if state == "outage":
            upstream.rule(status=503)
            for _ in range(10):
                service.event(new_id())
        if state == "token":
            upstream.rule(status=401)
            service.event(new_id())
        if state == "pause":
            upstream.rule(status=429, headers={"Retry-After": "100"})
            service.event(new_id())
        if state == "stopping":
            service.process.send_signal(signal.SIGTERM)
        yield service


@needs("npm")
@pytest.mark.parametrize(
    "state",
    [
        "none",
        "faults",
        "outage",
        "token",
        "pause",
        "full",
        "refusing",
        "redis",
        "stopping",
    ],
)
def test_status_page_is_accessible(
    browser: Chrome,
    start: Start,
    upstream: Standin,
    axe: str,
    tmp_path: Path,
    state: str,
) -> None:
    """axe-core finds nothing wrong with the page in any state.

    The page names the trouble.
    """
    with in_state(state, start, upstream) as service:
        browser.get(service.url)
        trouble = f"return !document.querySelector('[data-trouble={state}]').hidden"
        until(lambda: browser.execute_script(trouble), state)
        browser.execute_script(axe)
        for width in (375, 1280):
            size = {
                "width": width,
                "height": 900,
                "deviceScaleFactor": 1,
                "mobile": False,
            }
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            for scheme in ("light", "dark"):
                media = {
                    "features": [{"name": "prefers-color-scheme", "value": scheme}]
                }
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
                passes, violations = browser.execute_async_script(AXE)
                assert (passes > 20, violations) == (True, []), (width, scheme)
                height = browser.execute_script(
                    "return document.documentElement.scrollHeight"
                )
                browser.execute_cdp_cmd(
                    "Emulation.setDeviceMetricsOverride", size | {"height": height}
                )
                browser.save_screenshot(str(tmp_path / f"{state}-{width}-{scheme}.png"))
        if state == "stopping":
            service.process.send_signal(signal.SIGTERM)  # the second: at once
