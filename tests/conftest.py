"""The browser and the certificate that several tests need, and what runs first."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fixtures import PATIENCE

if TYPE_CHECKING:
    from selenium import webdriver

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")
BROWSER_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root, in a container, can't have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of the status page: together they take longest.

    So one process runs them all, with one browser, while others run the other tests.
    """
    items.sort(key=lambda item: item.path.name != "test_status_page.py")


@pytest.fixture(scope="session")
def shared_browser() -> "Iterator[webdriver.Chrome]":
    """Start a headless Chromium from Debian's packages.

    It contacts no servers by itself.
    """
    if not (CHROMIUM.exists() and CHROMEDRIVER.exists()):
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*BROWSER_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options, webdriver.ChromeService(str(CHROMEDRIVER)))
        browser.set_page_load_timeout(PATIENCE)
        browser.set_script_timeout(PATIENCE)
        try:
            yield browser
        finally:
            browser.quit()


@pytest.fixture
def browser(shared_browser: "webdriver.Chrome") -> "Iterator[webdriver.Chrome]":
    """Give a test the browser, 1280 pixels wide, light, and with nothing in its log."""
    shared_browser.set_window_size(1280, 1000)
    shared_browser.get_log("browser")  # type: ignore[no-untyped-call]
    yield shared_browser
    shared_browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    shared_browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    shared_browser.execute_cdp_cmd(
        "Emulation.setScriptExecutionDisabled", {"value": False}
    )
    shared_browser.get("about:blank")  # or the page goes on asking the service


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a self-signed certificate for localhost.

    Return the folder with fullchain.pem and privkey.pem.
    """
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, as Debian has it")
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    command += " -days 2 -subj /CN=localhost"
    command += (
        " -addext subjectAltName=DNS:localhost -keyout privkey.pem -out fullchain.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


# Python runs it when it starts.
HANGING_NAMES = """
import socket, time
look_up = socket.getaddrinfo
def hang(host, *args, **options):
    if host == "hanging.invalid":
        print("looking up", flush=True)
        time.sleep(600)
    return look_up(host, *args, **options)
socket.getaddrinfo = hang
"""


@pytest.fixture
def hanging_names(tmp_path: Path) -> str:
    """Return a PYTHONPATH with which looking up the name `hanging.invalid` hangs."""
    (tmp_path / "sitecustomize.py").write_text(HANGING_NAMES)
    return str(tmp_path)
