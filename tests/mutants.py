"""Mutation testing: `python -m tests.mutants` changes the code in small ways and counts the changes no test notices.

Each mutant is one change to one file, in a copy of the project. The tests that belong to the file run against it, those
that executed the changed line first, the quickest first, until one fails. A mutant that no test kills survives: a test
is missing, or the change can't matter. The latter are listed in `tests/equivalent.py`, each with its reason.

Why not a tool? mutmut 3 mutates only the bodies of functions that have no decorator, and runs all mutants from one
copy of each function, so that line numbers no longer fit; cosmic-ray runs the whole test command for each mutant. Both
were made for tests that run in one process. Half of these start the service.
"""

import argparse
import ast
import contextlib
import difflib
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from tests.equivalent import EQUIVALENT

ROOT = Path(__file__).parents[1]
SAMPLE = 40  # mutants of a file, unless all are asked for
AT_ONCE = 2
LEAST = 0.9  # of the mutants of each file must be killed
# Two mutants may look alike to a .pyc file; loading all pytest plugins takes longer than most tests.
ENVIRON = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
OUTSIDE = {"service", "start", "shared_service"}  # fixtures that start the service: what runs there isn't recorded

# The tests that belong to a file: the longest prefix counts.
TESTS = {
    "cache.py": ["test_cache.py"],
    "c42client.py": ["tests/test_client.py"],
    "calendar42/": ["tests/test_client.py"],
    "answers/": ["tests/test_http_caching.py", "tests/test_lists.py", "tests/test_cors.py", "test_api.py"],
    "serving/": ["tests/test_serving.py"],
    "sharing/": ["tests/test_sharing.py"],
}

COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
OPERATORS = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "+", ast.Pow: "*",
    ast.BitOr: "&", ast.BitAnd: "|", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "ceil": "floor", "floor": "ceil"}


class Mutant(NamedTuple):
    """One change: `old` at `start` becomes `new`."""

    file: str
    start: int  # in bytes
    end: int
    new: str
    line: int
    text: str  # the line as it was
    change: str  # what a reader, and the list of equivalents, calls it

    def apply(self, source: bytes) -> bytes:
        """Return the source with the change."""
        return source[: self.start] + self.new.encode() + source[self.end :]


