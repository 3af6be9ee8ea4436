"""The documentation: its links work, its map of files is complete, and every field and metric is explained."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from index_store.folder.store import FolderStore
from service.http.app import create_app
from service.metrics import Metrics
from service.process.settings import Settings
from trainer.config import load_config

ROOT = Path(__file__).parent.parent
PACKAGES = ("index_store", "retrieval", "trainer", "service")
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "examples/online_retail/README.md", *DOCS]


def test_the_readme_is_short_and_so_is_every_page() -> None:
    """A page can be read in one sitting."""
    assert len(README.read_text().splitlines()) <= 160
    for page in DOCS:
        if page.name != "reference.md":  # a table to look things up in
            assert len(page.read_text().splitlines()) <= 300, page.name


def test_the_readme_links_to_every_page() -> None:
    """Every page in docs/ is one click away from README.md."""
    for page in DOCS:
        assert f"](docs/{page.name})" in README.read_text(), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_a_target(page: Path) -> None:
    """Relative links lead to files of this repository, and anchors to headings of the linked page."""
    for link in re.findall(r"\]\(\s*([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leaves the repository"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page.name}: {link}"


def test_the_map_lists_every_file_of_the_packages_once() -> None:
    """The map in docs/files.md lists every Python file exactly once, and no file that does not exist."""
    listed = listed_files((ROOT / "docs" / "files.md").read_text())
    existing = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if file.name != "__init__.py"
    }

    assert len(listed) == len(set(listed))
    assert set(listed) == existing


def test_the_map_is_read_by_its_indentation() -> None:
    """listed_files puts a file into the folder that it is indented under."""
    drawn = (
        "```\nfirst/     a package\n  a.py     a file\n  room/    a room\n    b.py   another\n  c.py     a third\n```\n"
    )

    assert listed_files(f"# Map of files\n\n{drawn}") == ["first/a.py", "first/room/b.py", "first/c.py"]


def test_every_field_of_a_request_and_an_answer_is_explained(tmp_path: Path) -> None:
    """docs/http.md explains each field under its name in JSON, and has every route and status."""
    app = create_app(Settings.model_validate({"store": str(tmp_path)}), FolderStore(str(tmp_path)))
    document, page = app.openapi(), (ROOT / "docs" / "http.md").read_text()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in page, path
        for operation in operations.values():
            for status in operation["responses"]:
                assert status in {"200", "202"} or f"| {status} |" in page, status
    schemas = document["components"]["schemas"]
    fields = {
        "RetrieveRequest": "`{}`",
        "RetrieveResponse": "`{}`",
        "Candidate": "`candidates[].{}`",
        "Coverage": "`coverage.{}`",
        "Degraded": "`degraded.{}`",
    }
    for schema, form in fields.items():
        for name in schemas[schema]["properties"]:
            if name not in {"coverage", "degraded"}:
                assert f"| {form.format(name)} |" in page, f"{schema}.{name}"


def test_every_metric_is_explained() -> None:
    """docs/operate.md names every metric that /metrics shows."""
    page = (ROOT / "docs" / "operate.md").read_text()
    for name, kind in re.findall(r"^# TYPE deepretrieval_(\w+) (\w+)$", Metrics().text().decode(), re.MULTILINE):
        if not (kind == "gauge" and name.endswith("_created")):  # the library adds one for every counter
            assert f"`{name}" in page, name


def test_every_make_target_is_in_the_readme() -> None:
    """README.md names every target that `make help` lists."""
    for target in re.findall(r"make (\w+) ", (ROOT / "Makefile").read_text().split("install:")[0]):
        assert f"`make {target}`" in README.read_text()


def test_the_example_config_is_valid() -> None:
    """The config that the demo trains with can be loaded."""
    assert load_config(ROOT / "examples/online_retail/config.toml").k == 20


def test_the_shipped_data_are_small_and_attributed() -> None:
    """The data take less than 1.5 MB, and their README names the source and the licence."""
    folder = ROOT / "examples/online_retail"

    assert sum(file.stat().st_size for file in folder.glob("*.parquet")) < 1_500_000
    assert "10.24432/C5BW33" in (folder / "README.md").read_text()
    assert "CC BY 4.0" in (folder / "README.md").read_text()


def without_code(text: str) -> str:
    """The page without code blocks and inline code, where brackets are not links."""
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings; a heading that comes twice gets a number the second time."""
    given: set[str] = set()
    headings = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ +(.+?) *$", headings, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        number = sum(slug == other or re.fullmatch(rf"{re.escape(slug)}-\d+", other) is not None for other in given)
        given.add(f"{slug}-{number}" if number else slug)
    return given


def listed_files(text: str) -> list[str]:
    """The Python files of the first drawing below the heading "Map of files", with their folders."""
    (drawing,) = re.findall(r"^# Map of files$.*?^```$(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    files, folders = [], [""]
    for indent, name, about in re.findall(r"^( *)([\w./]+)(?: +(\S.*))?$", drawing, re.MULTILINE):
        assert about, f"{name}: nothing is said of it"
        depth = len(indent) // 2
        folders[depth + 1 :] = [folders[depth] + name] if name.endswith("/") else []
        if name.endswith(".py"):
            files.append(folders[depth] + name)
    return files
