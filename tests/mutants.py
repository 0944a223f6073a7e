"""Mutation testing: `python -m tests.mutants` changes the code in small ways and counts
the changes no test notices.

Each mutant is one change to one file, in a copy of the project. The tests that belong
to the file run against it, quickest first, until one fails or takes too long. A mutant
that no test kills survives: either a test is missing, or the change makes no
difference. Those that make none are listed in `tests/equivalent.py`, each with its
reason.

Prints survivors as they are found, then a table. Exit status 1 if less than 90% of any
file's mutants were killed, 2 if the tests fail without a mutant.

Why not an existing tool? mutmut 3 only mutates the bodies of functions without
decorators, and runs all mutants from one copy of each function, so line numbers no
longer fit. cosmic-ray runs the whole test command for each mutant. Both expect tests
that run in one process; half of these start the service.
"""

import argparse
import ast
import contextlib
import difflib
import itertools
import json
import os
import random
import shutil
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
MINUTES = 6.0  # for the mutants of a file; the rest isn't tried
AT_ONCE = 2
LEAST = 0.9  # of each file's mutants must be killed

_LISTS = ["tests/test_client.py", "tests/test_lists.py", "tests/test_fault_matrix.py"]
_HTTP = [
    "tests/test_answers.py",
    "tests/test_http_caching.py",
    "tests/test_cors.py",
    "tests/test_lists.py",
]

# The tests that belong to a file: the longest prefix counts.
TESTS = {
    "cache.py": ["test_cache.py", "tests/test_cache_model.py"],
    "c42client.py": _LISTS,
    "calendar42/": _LISTS,
    "calendar42/calls.py": ["tests/test_payload.py", *_LISTS],
    "calendar42/ids.py": ["tests/test_payload.py"],
    "calendar42/payload.py": ["tests/test_payload.py"],
    "calendar42/transport.py": [
        "tests/test_transport.py",
        "tests/test_fault_matrix.py",
    ],
    "answers/": [*_HTTP, "tests/test_fault_matrix.py"],
    "answers/hits.py": [
        "tests/test_answers.py",
        "tests/test_cors.py",
        "tests/test_http_caching.py",
    ],
    "answers/loading.py": ["tests/test_answers.py"],
    "answers/value.py": ["tests/test_answers.py"],
    "answers/app_hooks.py": [
        "tests/test_answers.py",
        "tests/test_cors.py",
        "tests/test_contract.py",
    ],
    "serving/": ["tests/test_connection.py"],
    "serving/server.py": ["tests/test_serving.py"],
    "serving/wsgi.py": ["tests/test_wsgi.py"],
    "sharing/": ["tests/test_sharing.py"],
}

_moments = itertools.count(int(time.time()))

COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
OPERATORS = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "+", ast.Pow: "*",
    ast.BitOr: "&", ast.BitAnd: "|", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip
NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "ceil": "floor",
    "floor": "ceil",
}


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
        if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom) or _is_typing(
            node
        ):
            return  # positions in f-strings are unknown before Python 3.12
        if isinstance(node, ast.expr | ast.stmt):
            self._mutate(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log."):
            # How a log line is worded promises nothing; whether it is there does.
            return
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
        self.found.append(
            Mutant(self._file, start, stop, new, node.lineno, text, change)
        )

    def _at(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def _mutate(self, node: ast.expr | ast.stmt) -> None:
        unparse = ast.unparse
        match node:
            case ast.Compare(left, [operator, *_], [right, *_]):
                self._between(left, right, COMPARISONS[type(operator)])
            case ast.BoolOp(operator, values):
                self._between(
                    values[0],
                    values[1],
                    "or" if isinstance(operator, ast.And) else "and",
                )
            case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
                self._between(left, right, OPERATORS[type(operator)])
            case ast.UnaryOp(ast.Not() | ast.USub(), operand):
                self._add(node, f"({unparse(operand)})")
            case ast.IfExp(test, body, other):
                self._add(node, f"({unparse(body)})")
                self._add(node, f"({unparse(other)})")
            case ast.Constant(value) if value is not None and value is not Ellipsis:
                self._add(node, _other(value))
            case ast.Call(func, _, keywords) if not unparse(func).startswith("log."):
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
                self._add(
                    node,
                    f"{unparse(target)} {OPERATORS.get(type(operator), '-')}= {unparse(value)}",
                )
                self._add(node, "pass")
            case (
                ast.Assign([ast.Attribute() | ast.Subscript()])
                | ast.Raise()
                | ast.Delete()
            ):
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
        """Replace the operator that stands between two operands, without touching their
        parentheses.
        """
        start, stop = (
            self._at(left.end_lineno or 0, left.end_col_offset or 0),
            self._at(right.lineno, right.col_offset),
        )
        old = self._source[start:stop].decode()
        word = old.strip(" ()\n\\")
        before = old.index(word)
        line = self._source[:start].count(b"\n") + 1
        text = self._lines[line - 1].decode().strip()
        at = start + len(old[:before].encode())
        spot = Mutant(
            self._file, at, at + len(word.encode()), new, line, text, f"{word} → {new}"
        )
        self.found.append(spot)

    def _without_decorator(self, decorator: ast.expr) -> None:
        start = self._at(decorator.lineno, decorator.col_offset - 1)
        stop = self._at(decorator.end_lineno or 0, decorator.end_col_offset or 0)
        text = self._lines[decorator.lineno - 1].decode().strip()
        self.found.append(
            Mutant(
                self._file, start, stop, "#", decorator.lineno, text, f"without {text}"
            )
        )


def _is_typing(node: ast.AST) -> bool:
    """Whether a node is there for the type checker alone."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Expr):  # a docstring
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__" or ast.unparse(
            node.value
        ).startswith("TypeVar(")
    return isinstance(node, ast.Assert)  # it tells the type checker what it can't see


def _other(value: Any) -> str:
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, str):
        return repr(value + "X")
    if isinstance(value, bytes):
        return repr(value + b"X")
    return repr(value + 1)


class Copy:
    """A copy of the project, with a process that runs tests in it."""

    def __init__(self, folder: Path) -> None:
        names = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            stdout=-1,
        ).stdout
        for name in names.decode().splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self._folder = folder
        self._runner = subprocess.Popen(
            ["nice", sys.executable, "-m", "tests.mutant_runner"],
            cwd=folder,
            env=os.environ
            | {
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"
            },  # loading them all takes longer than most tests
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def record(self, tests: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
        """Run all `tests`; return how long each takes and which lines of `files` it
        runs, or a "killer".
        """
        return self._order(tests=tests, files=files)

    def run(
        self, tests: Sequence[str], chosen: Sequence[str], recorded: dict[str, Any]
    ) -> str | None:
        """Return the first of the `chosen` tests that fails or takes too long; None if
        there is none.
        """
        seconds = {test: recorded["seconds"][test] for test in chosen}
        killer: str | None = self._order(tests=tests, chosen=seconds)["killer"]
        return killer

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self._runner.stdin
        assert self._runner.stdout
        self._runner.stdin.write(json.dumps(order).encode() + b"\n")
        self._runner.stdin.flush()
        outcome: dict[str, Any] = json.loads(self._runner.stdout.readline())
        return outcome

    @contextlib.contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """Change a file for the time of the block."""
        path = self._folder / mutant.file
        source = path.read_bytes()
        self._write(path, mutant.apply(source))
        yield
        self._write(path, source)

    def _write(self, path: Path, source: bytes) -> None:
        path.write_bytes(source)
        moment = next(
            _moments
        )  # by which Python knows that its compiled form is another's
        os.utime(path, (moment, moment))

    def close(self) -> None:
        """End the process."""
        assert self._runner.stdin
        self._runner.stdin.close()
        self._runner.wait()


class Result(NamedTuple):
    """What came of a file's mutants."""

    file: str
    found: int
    equivalent: int
    tried: int
    survived: int

    @property
    def rate(self) -> float:
        """The share of those tried that were killed."""
        return 1 - self.survived / self.tried if self.tried else 1.0

    def __str__(self) -> str:
        counts = f"{self.tried:5} {self.tried - self.survived:6} {self.survived:8} {self.rate:6.1%}"
        return f"{self.file:26} {self.found:7} {self.equivalent:10} {counts}"


HEAD = f"{'file':26} {'mutants':>7} {'equivalent':>10} {'tried':>5} {'killed':>6} {'survived':>8} {'rate':>6}"


def tests_of(file: str) -> list[str]:
    """Return the files of tests that belong to a file."""
    return TESTS[
        max(
            (prefix for prefix in TESTS if file.startswith(prefix)), key=len, default=""
        )
    ]


def tests_for(
    mutant: Mutant, recorded: dict[str, Any], kills: Counter[str]
) -> list[str]:
    """Return the tests that may notice a mutant: those that ran its line, then those
    that start the service.

    The quickest come first, and before them those that have killed the most for their
    time.
    """
    seconds: dict[str, float] = recorded["seconds"]

    def rank(test: str) -> tuple[float, float]:
        return -kills[test] / (seconds[test] + 0.01), seconds[test]

    inside = [
        test
        for test in recorded["lines"][mutant.file].get(str(mutant.line), [])
        if test
    ]
    if not inside:  # it ran while the module was imported, or only in a service
        inside = list(seconds)
    outside = set(recorded["outside"]) - set(inside)
    return sorted(inside, key=rank) + sorted(outside, key=rank)


def try_file(
    file: str,
    copies: Sequence[Copy],
    recorded: dict[str, Any],
    options: argparse.Namespace,
) -> Result:
    """Try the mutants of a file, and print those that survive."""
    source = (ROOT / file).read_bytes()
    mutants = Mutator(file, source).found
    equivalent = {(one.file, one.text, one.change) for one in EQUIVALENT}
    wanted = [
        one for one in mutants if (one.file, one.text, one.change) not in equivalent
    ]
    left_out = len(mutants) - len(wanted)
    if not options.all:
        wanted = random.Random(file).sample(wanted, min(options.sample, len(wanted)))
    free: SimpleQueue[Copy] = SimpleQueue()
    for copy in copies:
        free.put(copy)
    kills = Counter[str]()
    give_up = time.monotonic() + options.minutes * 60

    def survives(mutant: Mutant) -> bool | None:
        """Return None if there is no time left."""
        if time.monotonic() > give_up:
            return None
        copy = free.get()
        with copy.changed(mutant):
            killer = copy.run(
                tests_of(file), tests_for(mutant, recorded, kills), recorded
            )
        free.put(copy)
        if not killer:
            _show(mutant, source)
        elif killer in recorded["seconds"]:
            kills[killer] += 1
        return not killer

    with ThreadPoolExecutor(len(copies)) as pool:
        outcomes = [
            outcome for outcome in pool.map(survives, wanted) if outcome is not None
        ]
    if len(outcomes) < len(wanted):
        print(
            f"{file}: {len(wanted) - len(outcomes)} mutants weren't tried within {options.minutes:g} minutes"
        )
    return Result(file, len(mutants), left_out, len(outcomes), sum(outcomes))


def _show(mutant: Mutant, source: bytes) -> None:
    old, new = source.decode().splitlines(), mutant.apply(source).decode().splitlines()
    changed = [
        line
        for line in difflib.unified_diff(old, new, n=0, lineterm="")
        if line[:2] not in ("--", "++", "@@")
    ]
    print(
        f"{mutant.file}:{mutant.line}: survived: {mutant.change}",
        *changed,
        sep="\n    ",
        flush=True,
    )


def record(files: list[str], copy: Copy, thorough: bool) -> dict[str, Any]:
    """Run the tests of some files that have the same tests; exit with status 2 if they
    fail without a mutant.

    If `thorough`, run them again in the order in which they'd run with a mutant.
    """
    tests = tests_of(files[0])
    for _ in range(2):  # a busy machine may make a test fail once
        recorded = copy.record(tests, files)
        if thorough and not recorded["killer"]:
            nothing = Mutant(files[0], 0, 0, "", 0, "", "")
            recorded["killer"] = copy.run(
                tests, tests_for(nothing, recorded, Counter()), recorded
            )
        if not recorded["killer"]:
            return recorded
    print(f"{recorded['killer']}: fails without a mutant", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    """Do as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument(
        "files",
        nargs="*",
        help="files to mutate (default: all that have tests of their own)",
    )
    parser.add_argument("--all", action="store_true", help="all mutants, not a sample")
    parser.add_argument(
        "--sample",
        type=int,
        default=SAMPLE,
        help="mutants of each file (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="for each file's mutants (default: %(default)g)",
    )
    options = parser.parse_args()
    known = (
        subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, stdout=-1)
        .stdout.decode()
        .split()
    )
    files = options.files or [
        file
        for file in known
        if file.startswith(tuple(TESTS)) and (ROOT / file).stat().st_size
    ]
    if strange := [
        file
        for file in files
        if not (file.startswith(tuple(TESTS)) and (ROOT / file).is_file())
    ]:
        parser.error(f"no tests belong to {', '.join(strange)}")
    results: list[Result] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(AT_ONCE)]
        for _, group in itertools.groupby(sorted(files, key=tests_of), tests_of):
            mine = list(group)
            recorded = record(mine, copies[0], thorough=not options.files)
            results += [try_file(file, copies, recorded, options) for file in mine]
        for copy in copies:
            copy.close()
    print(HEAD, *sorted(results), sep="\n")
    return 0 if all(result.rate >= LEAST for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
