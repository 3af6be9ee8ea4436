"""Training and evaluation on degenerate data: one user, one item, only repeated items, all times equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_store.__main__ import main as dr_index
from index_store.folder.store import FolderStore
from retrieval.query import Request
from service.serving.retriever import Retriever
from tests.test_commands import QUICK
from trainer.__main__ import main as dr_trainer

#: (user, item, time), and in some tests a fourth cell
Rows = list[tuple[Any, ...]]


def sequences(*items: list[int]) -> Rows:
    """User 0 clicks the first list in its order, user 1 the second, ..."""
    return [(user, item, time) for user, clicked in enumerate(items) for time, item in enumerate(clicked)]


GROUPED = sequences(*[[4 * ((user + step) % 6) + user % 4 for step in range(5)] for user in range(30)])
#: The same three items twice: the second half of each history repeats the first.
REPEATED = sequences(*[[1, 2, 3, 1, 2, 3]] * 30)


def write(folder: Path, rows: Rows, extra: str = "extra") -> Path:
    """Write the rows to a file of interactions; a fourth cell goes into the column `extra`."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    file = folder / "shop.interactions.parquet"
    pq.write_table(pa.table(dict(zip(("user_id", "item_id", "timestamp", extra), columns, strict=False))), file)
    return file


def strict_json(text: str) -> Any:
    """Parse JSON as a strict parser does: NaN and Infinity are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"not JSON: {constant}")

    return json.loads(text, parse_constant=refuse)


def answers(store: Path) -> list[int]:
    """How many items the current version returns for an empty history, and for a history of its first item."""
    folder = FolderStore(str(store))
    name = folder.current()
    assert name is not None
    retriever = Retriever(folder.load(name))
    lengths = []
    searcher = retriever.searcher
    for history in ([], searcher.vocabulary.names(np.array([0]))):
        query, unknown = searcher.prepare(Request(history))
        (answer,) = searcher.answer([query])
        assert unknown == (0, 0)
        assert np.isfinite(answer.scores).all()
        lengths.append(len(answer.items))
    return lengths


Fit = Callable[..., Path]


@pytest.fixture
def fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fit:
    """Run `dr-trainer fit` on the rows as a user would, publishing to tmp_path/store."""

    def run(rows: Rows, *settings: str, extra: str = "extra") -> Path:
        file = write(tmp_path, rows, extra)
        places = ["--store", str(tmp_path / "store"), "--resume", str(tmp_path / "run"), "--allow-collapsed"]
        sets = [f"--set={setting}" for setting in ("test_users=auto", *settings)]
        assert dr_trainer(["fit", str(file), *QUICK, *sets, *places, "--json"]) == 0
        strict_json(capsys.readouterr().out)
        return file

    return run


UNMEASURED = dict.fromkeys(("precision", "recall", "f_measure"))


@pytest.mark.parametrize(
    ("rows", "settings", "lengths", "said"),
    [
        pytest.param(
            REPEATED, [], [3, 2], "nobody has an item in the second half that is not in the history", id="repeats"
        ),
        pytest.param(
            REPEATED, ["split=last-out"], [3, 2], "nobody has a last item that is not in the history", id="last repeats"
        ),
        pytest.param(sequences(*[[7] * 4] * 20), ["epochs=1"], [1, 0], "nobody has an item", id="one item"),
        pytest.param(sequences([1, 2, 3, 4, 5]), ["test_users=0"], [5, 4], "nobody was held out", id="one user"),
        pytest.param(
            [(user, item, 0) for user, item, _ in GROUPED],
            ["k=1000", f"seed={2**62}"],
            [24, 23],
            "R 1.000",
            id="large k",
        ),
    ],
)
def test_a_version_is_made_and_answers(
    fit: Fit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: Rows,
    settings: list[str],
    lengths: list[int],
    said: str,
) -> None:
    """Where nothing can be tuned or measured, a version is published that answers, and no metric is NaN or made up."""
    file = fit(rows, *settings)
    store = tmp_path / "store"

    assert answers(store) == lengths
    assert dr_index(["show", str(FolderStore(str(store)).current()), "--json", "--store", str(store)]) == 0
    strict_json(capsys.readouterr().out)
    status = dr_trainer(["evaluate", str(file), "--store", str(store)])
    out, err = capsys.readouterr()
    assert said in (err if status else out)
    assert dr_trainer(["evaluate", str(file), "--store", str(store), "--json"]) == status
    document = strict_json(capsys.readouterr().out or "null")
    if document and "nobody" in said:
        assert document["users"] == 0
        assert "nobody can be measured with the history filtered" in out
        for name in ("deep_retrieval", "brute_force", "item_cf", "popularity", "ratio_to_brute_force"):
            assert document[name].items() >= UNMEASURED.items(), name
            assert document["unfiltered"][name]["recall"] is not None
