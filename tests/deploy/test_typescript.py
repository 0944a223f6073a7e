"""The TypeScript client that the contract gives: generated, compiled and run, as
docs/frontend.md says.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.tools import needs, ran
from tests.fixtures import ROOT, Start

PAGE = (ROOT / "docs/frontend.md").read_text()
STRICT = ["--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes"]
TARGET = ["--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler"]

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

export function why(error: Failure, list: components["schemas"]["EventList"], id: string): string {
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
    """The client that docs/frontend.md shows how to make has exact types, compiles, and
    gets answers of the demo.
    """
    service = start("--demo")
    commands = re.findall(r"^    (np[mx] .*)$", PAGE, re.M)
    (program,) = re.findall(r"^```ts\n(.*?)^```$", PAGE, re.M | re.S)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "program.ts").write_text(
        program.replace("http://127.0.0.1:5000", service.url)
    )
    (tmp_path / "types.ts").write_text(TYPES)
    *installs, generate = commands
    assert len(installs) == 2
    for command in installs:
        ended = subprocess.run(
            command.split(),
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if ended.returncode:
            pytest.skip(f"npm can't install the compiler: {ended.stderr[-300:]}")
    ran(*generate.replace("http://127.0.0.1:5000", service.url).split(), cwd=tmp_path)
    ran(
        "npx",
        "tsc",
        *STRICT,
        *TARGET,
        "program.ts",
        "types.ts",
        cwd=tmp_path,
        timeout=120,
    )
    assert ran("node", "program.js", cwd=tmp_path).splitlines() == [
        "Dinner with the neighbours API, Arthur, Ella",
        "expected one list of ids in brackets, such as ?event_ids=[a,b,c]",
    ]
