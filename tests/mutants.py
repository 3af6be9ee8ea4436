"""Change the code in one place and run the tests that should notice: if no test fails, that place is not tested.

`make mutants` draws N changes (mutants) of each module below, by cosmic-ray's operators: `<` becomes `<=`, `and`
becomes `or`, 1 becomes 2, a loop runs zero times. A mutant is killed when a test fails, or when the tests take several
times as long as they should; the survivors are listed with their line. Some survivors are harmless: a timeout of 31 s
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
#: Patterns of the modules where a silent bug would do most harm, each with the tests that should notice it.
TESTS: dict[str, list[str]] = {
    "retrieval/*.py": ["test_searcher.py", "test_context.py", "test_paths.py", "test_export.py", "test_api.py"],
    "retrieval/paths/*.py": ["test_paths.py", "test_trie.py", "test_rerank.py", "test_export.py", "test_api.py"],
    "index_store/[mpv]*.py": ["test_version.py", "test_trie.py"],
    "index_store/store.py": ["test_store.py", "test_store_urls.py"],
    "index_store/folder/*.py": ["test_folder.py", "test_store.py", "test_server_copies.py"],
    "index_store/redis/*.py": ["test_store.py", "test_server*.py", "test_tls.py"],
    "trainer/deep_retrieval/*.py": [
        "test_scores.py", "test_m_step.py", "test_matching.py", "test_tree.py", "test_losses.py", "test_model.py",
        "test_train.py",
    ],
    "trainer/data/[brs]*.py": ["test_data.py", "test_batches.py", "test_evaluate.py"],
    "trainer/publish/*.py": ["test_export.py", "test_health.py", "test_rerank.py"],
    "trainer/data/measures.py": ["test_measures.py", "test_evaluate.py"],
    "service/http/*.py": ["test_api.py", "test_problems.py", "test_middleware.py", "test_tolerant_requests.py"],
    "service/process/settings.py": ["test_settings.py"],
    "service/serving/batcher.py": ["test_batcher.py", "test_hang_ups.py", "test_pace.py", "test_api.py"],
    "service/serving/reloader.py": ["test_reloader.py", "test_readiness.py", "test_api.py"],
}  # fmt: skip
#: Operators that are not used: their mutants cannot be imported, always raise TypeError, or change nothing.
LEFT_OUT = re.compile(
    r"core/(RemoveDecorator|ReplaceComparisonOperator_(?!Is)\w+_Is(Not)?"
    r"|ReplaceBinaryOperator_(?!Bit|LShift|RShift)\w+_(Bit\w+|\w+Shift|Mod|Pow|FloorDiv))"
)
SMALLEST = 500  # bytes; smaller modules have nothing but a docstring
PATIENCE, SPARE = 3, 60  # a mutant's tests may take three times as long as usual, and a minute more

Place = tuple[int, str, int]  # line, operator, number of its occurrence in the module


@dataclass(frozen=True)
class Mutant:
    """A module with one change. change: its line before and after."""

    module: str
    line: int
    code: str
    change: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.change}"


def modules_and_tests(named: list[str]) -> dict[str, list[str]]:
    """The modules of TESTS with their test files. named: patterns that choose modules; without any, all modules."""
    chosen: dict[str, list[str]] = {}
    for pattern, tests in TESTS.items():
        for path in sorted(ROOT.glob(pattern)):
            if path.stat().st_size >= SMALLEST and (not named or any(path.match(each) for each in named)):
                files = [file for each in tests for file in (ROOT / "tests").glob(each)]
                chosen[str(path.relative_to(ROOT))] = sorted(str(file.relative_to(ROOT)) for file in files)
    return chosen


def meaning(code: str) -> str:
    """The syntax tree without annotations, because a changed annotation changes no behaviour."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def places_of(code: str) -> Iterator[Place]:
    """Every place where an operator can change the code."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    tree = get_ast(code)
    for name in operator_names():
        operator = get_operator(name)
        if LEFT_OUT.fullmatch(name) or operator.arguments():
            continue
        spans = (span for node in ast_nodes(tree) for span in operator().mutation_positions(node))
        for occurrence, ((line, _), _) in enumerate(spans):
            yield line, name, occurrence


def draw(module: str, count: int, seed: int) -> list[Mutant]:
    """At most `count` mutants, on different lines while there are any left; the same for the same seed and code."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    code = (ROOT / module).read_text()
    shuffled = sorted(places_of(code))
    random.Random(f"{seed} {module}").shuffle(shuffled)
    first: dict[int, Place] = {}
    for place in shuffled:
        first.setdefault(place[0], place)
    others = [place for place in shuffled if first[place[0]] is not place]
    mutants: list[Mutant] = []
    for _, name, occurrence in [*first.values(), *others]:
        if len(mutants) == count:
            break
        changed = mutate_code(code, get_operator(name)(), occurrence)
        if changed is None or meaning(changed) == meaning(code):
            continue
        pairs = enumerate(zip(code.splitlines(), changed.splitlines(), strict=False), 1)
        line, (before, after) = next((line, pair) for line, pair in pairs if pair[0] != pair[1])
        mutants.append(Mutant(module, line, changed, f"{before.strip()}  ->  {after.strip()}"))
    return mutants


def run_tests(folder: Path, tests: list[str], seconds: float | None) -> tuple[str, str]:
    """Run the tests in a copy of the code; gives "survived", "killed" or "timeout", and the end of pytest's output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return "timeout", ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also servers that an unfinished test has started
        process.wait()
    return "killed" if process.returncode else "survived", printed.decode(errors="replace")[-3000:]


def try_module(folder: Path, module: str, tests: list[str], mutants: list[Mutant]) -> dict[Mutant, str]:
    """The outcome of each mutant. Raises SystemExit if the tests fail without any change."""
    original = (folder / module).read_text()
    started = time.monotonic()
    outcome, printed = run_tests(folder, tests, None)
    if outcome != "survived":
        raise SystemExit(f"{module}: its tests fail without a change\n{printed}")
    seconds = PATIENCE * (time.monotonic() - started) + SPARE
    outcomes = {}
    for mutant in mutants:
        (folder / module).write_text(mutant.code)
        outcomes[mutant], _ = run_tests(folder, tests, seconds)
        print(f"{outcomes[mutant]:>8}  {mutant}", flush=True)
    (folder / module).write_text(original)
    return outcomes


def main() -> int:
    """Try the mutants, several modules at once, each in a copy of the repository; list the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="patterns of modules; all of the list if there is none")
    parser.add_argument("-n", type=int, default=20, help="mutants a module (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="modules at once (one a core)")
    options = parser.parse_args()
    modules = modules_and_tests(options.modules)
    copies: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(options.jobs) as threads:
        for number in range(options.jobs):
            copies.put(
                shutil.copytree(
                    ROOT, Path(top, str(number)), ignore=shutil.ignore_patterns(".*", "runs", "demo-store*")
                )
            )

        def try_in_a_copy(module: str) -> dict[Mutant, str]:
            folder = copies.get()
            try:
                return try_module(folder, module, modules[module], draw(module, options.n, options.seed))
            finally:
                copies.put(folder)

        outcomes = dict(zip(modules, threads.map(try_in_a_copy, modules), strict=True))

    print("\n| module | mutants | killed | survived |\n|---|---|---|---|")
    for module, each in outcomes.items():
        survived = list(each.values()).count("survived")
        print(f"| {module} | {len(each)} | {len(each) - survived} | {survived} |")
    survivors = [str(mutant) for each in outcomes.values() for mutant, outcome in each.items() if outcome == "survived"]
    print("\nSurvivors:", *survivors, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