class Mutator(ast.NodeVisitor):
    """Finds all changes to make in a file."""

    def __init__(self, file: str, source: bytes) -> None:
        self.found: list[Mutant] = []
        self._file = file
        self._source = source
        self._lines = source.split(b"\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        """Mutate a node, then what is in it."""
        if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom) or _is_typing(node):
            return  # positions in f-strings are unknown before Python 3.12
        if isinstance(node, ast.expr | ast.stmt):
            self._mutate(node)
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                    self.visit(child)

    def _add(self, node: Any, new: str, end: Any = None) -> None:
        start = self._at(node.lineno, node.col_offset)
        stop = self._at((end or node).end_lineno, (end or node).end_col_offset)
        old = " ".join(self._source[start:stop].decode().split())
        text = self._lines[node.lineno - 1].decode().strip()
        change = f"{old} → {new}" if new else f"without {old}"
        self.found.append(Mutant(self._file, start, stop, new, node.lineno, text, change))

    def _at(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def _mutate(self, node: ast.expr | ast.stmt) -> None:
        unparse = ast.unparse
        match node:
            case ast.Compare(left, [operator, *_], [right, *_]):
                self._between(left, right, COMPARISONS[type(operator)])
            case ast.BoolOp(operator, values):
                self._between(values[0], values[1], "or" if isinstance(operator, ast.And) else "and")
            case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
                self._between(left, right, OPERATORS[type(operator)])
            case ast.UnaryOp(ast.Not() | ast.USub(), operand):
                self._add(node, f"({unparse(operand)})")
            case ast.IfExp(test, body, other):
                self._add(node, f"({unparse(body)})")
                self._add(node, f"({unparse(other)})")
            case ast.Constant(value) if value is not None and value is not Ellipsis:
                self._add(node, _other(value))
            case ast.Call(func, _, keywords):
                if isinstance(func, ast.Name | ast.Attribute):
                    name = func.id if isinstance(func, ast.Name) else func.attr
                    if name in NAMES:
                        self._add(func, unparse(func).removesuffix(name) + NAMES[name])
                for keyword in keywords:
                    fewer = [one for one in keywords if one is not keyword]
                    self._add(node, unparse(ast.Call(func, node.args, fewer)))
            case ast.If(test) | ast.While(test):
                self._add(test, f"not ({unparse(test)})")
            case ast.Return(value) if value is not None and unparse(value) != "None":
                self._add(node, "return None")
            case ast.AugAssign(target, operator, value):
                self._add(node, f"{unparse(target)} {OPERATORS.get(type(operator), '-')}= {unparse(value)}")
                self._add(node, "pass")
            case ast.Assign([ast.Attribute() | ast.Subscript()]) | ast.Raise() | ast.Delete():
                self._add(node, "pass")
            case ast.Expr(value) if not isinstance(value, ast.Constant):
                self._add(node, "pass")
            case ast.Break():
                self._add(node, "continue")
            case ast.Continue():
                self._add(node, "break")
            case ast.FunctionDef() | ast.ClassDef():
                for decorator in node.decorator_list:
                    self._without_decorator(decorator)

    def _between(self, left: ast.expr, right: ast.expr, new: str) -> None:
        """Replace the operator that stands between two operands, without touching their parentheses."""
        start, stop = self._at(left.end_lineno or 0, left.end_col_offset or 0), self._at(right.lineno, right.col_offset)
        old = self._source[start:stop].decode()
        word = old.strip(" ()\n\\")
        before = old.index(word)
        line = self._source[:start].count(b"\n") + 1
        text = self._lines[line - 1].decode().strip()
        at = start + len(old[:before].encode())
        spot = Mutant(self._file, at, at + len(word.encode()), new, line, text, f"{word} → {new}")
        self.found.append(spot)

    def _without_decorator(self, decorator: ast.expr) -> None:
        start = self._at(decorator.lineno, decorator.col_offset - 1)
        stop = self._at(decorator.end_lineno or 0, decorator.end_col_offset or 0)
        text = self._lines[decorator.lineno - 1].decode().strip()
        self.found.append(Mutant(self._file, start, stop, "#", decorator.lineno, text, f"without {text}"))


def _is_typing(node: ast.AST) -> bool:
    """Whether a node is there for the type checker alone."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Expr):  # a docstring
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__" or ast.unparse(node.value).startswith("TypeVar(")
    return isinstance(node, ast.Assert)  # it tells the type checker what it can't see


def _other(value: Any) -> str:
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, str):
        return repr(value + "X")
    if isinstance(value, bytes):
        return repr(value + b"X")
    return repr(value + 1)


class Recorder:
    """A pytest plugin that notes how long each test takes, whether it starts the service, and which lines it runs."""

    def __init__(self) -> None:
        import coverage

        self.coverage = coverage.Coverage(data_file=None, source=["."], config_file=False)
        self.seconds: dict[str, float] = {}
        self.outside: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)
        self.seconds[nodeid] = -time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.coverage.switch_context("")
        self.seconds[nodeid] += time.monotonic()

    def pytest_collection_modifyitems(self, items: Sequence[Any]) -> None:
        self.outside = [item.nodeid for item in items if OUTSIDE & set(item.fixturenames)]


def record(files: Sequence[str], tests: Sequence[str], result: Path) -> int:
    """Run tests and write what `Recorder` notes of them; return pytest's exit status."""
    import pytest

    recorder = Recorder()
    recorder.coverage.start()
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[recorder])
    recorder.coverage.stop()
    data = recorder.coverage.get_data()
    lines = {
        file: {line: [name for name in names if name] for line, names in data.contexts_by_lineno(str(path)).items()}
        for file in files
        if (path := Path(file).resolve())
    }
    result.write_text(json.dumps({"seconds": recorder.seconds, "outside": recorder.outside, "lines": lines}))
    return int(status)


