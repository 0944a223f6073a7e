"""The mutation testing tool makes the changes that it should."""

from tests.equivalent import EQUIVALENT
from tests.fixtures import ROOT
from tests.mutants import Mutator

FUNCTION = b"""
@cache
def first(a, b=1):
    '''Not changed.'''
    if a < b and not b:
        raise ValueError("bad")
    self.total = min(a, b)
    call(a, key=b)
    return a + b
"""


def test_changes() -> None:
    """Operators, constants, conditions, keyword arguments, decorators, statements and
    return values are changed.
    """
    assert [mutant.change for mutant in Mutator("made-up.py", FUNCTION).found] == [
        "without @cache",
        "1 → 2",
        "a < b and not b → not (a < b and (not b))",
        "and → or",
        "< → <=",
        "not b → (b)",
        'raise ValueError("bad") → pass',
        "\"bad\" → 'badX'",
        "self.total = min(a, b) → pass",
        "min → max",
        "call(a, key=b) → pass",
        "call(a, key=b) → call(a)",
        "return a + b → return None",
        "+ → -",
    ]


def test_each_change_is_one_that_python_reads() -> None:
    """Every mutant of the cache is valid Python, and differs from the original."""
    source = (ROOT / "cache.py").read_bytes()
    for mutant in Mutator("cache.py", source).found:
        changed = mutant.apply(source)
        assert changed != source
        compile(changed, "cache.py", "exec")


def test_equivalents_exist() -> None:
    """Each listed equivalent is a change that would be made, so that none outlives its
    line.
    """
    made: set[tuple[str, str, str]] = set()
    for file in {one.file for one in EQUIVALENT}:
        made |= {
            (file, one.text, one.change)
            for one in Mutator(file, (ROOT / file).read_bytes()).found
        }
    assert [
        one for one in EQUIVALENT if (one.file, one.text, one.change) not in made
    ] == []
