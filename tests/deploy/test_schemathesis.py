"""The contract, tried with requests that Schemathesis makes up.

That takes too long for `make test`, where `test_contract.py` tries the examples of
openapi.json.
"""

import re
import subprocess
import sys
from pathlib import Path

from standin import Standin
from tests.fixtures import Service
from tests.test_contract import DOCUMENT


def test_schemathesis_finds_nothing(
    service: Service, upstream: Standin, tmp_path: Path
) -> None:
    """The document describes every answer to generated requests.

    They are valid or not, alone or one after the other.
    """
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{service.url}/openapi.json",
    ]
    every_path = "--include-path-regex=.*"  # by itself it leaves out the document's
    options = [
        "--checks=all",
        "--seed=42",
        "--max-examples=10",
        "--no-color",
        every_path,
    ]
    before = len(service.log)  # other tests have it answer with errors
    ended = subprocess.run(
        [*command, *options], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stdout
    assert f"Tested: {len(DOCUMENT['paths'])}\n" in ended.stdout
    (count,) = re.findall("([0-9]+) generated", ended.stdout)
    assert int(count) > 100
    assert "unhandled exception" not in service.log[before:]
    assert upstream.calls()