class Workshop:
    """Some copies of the project, in which mutants are tried."""

    def __init__(self, folder: Path) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, stdout=-1).stdout
        for number in range(AT_ONCE):
            copy = folder / str(number)
            for name in names.decode().splitlines():
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            self._free.put(copy)

    @contextlib.contextmanager
    def copy(self) -> Iterator[Path]:
        """Lend a copy of the project."""
        copy = self._free.get()
        yield copy
        self._free.put(copy)

    def record(self, files: Sequence[str], tests: Sequence[str]) -> dict[str, Any]:
        """Return what `Recorder` notes; the tests must pass without a mutant."""
        with self.copy() as copy:
            result = copy / "recorded.json"
            command = [sys.executable, "-m", "tests.mutants", "--record", str(result), *files, "--", *tests]
            ended = subprocess.run(command, cwd=copy, env=os.environ | ENVIRON, check=False, stdout=-1, stderr=-2)
            if ended.returncode:
                sys.exit(f"the tests fail without a mutant:\n{ended.stdout.decode()[-3000:]}")
            recorded: dict[str, Any] = json.loads(result.read_text())
            return recorded

    def killer(self, mutant: Mutant, tests: Sequence[str], limit: float) -> str | None:
        """Return the test that fails, or what else goes wrong; None if all tests pass within `limit` seconds."""
        with self.copy() as copy:
            path = copy / mutant.file
            source = path.read_bytes()
            path.write_bytes(mutant.apply(source))
            (copy / "tests-to-run").write_text("\n".join(tests))
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "@tests-to-run"]
            process = subprocess.Popen(
                ["nice", *command],
                cwd=copy,
                env=os.environ | ENVIRON,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                output, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                return "time-out"
            else:
                failed = re.findall(rb"^(?:FAILED|ERROR) (\S+)", output, re.M)
                return None if process.returncode == 0 else failed[0].decode() if failed else "pytest"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                path.write_bytes(source)


def tests_for(mutant: Mutant, recorded: dict[str, Any], kills: Counter[str]) -> list[str]:
    """Return the tests that may notice a mutant: those that ran its line, then those that start the service.

    The quickest come first, and before them those that have killed the most for their time.
    """
    seconds: dict[str, float] = recorded["seconds"]

    def rank(test: str) -> tuple[float, float]:
        return -kills[test] / (seconds[test] + 0.01), seconds[test]

    inside = recorded["lines"][mutant.file].get(str(mutant.line), [])
    if not inside:  # it ran while the module was imported, or only in a service
        inside = list(seconds)
    outside = set(recorded["outside"]) - set(inside)
    return sorted(inside, key=rank) + sorted(outside, key=rank)


def try_file(file: str, workshop: Workshop, recorded: dict[str, Any], wanted: int | None) -> bool:
    """Try the mutants of a file, print the survivors and the rate, and return whether that is good enough."""
    source = (ROOT / file).read_bytes()
    mutants = Mutator(file, source).found
    equivalent = {(one.file, one.text, one.change) for one in EQUIVALENT}
    tried = [one for one in mutants if (one.file, one.text, one.change) not in equivalent]
    left_out = len(mutants) - len(tried)
    if wanted is not None and wanted < len(tried):
        tried = random.Random(file).sample(tried, wanted)
    kills = Counter[str]()

    def is_killed(mutant: Mutant) -> bool:
        tests = tests_for(mutant, recorded, kills)
        limit = 10 + 4 * sum(recorded["seconds"][test] for test in tests)
        killer = workshop.killer(mutant, tests, limit)
        kills.update([killer] if killer else [])
        return killer is not None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        survivors = [one for one, killed in zip(tried, pool.map(is_killed, tried), strict=True) if not killed]
    for one in sorted(survivors, key=lambda one: one.line):
        old, new = source.decode().splitlines(), one.apply(source).decode().splitlines()
        changed = [
            text
            for text in difflib.unified_diff(old, new, n=0, lineterm="")
            if not text.startswith(("---", "+++", "@"))
        ]
        print(f"  {file}:{one.line}: {one.change}", *changed, sep="\n    ")
    rate = 1 - len(survivors) / len(tried) if tried else 1.0
    print(f"{file}: {rate:.0%} of {len(tried)} killed, of {len(mutants)} mutants; {left_out} can't matter", flush=True)
    return rate >= LEAST


def main() -> int:
    """Do as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n\n")[0])
    parser.add_argument("files", nargs="*", help="files to mutate (default: all that have tests of their own)")
    parser.add_argument("--all", action="store_true", help=f"all mutants, not a sample of {SAMPLE} for each file")
    parser.add_argument("--list", action="store_true", help="print the mutants, and run nothing")
    parser.add_argument("--record", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("tests", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        split = sys.argv.index("--")
        return record(sys.argv[3:split], sys.argv[split + 1 :], Path(options.record))
    known = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, stdout=-1).stdout.decode().split()
    files = options.files or [
        file for file in known if file.startswith(tuple(TESTS)) and (ROOT / file).stat().st_size > 500
    ]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        for prefix, tests in TESTS.items():
            if mine := [file for file in files if file.startswith(prefix)]:
                recorded = workshop.record(mine, tests)
                results += [try_file(file, workshop, recorded, None if options.all else SAMPLE) for file in mine]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
