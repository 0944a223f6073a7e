"""docs/reliability.md names only tests that exist."""

import ast
import re

from tests.fixtures import ROOT


def test_every_test_that_is_named_exists() -> None:
    """Each `file::test` in the page is a function of that file."""
    named = set(
        re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs/reliability.md").read_text())
    )
    assert len(named) > 50
    there: set[tuple[str, str]] = set()
    for file in {file for file, _ in named}:
        tree = ast.parse((ROOT / file).read_text())
        there |= {
            (file, node.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
        }
    assert named - there == set()
