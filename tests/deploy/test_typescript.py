"""The TypeScript client that the contract gives.

It is generated, compiled and run as docs/frontend.md says.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.tools import needs, ran
from tests.fixtures import ROOT, Start

PAGE = (ROOT / "docs/frontend.md").read_text()
STRICT = ["--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes"]

# Each line after a "@ts-expect-error" must not compile.
TYPES = """
import type { components, operations } from "./c42c";

type Responses = operations["getEvent"]["responses"];
type Failure = Responses[404]["content"]["application/json"];

export function show(event: Responses[200]["content"]["application/json"]): string {
  // @ts-expect-error: it may have no title
  const title: string = event.title;
  // @ts-expect-error: there is nothing else in it
  event.location;
  const names: string[] = event.names;
  return `${title} ${names}`;
}

type List = components["schemas"]["EventList"];

export function why(error: Failure, list: List, id: string): string {
  const status: number = error.error.status_code;
  // @ts-expect-error: most events have no error
  const missing: string = list.errors[id].message;
  const message: string = list.errors[id]?.message ?? error.error.message;
  return `${status} ${message} ${missing}`;
}

export function same(one: Failure, other: Responses[429] | Responses["5XX"]): boolean {
  const error: Failure = other.content["application/json"];
  return one.error.code === error.error.code;
}
"""


@needs("npm", "node")
def test_typescript_client(start: Start, tmp_path: Path) -> None:
    """The commands of docs/frontend.md make a client that compiles and gets answers.

    They start in an empty folder. The answers are the demo's, and the client's types
    are exact.
    """
    service = start("--demo")
    page = PAGE.replace("http://127.0.0.1:5000", service.url)
    commands = re.findall(r"^    ((?:np[mx]|node) .*)$", page, re.M)
    (program,) = re.findall(r"^```ts\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "program.ts").write_text(program)
    (tmp_path / "types.ts").write_text(TYPES)
    said = ""
    for command in commands:
        try:
            said = ran(*command.split(), cwd=tmp_path, timeout=300)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            if command.startswith("npm install"):
                pytest.skip(f"npm can't install the compiler: {error}")
            raise
    assert said.splitlines() == [
        "Dinner with the neighbours API, Arthur, Ella",
        "the event is deleted",
    ]
    (compiles,) = (command for command in commands if " tsc " in command)
    ran(*compiles.split(), *STRICT, "types.ts", cwd=tmp_path)
