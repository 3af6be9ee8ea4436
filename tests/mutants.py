"""Change the code in one place and run the tests that should notice: a change that survives is a fact no test holds.

`make mutants` draws N changes (mutants) of each module below, by cosmic-ray's operators: `<` becomes `<=`, `and`
becomes `or`, 1 becomes 2, a loop runs zero times. A mutant is killed when a test fails, or when the tests take several
times as long as they should; the others are listed with their line. Some of these are harmless: a timeout of 31 s
instead of 30 s, an optimisation that is skipped. Read the list, and write a test for what a user would notice.

    python -m tests.mutants -n 5 --seed 1 retrieval/paths/kernels.py
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent
#: Where a silent bug hurts most (patterns of modules), and the tests that should find it.
TESTS: dict[str, list[str]] = {
    "retrieval/*.py": ["test_context.py", "test_retrieval.py", "test_export.py", "test_api.py"],
    "retrieval/paths/*.py": ["test_retrieval.py", "test_rerank.py", "test_export.py", "test_api.py"],
    "index_store/version.py": ["test_version.py"],
    "index_store/store.py": ["test_store.py", "test_store_urls.py"],
    "index_store/folder/*.py": ["test_folder.py", "test_store.py", "test_server_copies.py"],
    "index_store/redis/*.py": ["test_store.py", "test_server*.py", "test_tls.py"],
    "trainer/deep_retrieval/*.py": [
        "test_assignment.py", "test_losses.py", "test_model.py", "test_warm_start.py", "test_train.py",
    ],
    "trainer/evaluate/measures.py": ["test_measures.py", "test_evaluate.py"],
    "service/serving/batcher.py": ["test_batcher.py", "test_pace.py", "test_api.py"],
    "service/serving/reloader.py": ["test_reloader.py", "test_readiness.py", "test_api.py"],
}  # fmt: skip
#: Operators whose mutants cannot be imported, raise TypeError wherever they are run, or are the same function.
LEFT_OUT = re.compile(
    r"core/(RemoveDecorator|ReplaceComparisonOperator_(?!Is)\w+_Is(Not)?"
    r"|ReplaceBinaryOperator_(?!Bit|LShift|RShift)\w+_(Bit\w+|\w+Shift|Mod|Pow|FloorDiv))"
)
PATIENCE, SPARE = 3, 60  # a mutant's tests may take three times as long as usual, and a minute more


@dataclass(frozen=True)
class Mutant:
    """A module with one change. text: the line before and after."""

    module: str
    line: int
    code: str
    text: str


def chosen(patterns: list[str]) -> dict[str, list[str]]:
    """The modules of TESTS, or of those the ones that are named by `patterns`, each with its test files."""
    modules: dict[str, list[str]] = {}
    for pattern, tests in TESTS.items():
        for path in sorted(ROOT.glob(pattern)):
            module = str(path.relative_to(ROOT))
            if path.stat().st_size > 500 and (not patterns or any(path.match(each) for each in patterns)):
                found = [path for each in tests for path in (ROOT / "tests").glob(each)]
                modules[module] = sorted(str(path.relative_to(ROOT)) for path in found)
    return modules


def meaning(code: str) -> str:
    """The syntax tree without annotations, which nothing here evaluates."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def places(code: str) -> Iterator[tuple[int, str, int]]:
    """Where the operators can change the code: line, operator, and which of its occurrences."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    tree = get_ast(code)
    for name in operator_names():
        operator = get_operator(name)
        if not LEFT_OUT.fullmatch(name) and not operator.arguments():
            found = (place for node in ast_nodes(tree) for place in operator().mutation_positions(node))
            for occurrence, ((line, _), _) in enumerate(found):
                yield line, name, occurrence


def draw(module: str, count: int, seed: int) -> list[Mutant]:
    """At most `count` mutants, on different lines as long as there are any; the same for the same seed and code."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    code = (ROOT / module).read_text()
    shuffled = sorted(places(code))
    random.Random(f"{seed} {module}").shuffle(shuffled)
    first: dict[int, tuple[int, str, int]] = {}
    for place in shuffled:
        first.setdefault(place[0], place)
    rest = [place for place in shuffled if first[place[0]] is not place]
    mutants: list[Mutant] = []
    for _, name, occurrence in [*first.values(), *rest]:
        if len(mutants) == count:
            break
        changed = mutate_code(code, get_operator(name)(), occurrence)
        if changed is None or meaning(changed) == meaning(code):
            continue
        lines = zip(code.splitlines(), changed.splitlines(), strict=False)
        line, (before, after) = next((i, pair) for i, pair in enumerate(lines, 1) if pair[0] != pair[1])
        mutants.append(Mutant(module, line, changed, f"{before.strip()}  ->  {after.strip()}"))
    return mutants


def run_tests(folder: Path, tests: list[str], seconds: float | None) -> tuple[str, str]:
    """Run the tests of a copy of the code: "survived", "killed" or "timeout", and the end of what pytest said."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return "timeout", ""
    finally:
        with_children(process.pid)
        process.wait()
    return "killed" if process.returncode else "survived", said.decode(errors="replace")[-3000:]


def with_children(group: int) -> None:
    """End what is left of a process group: servers of a test that did not come to its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def try_module(folder: Path, module: str, tests: list[str], mutants: list[Mutant]) -> list[tuple[Mutant, str]]:
    """What became of each mutant. Raises SystemExit if the tests fail without any change."""
    original = (folder / module).read_text()
    started = time.monotonic()
    outcome, said = run_tests(folder, tests, None)
    if outcome != "survived":
        raise SystemExit(f"{module}: its tests fail without a change\n{said}")
    seconds = PATIENCE * (time.monotonic() - started) + SPARE
    outcomes = []
    for mutant in mutants:
        (folder / module).write_text(mutant.code)
        outcomes.append((mutant, run_tests(folder, tests, seconds)[0]))
        print(f"{outcomes[-1][1]:>8}  {module}:{mutant.line}: {mutant.text}", flush=True)
    (folder / module).write_text(original)
    return outcomes


def main() -> int:
    """Try the mutants, a copy of the repository for each core; list the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="patterns of modules; all of them if none is given")
    parser.add_argument("-n", type=int, default=20, help="mutants a module (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    modules = chosen(options.modules)
    folders: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(options.jobs) as threads:
        for number in range(options.jobs):
            copy = Path(top, str(number))
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "demo-store*", "*.png"))
            folders.put(copy)

        def try_in_a_copy(module: str) -> list[tuple[Mutant, str]]:
            folder = folders.get()
            try:
                return try_module(folder, module, modules[module], draw(module, options.n, options.seed))
            finally:
                folders.put(folder)

        outcomes = list(threads.map(try_in_a_copy, modules))

    print("\n| module | mutants | killed | survived |\n|---|---|---|---|")
    for module, found in zip(modules, outcomes, strict=True):
        survived = sum(outcome == "survived" for _, outcome in found)
        print(f"| {module} | {len(found)} | {len(found) - survived} | {survived} |")
    print("\nSurvivors:")
    for mutant, outcome in (each for found in outcomes for each in found):
        if outcome == "survived":
            print(f"{mutant.module}:{mutant.line}: {mutant.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
