"""Tests of the tests: bugs planted one at a time in a copy of the tree, each of which a test must notice.

    python -m tests.chaos.planted_bugs                       all of tests/chaos/bugs.py, minutes
    python -m tests.chaos.planted_bugs 'a pool that ...'     some, by name
    python -m tests.chaos.planted_bugs --list

The copy has what git has and what is not committed yet. All the tests pass there before the first bug is planted.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.bugs import BUGS, Bug

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("index_store", "service", "trainer", "tests")
PATIENCE = 300.0  # seconds for the tests of all bugs without any, and the most for one's

#: Tells where packages come from, in a process and in one that it starts.
PROBE = f"""
import subprocess, sys
print(*[__import__(name).__file__ for name in {PACKAGES}], sep="\\n", flush=True)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, *sys.orig_argv[1:], "again"], check=True)
"""


class BugError(Exception):
    """The table does not fit the code, or the tests fail without any bug: then nothing can be said of a bug."""


@dataclass(frozen=True)
class Outcome:
    """What became of a planted bug. caught_by: the test that failed; else nothing, and `why` says what happened."""

    bug: Bug
    caught_by: str
    why: str
    seconds: float


class Copy:
    """A copy of the working tree in which bugs are planted and tests run; the tree itself is only read."""

    def __init__(self, folder: Path) -> None:
        """Copies to `folder`, and makes sure that it is the copy that is imported. Raises BugError."""
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        files = [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]
        # And what numba compiled: it goes by the sources' times, which the copies keep.
        files += [file.relative_to(ROOT) for one in PACKAGES for file in (ROOT / one).glob("__pycache__/*.nb[ci]")]
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # deleted, and that not committed
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, folder / file, follow_symlinks=False)
        # The packages are installed as links to the tree. PYTHONPATH comes before those, in all that tests start;
        # the current folder, or a script's, must not come before it.
        ours = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        theirs = {"DR_CHAOS", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_PLUGINS"}
        self._environment = {name: value for name, value in os.environ.items() if name not in theirs} | ours
        self._require_imported()

    def _require_imported(self) -> None:
        """Raise BugError if a process, or one that it starts, imports anything but the copy."""
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        wanted = [str(self.folder / name / "__init__.py") for name in PACKAGES]
        if done.stdout.split("\n")[:-1] != wanted * 2:
            raise BugError(f"not the copy is imported, but:\n{done.stdout}")

    def test(self, *tests: str) -> tuple[int | None, str]:
        """Run tests by their ids until one fails. Returns pytest's exit status and output; None: it did not end."""
        options = ["-x", "-q", "--color=no", "-p", "no:cacheprovider", f"--basetemp={self.folder.parent / 'pytest'}"]
        command = [sys.executable, "-m", "pytest", *options, *dict.fromkeys(tests)]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # with the servers that a test started
            output, _ = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return None, output
            raise
        return process.returncode, output

    @contextlib.contextmanager
    def planted(self, bug: Bug) -> Iterator[None]:
        """The bug is in the copy within, and gone afterwards."""
        path = self.folder / bug.file
        content, times = path.read_bytes(), path.stat()
        require_fitting(bug, self.folder)
        path.write_text(path.read_text().replace(bug.text, bug.instead))
        try:
            yield
        finally:
            path.write_bytes(content)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def try_bug(self, bug: Bug) -> Outcome:
        """Plant it and run its test. Only a test that failed has caught it: not an error on the way to the test."""
        started = time.monotonic()
        with self.planted(bug):
            status, output = self.test(bug.test)
        failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", output, re.MULTILINE)
        caught_by = failed[0] if status == 1 and failed else ""
        why = ""
        if not caught_by:
            why = "no end" if status is None else "survived" if status == 0 else f"pytest: exit status {status}"
            why += "" if status == 0 else f"\n{output[-2000:]}"
        return Outcome(bug, caught_by, why, time.monotonic() - started)


def require_fitting(bug: Bug, root: Path = ROOT) -> None:
    """Raise BugError unless the bug's text is in its file once, and its test is there."""
    found = (root / bug.file).read_text().count(bug.text) if (root / bug.file).is_file() else 0
    if found != 1 or bug.text == bug.instead:
        raise BugError(f"{bug.name}: its text is {found} times in {bug.file}, not once; see tests/chaos/bugs.py")
    file, _, function = bug.test.partition("[")[0].partition("::")
    try:
        tree = ast.parse((root / file).read_text())
    except OSError:
        raise BugError(f"{bug.name}: its test's file is not there: {bug.test}") from None
    if function not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
        raise BugError(f"{bug.name}: its test is not there: {bug.test}")


def hunt(bugs: Sequence[Bug], say: Callable[[str], None]) -> list[Outcome]:
    """Plant each bug in a copy of the tree and tell, a line each, whether its test notices. Raises BugError."""
    for bug in bugs:
        require_fitting(bug)
    name, test = max(len(bug.name) for bug in bugs), max(len(bug.test) for bug in bugs)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="planted-bugs-") as folder:
        copy = Copy(Path(folder).resolve() / "tree")
        started = time.monotonic()
        status, output = copy.test(*(bug.test for bug in bugs))
        if status != 0:
            raise BugError(f"without any bug the tests already fail (exit status {status}):\n{output[-4000:]}")
        say(f"{'no bug':{name}}  {'all tests pass':{test}}  {time.monotonic() - started:5.1f} s")
        for bug in bugs:
            outcome = copy.try_bug(bug)
            verdict = outcome.caught_by or f"NOT CAUGHT: {outcome.why}"
            say(f"{bug.name:{name}}  {verdict:{test}}  {outcome.seconds:5.1f} s")
            outcomes.append(outcome)
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 0 if all are caught, 1 if one is not, 2 if that could not be found out."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.planted_bugs", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="name", help="bugs to plant; default: all")
    parser.add_argument("--list", action="store_true", help="tell what there is")
    options = parser.parse_args(arguments)
    known = {bug.name: bug for bug in BUGS}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no such bug: {', '.join(unknown)}; see --list")
    bugs = [known[name] for name in options.names] or list(BUGS)
    if options.list:
        for bug in bugs:
            print(f"{bug.name} ({bug.file})\n    {bug.harm}\n    {bug.test}")
        return 0
    started = time.monotonic()
    try:
        outcomes = hunt(bugs, lambda line: print(line, flush=True))
    except BugError as error:
        print(error, file=sys.stderr)
        return 2
    caught = sum(bool(outcome.caught_by) for outcome in outcomes)
    print(f"{caught} of {len(bugs)} caught in {time.monotonic() - started:.0f} s")
    return 0 if caught == len(bugs) else 1


if __name__ == "__main__":
    sys.exit(main())
