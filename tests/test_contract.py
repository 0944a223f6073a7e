"""The contract: what openapi.json says is what the service does."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from answers.value import envelope
from calendar42 import ENDPOINTS
from standin import DEMO_EVENTS, Gate, Standin
from tests.fixtures import ROOT, Inside, Service, new_id

DOCUMENT: dict[str, Any] = json.loads((ROOT / "operations/openapi.json").read_text())
ONE = "/events-with-subscriptions/{event_id}"
MANY = "/events-with-subscriptions"
OF_EVERY_RESPONSE = {"connection", "content-type", "content-length", "date"}


def resolved(node: Any) -> Any:
    """Follow a `$ref` if there is one."""
    while "$ref" in node:
        found: Any = DOCUMENT
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        node = found
    return node


def operation(path: str) -> Any:
    """Return what the document says of GET at `path`."""
    return resolved(DOCUMENT["paths"][path])["get"]


def examples(path: str) -> dict[str, tuple[str, Any]]:
    """Return status and body of each example of an answer, by name."""
    return {
        name: (status, example["value"])
        for at, status, response in responses()
        for content in response.get("content", {}).values()
        for name, example in content.get("examples", {}).items()
        if at == path
    }


def responses() -> Iterator[tuple[str, str, Any]]:
    """Yield each response that the document describes, with its path and status."""
    for path in DOCUMENT["paths"]:
        for status, response in operation(path)["responses"].items():
            yield path, status, resolved(response)


def load(document: dict[str, Any]) -> Any:
    """Return a document as Schemathesis reads it."""
    import schemathesis  # takes a second, which pytest's other workers need not spend

    return schemathesis.openapi.from_dict(document)


@pytest.fixture(scope="module")
def closed() -> Any:
    """Give tests the document as Schemathesis reads it, without room for new members.

    Clients must ignore members that they don't know, but this version sends only those
    that the document describes. Only Calendar42's own errors may have more.
    """
    document = copy.deepcopy(DOCUMENT)
    parts = document["components"]["schemas"]
    of_calendar42 = [parts["Error"], parts["ErrorDetail"]]
    for part in schemas(document):
        if part not in of_calendar42:
            part.setdefault("additionalProperties", False)
    return load(document)


def test_document_is_sound() -> None:
    """The document is valid OpenAPI 3.1, and its references and parts fit together.

    Each reference resolves, and each part is used.
    """
    load(DOCUMENT).validate()
    text = json.dumps(DOCUMENT)
    references = set(re.findall(r'"\$ref": "#/components/(\w+/\w+)"', text))
    parts = {
        f"{kind}/{name}"
        for kind, named in DOCUMENT["components"].items()
        for name in named
    }
    assert references == parts
    assert set(re.findall("[0-9a-f]{32}_[0-9]{14}", text)) <= set(DEMO_EVENTS.values())


def test_document_gives_good_types() -> None:
    """Every operation has a name of its own, and every error is an `Error` or text."""
    names = [operation(path)["operationId"] for path in DOCUMENT["paths"]]
    assert len(set(names)) == len(names)
    errors = [
        (path, media, content["schema"]["$ref"].rpartition("/")[2])
        for path, status, response in responses()
        for media, content in response.get("content", {}).items()
        if status >= "400" and path != "/readyz"
    ]
    assert {(media, schema) for _, media, schema in errors} == {
        ("application/json", "Error"),
        ("text/plain", "OtherError"),
    }
    assert {path for path, media, _ in errors if media == "text/plain"} == {ONE}, (
        "only these are passed through"
    )


def schemas(node: Any = DOCUMENT) -> Iterator[dict[str, Any]]:
    """Yield each part of the document that requires members of an object."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    if isinstance(node.get("required"), list):
        yield node
    for part in node.values():
        yield from schemas(part)


def test_required_members_are_described() -> None:
    """Each member that an object must have is described."""
    for schema in schemas():
        assert set(schema["required"]) <= schema["properties"].keys()


def test_members_can_be_added() -> None:
    """Members can be added within a major version: the document forbids none."""
    assert "Members, headers, codes" in DOCUMENT["info"]["description"]
    assert not [part for part in schemas() if part.get("additionalProperties") is False]


def test_error_codes_are_listed() -> None:
    """The table of c42c's own errors has the code of each status.

    The type of `code` has the same ones, and every status that the server rejects with
    is there.
    """
    table = re.findall(r"(?m)^\| (\d+) \| `(\w+)` \|", DOCUMENT["info"]["description"])
    for status, code in table:
        assert json.loads(envelope(int(status), ""))["error"]["code"] == code
    codes = [code for _, code in table]
    own, any_other = DOCUMENT["components"]["schemas"]["ErrorCode"]["anyOf"]
    assert (own, any_other) == ({"enum": codes}, {"type": "string"})
    raised = set[str]()
    for file in (ROOT / "serving").glob("*.py"):
        raised.update(
            re.findall(r"(?:MalformedRequest|_reject)\(\s*(\d+)", file.read_text())
        )
    assert {"400", "408", "413"} < raised <= {status for status, _ in table}


def test_every_error_can_be_reported() -> None:
    """Every error has an X-Request-ID, and each status of faults has Retry-After."""
    for path, status, response in responses():
        headers = response.get("headers", {})
        if status >= "400":
            assert resolved(headers["X-Request-ID"])["required"], (path, status)
        if path == ONE and status in ("429", "502", "503", "504", "5XX"):
            assert resolved(headers["Retry-After"])["required"], status


