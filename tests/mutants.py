"""`python -m tests.mutants` changes the code in small ways that tests should notice.

Takes a random sample of all possible changes, applies each to a copy of the project and
runs the tests that belong to the file, then all others. A change that every test
survives is printed: either a test is missing, or the change makes no difference. Exit
status 1 if fewer than 95% of the changes were noticed.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PRODUCT = ("answers", "calendar42", "operations", "serving", "sharing")
MODULES = ("main.py", "cache.py", "c42client.py")
# The tests that are most likely to notice a change, by the first part of the path.
# They run first, because all tests take a minute.
TESTS = {
    "cache.py": ("test_cache.py", "tests/test_cache_*.py"),
    "c42client.py": ("tests/client/", "tests/transport/", "tests/test_lists.py"),
    "calendar42": ("tests/test_payload.py", "tests/client/", "tests/transport/"),
    "answers": (
        "tests/test_answers.py",
        "tests/test_cors.py",
        "tests/test_http_caching.py",
        "tests/test_refreshing.py",
        "tests/test_lists.py",
    ),
    "operations": (
        "tests/test_settings.py",
        "tests/test_logs.py",
        "tests/test_check.py",
        "tests/test_metrics.py",
        "tests/test_health.py",
        "tests/test_status.py",
        "tests/test_error_log.py",
    ),
    "serving": (
        "tests/test_connection*.py",
        "tests/test_wsgi.py",
        "tests/test_serving.py",
        "tests/test_listening.py",
        "tests/test_odd_clients.py",
    ),
    "sharing": ("tests/sharing/",),
    "main.py": ("test_api.py", "tests/test_running.py", "tests/test_settings.py"),
}
LEAST = 0.95  # of the changes must be noticed
AT_ONCE = 2
SECONDS = 300  # for the tests of one change: what takes longer has been noticed

_NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_SHIFTED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}

_WORDING = (
    "help",
    "prog",
    "description",
    "epilog",
    "metavar",
    "name",
    "thread_name_prefix",
)


class Mutant(NamedTuple):
    """One change to one file."""

    file: Path
    node: ast.expr | ast.stmt
    new: str

    def apply(self, source: str) -> str:
        """Return the source with the change."""
        lines = source.encode().splitlines(keepends=True)
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line))
        node = self.node
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        data = source.encode()
        return (data[:start] + self.new.encode() + data[end:]).decode()

    def __str__(self) -> str:
        old = " ".join(ast.unparse(self.node).split())
        new = " ".join(self.new.split())
        return f"{self.file}:{self.node.lineno}: {old[:70]} → {new[:70]}"


class Finder(ast.NodeVisitor):
    """Finds the changes that can be made to a file."""

    def __init__(self, file: Path) -> None:
        self.found: list[Mutant] = []
        self._file = file
        self.visit(ast.parse((ROOT / file).read_text()))

    def visit(self, node: ast.AST) -> None:
        """Change a node, and then what is in it."""
        if isinstance(node, ast.expr | ast.stmt):
            if _promises_nothing(node):
                return
            for new in _changes(node):
                self.found.append(Mutant(self._file, node, new))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            children = value if isinstance(value, list) else [value]
            for child in children:
                if isinstance(child, ast.AST):
                    self.visit(child)


def _promises_nothing(node: ast.expr | ast.stmt) -> bool:
    """Tell what isn't changed: imports, types, docstrings, log lines, constants."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr):
        return True  # positions within an f-string are unknown before Python 3.12
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log."):
        return True
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.col_offset == 0:
        return True  # how long, how many: figures that could as well be others
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
    return False


