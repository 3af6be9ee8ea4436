"""Measurements are kept as long as the code that made them is the same; comments and docstrings do not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.benchmark.kept import code_digest

CODE = '''
"""A module."""

LIMIT = 3  # items


class Shelf:
    """Holds books."""

    def take(self, count: int) -> str:
        """Take some."""
        text = """not a docstring"""
        return text * min(count, LIMIT)
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with a module in a subpackage."""
    (tmp_path / "shop" / "room").mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "room" / "shelf.py").write_text(CODE)
    return tmp_path / "shop"


def changed(package: Path, old: str, new: str) -> bool:
    """Whether the digest changes when `new` takes the place of `old` in the module."""
    before = code_digest([package])
    assert old in CODE
    (package / "room" / "shelf.py").write_text(CODE.replace(old, new))
    return code_digest([package]) != before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # items", "  # books"),
        ("# items", ""),
        ('"""A module."""', '"""Another sentence,\n\nand a second."""'),
        ('"""A module."""', ""),
        ('"""Holds books."""', '"""Holds what is read."""'),
        ('        """Take some."""\n', ""),
        ("class Shelf", "\n\n\nclass Shelf"),
        ("min(count, LIMIT)", "min(\n            count,\n            LIMIT,\n        )"),
    ],
)
def test_comments_docstrings_and_layout_change_nothing(package: Path, old: str, new: str) -> None:
    """Hours of measurements stay valid when a sentence is edited."""
    assert not changed(package, old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [("LIMIT = 3", "LIMIT = 4"), ("not a docstring", "a text"), ("min(", "max("), ("count: int", "count: int = 1")],
)
def test_code_changes_the_digest(package: Path, old: str, new: str) -> None:
    """The file is in a subpackage."""
    assert changed(package, old, new)


def test_every_file_counts(package: Path) -> None:
    """A new file changes the digest, in a package, a subpackage or another of the packages."""
    digests = {code_digest([package])}
    for place in (package / "more.py", package / "room" / "more.py", package.parent / "other.py"):
        place.write_text("x = 1\n")
        digests.add(code_digest([package, place.parent]))

    assert len(digests) == 4


def test_files_that_are_left_out_do_not_count(package: Path) -> None:
    """The caller leaves out files that only show results."""
    before = code_digest([package])
    (package / "plots.py").write_text("x = 1\n")

    assert code_digest([package], but=[package / "plots.py"]) == before
