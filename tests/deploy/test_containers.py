"""deploy/compose.yml and deploy/kubernetes.yml are valid.

They are in step with the image and the settings.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from operations.settings import Settings
from operations.settings import read as read_settings
from standin import DEMO_EVENTS, Standin
from tests.deploy.tools import free_ports, needs, nginx, ran
from tests.fixtures import PREFIX, ROOT, TOKEN, Service

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text())
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()))
SETTINGS = {f"C42_{name.upper()}" for name in Settings.__annotations__}
INSTANCES = ("c42c-1", "c42c-2")


def scripts(*command: str) -> str:
    """Run a tool that was installed beside the Python that runs the tests."""
    return ran(str(Path(sys.executable).parent / command[0]), *command[1:])


def test_compose_is_valid() -> None:
    """The compose file follows the specification's schema.

    What it refers to is there.
    """
    scripts(
        "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "deploy/compose.yml",
    )
    for name in INSTANCES:
        build = COMPOSE["services"][name]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    (site,) = COMPOSE["services"]["nginx"]["volumes"]
    assert (DEPLOY / site.partition(":")[0]).is_file()
    ran("git", "check-ignore", "deploy/token")


def test_compose_is_locked_down() -> None:
    """Every container has a read-only root and no capabilities.

    The token is a file, and one port is published, locally.
    """
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
    for name in INSTANCES:
        service = COMPOSE["services"][name]
        assert service["environment"].keys() <= SETTINGS - {"C42_TOKEN"}
        assert (
            service["environment"]["C42_TOKEN_FILE"]
            == f"/run/secrets/{service['secrets'][0]}"
        )
        check_patience(
            service["environment"], int(service["stop_grace_period"].removesuffix("s"))
        )
    published = [
        port
        for service in COMPOSE["services"].values()
        for port in service.get("ports", [])
    ]
    assert published == ["127.0.0.1:8080:8080"]


def check_patience(environ: dict[str, str], seconds: int) -> None:
    """Check that the process manager waits long enough for the service to stop."""
    known = {
        name: text
        for name, text in environ.items()
        if name in ("C42_DRAIN", "C42_TIMEOUT")
    }
    config = read_settings({"C42_TOKEN": TOKEN, **known})
    assert seconds > config.drain + config.timeout + 1


@needs("nginx")
def test_site_of_compose(service: Service, upstream: Standin, tmp_path: Path) -> None:
    """The compose file's nginx passes events on to both instances.

    It passes the status page on to one.
    """
    (port,) = free_ports(1)
    site = (DEPLOY / "compose.nginx.conf").read_text()
    assert set(re.findall(r"server ([\w-]+):5000 ", site)) == set(INSTANCES)
    site = site.replace("listen 8080", f"listen 127.0.0.1:{port}")
    site = re.sub(r"server [\w-]+:5000 ", f"server 127.0.0.1:{service.port} ", site)
    with nginx(tmp_path, site, port):
        for path in ("/readyz", "/status.json", f"{PREFIX}{DEMO_EVENTS['plain']}"):
            ran("curl", "-sSf", f"http://127.0.0.1:{port}{path}")


def test_kubernetes_is_valid() -> None:
    """The manifests are valid by Kubernetes's own schemas.

    They have nothing that these don't know.
    """
    said = scripts("kubernetes-validate", "--strict", "deploy/kubernetes.yml")
    assert [manifest["kind"] for manifest in MANIFESTS] == ["Deployment", "Service"]
    assert said.count(" passed ") == 2


@pytest.fixture
def pod() -> dict[str, Any]:
    """Return the pod of the deployment."""
    spec: dict[str, Any] = MANIFESTS[0]["spec"]["template"]["spec"]
    return spec


def test_kubernetes_is_locked_down(pod: dict[str, Any]) -> None:
    """The pod runs as the image's user, with a read-only root and no capabilities.

    The token is a mounted secret.
    """
    (container,) = pod["containers"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Containerfile").read_text(), re.M)
    assert user is not None
    assert [pod["securityContext"][name] for name in ("runAsUser", "runAsGroup")] == [
        int(user[1]),
        int(user[2]),
    ]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    environ = {one["name"]: one["value"] for one in container["env"]}
    assert environ.keys() <= SETTINGS - {"C42_TOKEN"}
    (mount,) = container["volumeMounts"]
    assert environ["C42_TOKEN_FILE"] == f"{mount['mountPath']}/token"
    assert pod["volumes"][0]["secret"]["secretName"] == "c42c"
    check_patience(environ, pod["terminationGracePeriodSeconds"])


def test_kubernetes_probes(pod: dict[str, Any], service: Service) -> None:
    """The probes ask what the service answers.

    An instance that stops is noticed before it closes its port.
    """
    (container,) = pod["containers"]
    for probe in "startupProbe", "readinessProbe", "livenessProbe":
        assert service.get(container[probe]["httpGet"]["path"]).status_code == 200
    ready = container["readinessProbe"]
    (drain,) = (
        float(one["value"]) for one in container["env"] if one["name"] == "C42_DRAIN"
    )
    assert (
        drain
        > ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"]
    )
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
