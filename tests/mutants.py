"""`python -m tests.mutants` changes the code in small ways that tests should notice.

Takes a random sample of all possible changes, or of those in the files that are named,
applies each to a copy of the project and runs the tests that belong to the file, then
all others. A change counts as noticed if a test fails twice with it and passes without
it: a test may also fail because the machine is busy. A change that no test notices
survives: either a test is missing, or the change makes no difference. Exit status 1 if
fewer than 95% of the changes were noticed.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PRODUCT = ("answers", "calendar42", "operations", "serving", "sharing")
MODULES = ("main.py", "cache.py", "c42client.py")
# The tests that are most likely to notice a change, by the first part of the path.
# Quick ones come first. They run before all others.
TESTS = {
    "cache.py": ("test_cache.py", "tests/test_cache_*.py"),
    "c42client.py": ("tests/client/", "tests/transport/", "tests/test_lists.py"),
    "calendar42": ("tests/test_payload.py", "tests/client/", "tests/transport/"),
    "answers": (
        "tests/test_answers.py",
        "tests/test_cors.py",
        "tests/test_contract.py",
        "tests/test_refreshing.py",
        "tests/test_lists.py",
        "tests/test_http_caching.py",
    ),
    "operations": (
        "tests/test_metrics.py",
        "tests/test_health.py",
        "tests/test_contract.py",
        "tests/test_status.py",
        "tests/test_settings.py",
        "tests/test_error_log.py",
        "tests/test_logs.py",
    ),
    "serving": (
        "tests/test_connection*.py",
        "tests/test_wsgi.py",
        "tests/test_listening.py",
        "tests/test_odd_clients.py",
        "tests/test_serving.py",
    ),
    "sharing": ("tests/sharing/",),
    "main.py": (
        "tests/test_answers.py",
        "tests/test_settings.py",
        "tests/test_lists.py",
        "tests/test_listening.py",
        "tests/test_odd_clients.py",
        "test_api.py",
    ),
}
OPTIONS = (
    "--exitfirst",
    "--quiet",
    "--randomly-dont-reorganize",
    "--override-ini=faulthandler_timeout=30",
    "--override-ini=faulthandler_exit_on_timeout=true",
)
IN_PARALLEL = ("--numprocesses=3", "--dist=worksteal")
LEAST = 0.95  # of the changes must be noticed
AT_ONCE = 2
SECONDS = 900  # for a run of tests: one that takes longer has failed

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

# Arguments that say something to people, or state what holds anyway
_WORDING = (
    "strict",
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
        # A call may be long: what differs must be seen.
        shared = os.path.commonprefix([old, new])  # noqa: RUF071 - these are no paths
        start = max(0, len(shared) - 30)
        before = old[start : start + 70]
        after = new[start : start + 70]
        return f"{self.file}:{self.node.lineno}: {before} → {after}"


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
            tables = [_NEGATED]
            # Two moments of a real clock are never equal.
            if not re.search(r"(time|monotonic)\(\)", unparse(node)):
                tables.append(_SHIFTED)
            for table in tables:
                changed = table.get(type(operator))
                if changed:
                    yield f"({unparse(ast.Compare(left, [changed()], [right]))})"
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
        case ast.Return(value) if value and unparse(value) not in ("None", "False"):
            yield "return None"
        case ast.Break() | ast.Continue():
            yield "pass"
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield "pass"
        case ast.Assign([ast.Attribute() | ast.Subscript()], _):
            yield "pass"


def sample(count: int, seed: int, only: Collection[Path]) -> list[Mutant]:
    """Choose so many changes: from all, or those in certain files and directories."""
    files = [Path(module) for module in MODULES]
    for package in PRODUCT:
        files += sorted(
            path.relative_to(ROOT) for path in (ROOT / package).glob("*.py")
        )
    found = []
    for file in files:
        if not only or file in only or file.parent in only:
            found += Finder(file).found
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    print(f"{len(chosen)} of {len(found)} changes, --seed {seed}", flush=True)
    return chosen


class Copy:
    """A copy of the project, in which one run of tests at a time may be made."""

    def __init__(self, place: Path) -> None:
        self.place = place
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

    def passes(self, *arguments: str) -> bool:
        """Run tests, and end what they leave behind."""
        try:
            running = subprocess.run(
                [sys.executable, "-m", "pytest", *OPTIONS, *arguments],
                check=False,
                cwd=self.place,
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return False
        finally:
            self._end_processes()
        return running.returncode == 0

    def failed(self) -> list[str]:
        """Return the tests that have failed since `--cache-clear`.

        There are none if pytest itself was ended.
        """
        try:
            content = (self.place / ".pytest_cache/v/cache/lastfailed").read_text()
        except FileNotFoundError:
            return []
        return list(json.loads(content))

    def _end_processes(self) -> None:
        """Kill what runs in the copy: services of a test that was ended."""
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with suppress(OSError):  # it has ended, or is another user's
                if link.readlink() == self.place:
                    os.kill(int(link.parent.name), signal.SIGKILL)


class Trial:
    """Two copies of the project. One change at a time is tried in one of them."""

    def __init__(self, place: Path) -> None:
        self._unchanged = Copy(place / "unchanged")
        self._changed = Copy(place / "changed")

    def notice(self, mutant: Mutant) -> str | None:
        """Make the change, and return what notices it; None if nothing does."""
        path = self._changed.place / mutant.file
        source = path.read_text()
        likely = self._likely(mutant.file)
        others = [f"--ignore={test}" for test in likely]
        try:
            path.write_text(mutant.apply(source))
            return self._fail(likely) or self._fail([*IN_PARALLEL, *others])
        finally:
            path.write_text(source)
            # Python would take a cached file for the source of the same second.
            shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)

    def _likely(self, file: Path) -> list[str]:
        """Return the tests that are most likely to notice a change."""
        place = self._changed.place
        patterns = [f"tests/test_{file.stem}.py", *TESTS[file.parts[0]]]
        found: list[Path] = []
        for pattern in patterns:
            found += sorted(place.glob(pattern))
        return [str(test.relative_to(place)) for test in dict.fromkeys(found)]

    def _fail(self, arguments: list[str]) -> str | None:
        """Run tests until one fails because of the change; return its file."""
        while not self._changed.passes("--cache-clear", *arguments):
            failed = self._changed.failed()
            noticed_by = "a crash or a hang"
            if failed:
                noticed_by = failed[0].partition("::")[0]
            again = failed or arguments
            fails_again = not self._changed.passes("--randomly-seed=last", *again)
            if fails_again and self._unchanged.passes(*again):
                return noticed_by
            print(f"not because of the change: {failed or noticed_by}", flush=True)
            if not failed:
                return None
            arguments = [*arguments, *(f"--deselect={test}" for test in failed)]
        return None


def main() -> int:
    """Try a sample of changes; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--count", type=int, default=150, help="how many changes")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "only", nargs="*", type=Path, help="files and packages; by default, all"
    )
    options = parser.parse_args()
    mutants = sample(options.count, options.seed, options.only)
    survived = Counter[str]()
    tried = Counter[str](mutant.file.parts[0] for mutant in mutants)
    trials = SimpleQueue[Trial]()

    def try_one(mutant: Mutant) -> None:
        trial = trials.get()
        began = time.monotonic()
        try:
            noticed_by = trial.notice(mutant)
        finally:
            trials.put(trial)
        seconds = time.monotonic() - began
        if noticed_by is None:
            survived[mutant.file.parts[0]] += 1
            print(f"survived ({seconds:.0f} s): {mutant}", flush=True)
        else:
            print(f"noticed by {noticed_by} ({seconds:.0f} s): {mutant}", flush=True)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        for number in range(AT_ONCE):
            trials.put(Trial(Path(place).resolve() / str(number)))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(try_one, mutants))
    for part, count in sorted(tried.items()):
        print(f"{part:<14} {count - survived[part]} of {count} noticed")
    share = 1 - survived.total() / len(mutants)
    print(f"{share:.1%} of {len(mutants)} changes were noticed")
    return int(share < LEAST)


if __name__ == "__main__":
    sys.exit(main())