def _changes(node: ast.expr | ast.stmt) -> Iterator[str]:
    """Yield what a node may become."""
    unparse = ast.unparse
    match node:
        case ast.Compare(left, [operator], [right]):
            for table in (_NEGATED, _SHIFTED):
                negated = table.get(type(operator))
                if negated:
                    yield f"({unparse(ast.Compare(left, [negated()], [right]))})"
        case ast.BoolOp(operator, values):
            swapped = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield f"({unparse(ast.BoolOp(swapped, values))})"
        case ast.BinOp(left, sign, right) if type(sign) in _ARITHMETIC:
            inverse = _ARITHMETIC[type(sign)]
            yield f"({unparse(ast.BinOp(left, inverse(), right))})"
        case ast.UnaryOp(ast.Not(), operand):
            yield f"({unparse(operand)})"
        case ast.IfExp(_, body, orelse):
            yield f"({unparse(body)})"
            yield f"({unparse(orelse)})"
        case ast.Constant(bool(value)):
            yield str(not value)
        case ast.Constant(int(value)) | ast.Constant(float(value)):
            yield repr(value + 1)
        case ast.Call(function, arguments, keywords):
            for keyword in keywords:
                if keyword.arg in _WORDING:
                    continue
                kept = [each for each in keywords if each is not keyword]
                yield unparse(ast.Call(function, arguments, kept))
        case ast.Return(value) if value is not None:
            yield "return None"
        case ast.Break() | ast.Continue():
            yield "pass"
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield "pass"
        case ast.Assign([ast.Attribute() | ast.Subscript()], _):
            yield "pass"


def sample(count: int, seed: int) -> list[Mutant]:
    """Choose so many changes from all."""
    files = [Path(module) for module in MODULES]
    for package in PRODUCT:
        files += sorted(
            path.relative_to(ROOT) for path in (ROOT / package).glob("*.py")
        )
    found = [mutant for file in files for mutant in Finder(file).found]
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    print(f"{len(chosen)} of {len(found)} changes, --seed {seed}", flush=True)
    return chosen


class Copy:
    """A copy of the project, in which one change at a time is tried."""

    def __init__(self, place: Path) -> None:
        self._place = place
        listing = subprocess.run(
            ["git", "ls-files", "-z"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listing.stdout.split("\0")):
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)

    def survives(self, mutant: Mutant) -> bool:
        """Tell whether no test notices the change."""
        path = self._place / mutant.file
        source = path.read_text()
        try:
            path.write_text(mutant.apply(source))
            patterns = TESTS[mutant.file.parts[0]]
            likely = [
                str(test.relative_to(self._place))
                for pattern in patterns
                for test in sorted(self._place.glob(pattern))
            ]
            return self.passes(*dict.fromkeys(likely)) and self.passes()
        finally:
            path.write_text(source)
            # Python would take a cached file for the source of the same second.
            shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)

    def passes(self, *tests: str) -> bool:
        """Run `tests`, or all."""
        options = ["-x", "-q", "-p", "no:cacheprovider"]
        if not tests:
            options += ["--numprocesses=2", "--dist=worksteal"]
        with subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self._place,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as running:
            try:
                return running.wait(SECONDS) == 0
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGTERM)
                return False


def main() -> int:
    """Try a sample of changes; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--count", type=int, default=150, help="how many changes")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    mutants = sample(options.count, options.seed)
    survived = Counter[str]()
    tried = Counter[str](mutant.file.parts[0] for mutant in mutants)
    copies = SimpleQueue[Copy]()

    def try_one(mutant: Mutant) -> None:
        copy = copies.get()
        try:
            if copy.survives(mutant):
                survived[mutant.file.parts[0]] += 1
                print(f"survived: {mutant}", flush=True)
        finally:
            copies.put(copy)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        for number in range(AT_ONCE):
            copies.put(Copy(Path(place) / str(number)))
        unchanged = copies.get()
        if not unchanged.passes():
            print("the tests fail without any change", file=sys.stderr)
            return 2
        copies.put(unchanged)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(try_one, mutants))
    for part, count in sorted(tried.items()):
        print(f"{part:<14} {count - survived[part]} of {count} noticed")
    share = 1 - survived.total() / len(mutants)
    print(f"{share:.1%} of {len(mutants)} changes were noticed")
    return int(share < LEAST)


if __name__ == "__main__":
    sys.exit(main())
