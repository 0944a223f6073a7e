"""The contract, as two common linters for OpenAPI see it."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.tools import needs, ran
from tests.fixtures import ROOT

CONTRACT = str(ROOT / "operations/openapi.json")
PACKAGES = ["@redocly/cli@2", "@stoplight/spectral-cli@6"]


@needs("npm", "node")
def test_linters_find_no_error(tmp_path: Path) -> None:
    """Redocly's recommended rules and Spectral's rules for OpenAPI find no error."""
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "rules.yaml").write_text("extends: [spectral:oas]\n")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        subprocess.run(
            [*install, *PACKAGES],
            check=True,
            cwd=tmp_path,
            capture_output=True,
            timeout=300,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm can't install the linters: {error}")
    redocly = ["npx", "redocly", "lint", CONTRACT, "--extends=recommended"]
    assert "Your API description is valid" in ran(*redocly, cwd=tmp_path)
    spectral = ["npx", "spectral", "lint", CONTRACT, "--ruleset=rules.yaml"]
    assert "(0 errors" in ran(*spectral, cwd=tmp_path)