def test_every_route_is_described(inside: Callable[..., Inside]) -> None:
    """The document has exactly the paths of the service, in one spelling each."""
    rules = {rule.rule for rule in inside().app.url_map.iter_rules()}
    written = {
        rule.replace("<path:filename>", "{name}").replace("<", "{").replace(">", "}")
        for rule in rules
    }
    assert set(DOCUMENT["paths"]) == written
    (name, _) = operation("/static/{name}")["parameters"]
    assert set(name["schema"]["enum"]) == {
        file.name for file in (ROOT / "operations/static").iterdir()
    }


def test_troubles_are_those_of_the_status_page() -> None:
    """The document names the troubles that the status page shows.

    It leaves out the two that only the page detects.
    """
    page = (ROOT / "operations/templates/status.html").read_text()
    troubles = DOCUMENT["components"]["schemas"]["Status"]["properties"]["troubles"][
        "items"
    ]["enum"]
    assert troubles == [
        name
        for name in re.findall('data-trouble="(.*?)"', page)
        if name not in ("none", "no-answer")
    ]


def test_endpoints_are_those_that_are_called() -> None:
    """The document and the status page's styles have each endpoint that is called."""
    names = DOCUMENT["components"]["schemas"]["EndpointName"]["enum"]
    assert names == list(ENDPOINTS)
    css = (ROOT / "operations/static/status.css").read_text()
    lines = {f".{name}-{part}" for name in names for part in ("median", "p99")}
    assert lines == set(re.findall(r"\.[a-z-]+-(?:median|p99)\b", css))


def test_document_is_served(service: Service) -> None:
    """The document is served as it is, and with a 304 to clients that have it."""
    answer = service.get("/openapi.json")
    assert (answer.status_code, answer.headers["Content-Type"]) == (
        200,
        "application/json",
    )
    assert answer.json() == DOCUMENT
    assert len(answer.raw.headers.getlist("Date")) == 1
    assert (
        service.get(
            "/openapi.json", headers={"If-None-Match": answer.headers["ETag"]}
        ).status_code
        == 304
    )
    assert (
        service.get("/openapi.json", headers={"Range": "bytes=0-3"}).json() == DOCUMENT
    )  # 206 isn't in it
    for date in (
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
    ):
        assert (
            service.get(
                "/openapi.json", headers={"If-Modified-Since": date}
            ).status_code
            == 200
        )
    for condition in (
        {"If-Match": '"x"'},
        {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
    ):  # nor is 412
        answer = service.get("/openapi.json", headers=condition)
        assert answer.status_code == 200


@contextmanager
def trouble(name: str, service: Service, upstream: Standin) -> Iterator[None]:
    """Create the situation that the named example is about."""
    faults: dict[str, dict[str, Any]] = {
        "trouble": {"status": 500},
        "unreachable": {"reset": True},
        "slow": {"hang": True},
    }
    right = upstream.token
    with ThreadPoolExecutor() as pool:
        if name in faults:
            upstream.rule("events", **faults[name])
        elif name == "token":
            upstream.token = "another"
        elif name == "paused":
            upstream.rule(status=429, headers={"Retry-After": "60"})
            service.event(new_id())
        elif name == "full":
            gate = Gate()
            upstream.rule(gate=gate)
            pool.submit(service.event, new_id())
            gate.wait_for(2)
        yield
        if name == "full":
            gate.open()
    upstream.token = right
    upstream.clear_rules()


def test_examples_are_real(
    closed: Any, start: Callable[..., Service], upstream: Standin
) -> None:
    """Each example has the status and body that the service answers.

    Every header of these answers is described. The upstream is the stand-in.
    """
    service = start(C42_TIMEOUT="5", C42_THREADS="17")
    fixed = {"malformed": "%20", "empty": "[]"}
    for path in (
        "/readyz",
        "/livez",
        "/healthz",
        MANY,
        ONE,
    ):  # faults last, the pause last of all
        parameter = (operation(path).get("parameters") or [{}])[0]
        asked = {
            name: example["value"]
            for name, example in parameter.get("examples", {}).items()
        }
        answered = sorted(examples(path).items(), key=lambda item: item[0] == "paused")
        assert asked.keys() <= dict(answered).keys()
        for name, (status, body) in answered:
            value = asked.get(name) or fixed.get(name) or new_id()
            if path == MANY and name == "full":
                value = f"[{value}]"
            target = (
                path.replace("{event_id}", value)
                if path != MANY
                else f"{path}?event_ids={value}"
            )
            with trouble(name, service, upstream):
                answer = service.get(target)
            said = json.loads(
                answer.text.replace("within 5 seconds", "within 10 seconds")
            )
            assert (
                re.fullmatch(status.replace("X", "."), str(answer.status_code))
                is not None,
                said,
            ) == (True, body)
            check(closed, path, answer)


def check(schema: Any, path: str, answer: requests.Response) -> None:
    """Check an answer's body against the document, which must have its headers."""
    schema[path]["GET"].validate_response(answer)
    by_status = operation(path)["responses"]
    status = str(answer.status_code)
    described = resolved(by_status.get(status) or by_status[f"{status[0]}XX"])[
        "headers"
    ]
    assert {name.lower() for name in answer.headers} - OF_EVERY_RESPONSE <= {
        name.lower() for name in described
    }
