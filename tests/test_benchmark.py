"""The benchmark and sensitivity commands end to end on planted data: their documents, tables and pages."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from tests.conftest import Planted
from tests.planted import write_interactions
from tests.silent_progress import SilentProgress
from tests.test_commands import QUICK
from trainer.__main__ import main as dr_trainer
from trainer.benchmark import benchmark as benchmark_module
from trainer.benchmark import sensitivity as sensitivity_module
from trainer.benchmark.kept import keep
from trainer.benchmark.sensitivity import slope
from trainer.benchmark.summary import METHODS, OTHERS, summarise
from trainer.data.dataset import Dataset
from trainer.deep_retrieval.checkpoint import Run
from trainer.deep_retrieval.fit import fit
from trainer.deep_retrieval.paths import random_paths
from trainer.errors import ResumeError

PNG = b"\x89PNG\r\n\x1a\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert dr_trainer([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def require_page(folder: Path, pictures: set[str]) -> None:
    """Require that the page has every picture in it and loads nothing from a network."""
    page = (folder / "index.html").read_text()
    assert {file.stem for file in folder.glob("*.png")} == pictures
    assert all(file.read_bytes().startswith(PNG) for file in folder.glob("*.png"))
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", page)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, and a finished benchmark of it in runs/whole and report."""
    folder = tmp_path_factory.mktemp("shop")
    write_interactions(folder).rename(folder / "shop.interactions.parquet")
    assert dr_trainer([*command(folder, "whole"), "--report", str(folder / "report")]) == 0
    return folder


def command(folder: Path, runs: str) -> list[str]:
    """The arguments of a benchmark of `shop` that keeps its runs in runs/`runs`."""
    return ["benchmark", "--data-dir", str(folder), "--seeds", "1", "--runs", str(folder / "runs" / runs), *QUICK]


def test_benchmark_measures_every_method_once(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document has all methods; a second run reuses the measurements and gives the same document."""
    document = json.loads((shop / "report" / "benchmark.json").read_text())

    results = document["datasets"]["shop"]
    assert document["seeds"] == 1
    assert (results["k"], results["users"], results["items"]) == (5, 20, 40)
    assert set(results["methods"]) == set(METHODS)
    for method, row in results["methods"].items():
        assert row["reads"]["mean"] > 0, method
        for kind in ("filtered", "unfiltered"):
            for measure in ("precision", "recall", "f_measure"):
                assert 0 <= row[kind][measure]["mean"] <= 1
                assert row[kind][measure]["std"] is None  # there is one seed
    exact = results["methods"]["brute_force"]["filtered"]["ratio_to_brute_force"]
    assert all(ratio == {"mean": 1.0, "std": None} for ratio in exact.values())
    assert results["methods"]["item_cf"]["filtered"]["f_measure"]["mean"] > 0.7
    plots = ("methods", "curves", "reads", "popularity", "learning", "occupancy")
    require_page(shop / "report", {f"shop-{name}" for name in plots})
    page = (shop / "report" / "index.html").read_text()
    assert "One seed, on held-out users" in page
    assert "1 seeds" not in page
    assert "deviation" not in page  # one seed has no deviation

    monkeypatch.setattr(benchmark_module, "measure_seed", lambda *_: pytest.fail("measured again"))
    assert run(capsys, *command(shop, "whole")) == document
    assert dr_trainer(command(shop, "whole")) == 0
    table = capsys.readouterr().out
    assert all(label in table for label in METHODS.values())


def test_methods_can_be_left_out(shop: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Only the named ones are measured beside Deep Retrieval and brute force, with the same figures."""
    arguments = [*command(shop, "few"), "--methods", "deep_retrieval,popularity"]
    report = ["--report", str(tmp_path)]
    rows = run(capsys, *arguments, *report)["datasets"]["shop"]["methods"]
    whole = json.loads((shop / "report" / "benchmark.json").read_text())["datasets"]["shop"]["methods"]

    ours = {name for name in METHODS if name.startswith("deep_retrieval")}
    assert set(rows) == {*ours, "brute_force", "popularity"}
    assert all(rows[name]["filtered"] == whole[name]["filtered"] for name in rows)
    assert dr_trainer(arguments) == 0
    assert "random" not in capsys.readouterr().out

    assert dr_trainer([*command(shop, "few"), "--methods", "popularity,svd"]) == 1
    assert "--methods svd: expected some of deep_retrieval, brute_force, random_paths" in capsys.readouterr().err


def test_a_benchmark_killed_between_its_trainings_continues(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first network is not trained again; the figures are those of an uninterrupted benchmark."""

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(benchmark_module, "build_hnsw", interrupt)
        assert dr_trainer([*command(shop, "killed"), "--json"]) == 130
    capsys.readouterr()
    assert dr_trainer([*command(shop, "killed"), "--json"]) == 0
    resumed = capsys.readouterr()

    assert resumed.err.count("continuing after epoch") == 1  # the network; the random paths were not begun
    rows = json.loads(resumed.out)["datasets"]["shop"]["methods"]
    whole = json.loads((shop / "report" / "benchmark.json").read_text())["datasets"]["shop"]["methods"]
    for name, row in whole.items():
        assert rows[name]["filtered"] == row["filtered"], name


def test_data_where_no_user_has_a_new_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Users only repeat purchases: the benchmark shows unfiltered figures and says why; sensitivity refuses."""
    (tmp_path / "shop.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"{u},{(u + t) % 3},{t}\n" for u in range(30) for t in range(6))
    )
    command = ["benchmark", "--data-dir", str(tmp_path), "--datasets", "shop", "--seeds", "1", *QUICK]
    command += ["--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]

    results = run(capsys, *command)["datasets"]["shop"]

    assert results["users"] == 0
    for row in results["methods"].values():
        assert row["filtered"]["recall"] == {"mean": None, "std": None}
        assert row["unfiltered"]["recall"]["mean"] is not None
    assert dr_trainer(command) == 0
    assert "nobody can be measured with the history filtered; in brackets: not filtered" in capsys.readouterr().out
    assert "nobody can be measured with the history filtered" in (tmp_path / "report" / "index.html").read_text()
    assert dr_trainer(["sensitivity", str(tmp_path / "shop.csv"), *QUICK, "--runs", str(tmp_path / "runs")]) == 1
    assert "nobody can be measured with the history filtered" in capsys.readouterr().err


def test_mean_and_deviation_by_hand() -> None:
    """Two seeds have F of 0.2 and 0.4, and brute force has 0.4 and 0.5, so the ratios are 0.5 and 0.8."""

    def result(f: float, exact: float) -> dict[str, Any]:
        def row(value: float) -> dict[str, Any]:
            measures = {"precision": value, "recall": value, "f_measure": value, "hit_rate": value, "ndcg": value}
            costs = {"reads": 10.0, "fit_seconds": 2.0, "answer_ms": 1.0, "recall_by_popularity": [None], "at": {}}
            return {"filtered": measures, "unfiltered": measures} | costs

        rest = {"k": 1, "users": 1, "items": 1, "interactions": 1, "structural_recall": 1.0, "frontier": []}
        rest |= {"path_sizes": [], "paths": {}, "epochs": [], "split": "users"}
        rest["curves"] = {"deep_retrieval": [{"reads": 20, "brute_force": f, "truths": None}]}
        return {"methods": {"deep_retrieval": row(f), "brute_force": row(exact)}} | rest

    summary = summarise([result(0.2, 0.4), result(0.4, 0.5)])
    filtered = summary["methods"]["deep_retrieval"]["filtered"]

    assert filtered["f_measure"] == pytest.approx({"mean": 0.3, "std": 0.02**0.5})
    assert filtered["ratio_to_brute_force"]["f_measure"] == pytest.approx({"mean": 0.65, "std": 0.045**0.5})
    (point,) = summary["curves"]["deep_retrieval"]
    assert point["reads"] == 20
    assert point["brute_force"] == pytest.approx({"mean": 0.3, "std": 0.02**0.5})
    assert point["truths"] == {"mean": None, "std": None}


def test_sensitivity_varies_every_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document has a row for each value and the slope of the largest path; the page has a picture a setting."""
    monkeypatch.setattr(sensitivity_module, "COUNTS", (1, 3))
    monkeypatch.setattr(sensitivity_module, "WIDTHS", (0.3, 2))
    monkeypatch.setattr(sensitivity_module, "DEPTHS", (3,))
    monkeypatch.setattr(sensitivity_module, "ALPHAS", (0.01, 1))
    file = write_interactions(tmp_path)
    command = ["sensitivity", str(file), "--runs", str(tmp_path / "runs"), *QUICK, "--set=epochs=4"]

    document = run(capsys, *command, "--report", str(tmp_path / "report"))

    assert [row["value"] for row in document["paths_per_item"]] == [1, 3]
    assert [row["value"] for row in document["beam"]] == [5, 10, 20, 35, 50, 100]
    assert document["beam"][0]["reads"] <= 5 * max(1, document["beam"][0]["largest"])  # at most five paths are read
    assert [row["value"] for row in document["width"]] == [2, 12]
    assert [row["value"] for row in document["depth"]] == ["3 (K = 6)", "2 (K = 15)"]
    reads = [row["reads"] for row in document["beam"]]
    assert reads == sorted(reads)
    largest = [row["largest"] for row in document["alpha"]]
    assert largest == sorted(largest, reverse=True)
    assert document["largest_path_slope"] == slope([row["value"] for row in document["alpha"]], largest)
    pictures = {f"setting-{name}" for name in ("beam", "width", "depth", "paths_per_item", "alpha", "largest")}
    require_page(tmp_path / "report", pictures)


def test_held_out_items_reach_no_baseline(planted: Planted) -> None:
    """Other held-out items of the test users change no score of the classic baselines."""
    dataset = planted.dataset
    items = dataset.items.copy()
    for user in planted.split.test_users:
        start = dataset.offsets[user] + planted.split.history_length[user]
        items[start : dataset.offsets[user + 1]] = 0
    histories = scipy.sparse.csr_array(np.eye(40, dtype=np.float32))

    for (name, scores, _), (_, changed_scores, _) in zip(
        *(
            benchmark_module._classics(planted.config, data, planted.split, OTHERS, SilentProgress())
            for data in (dataset, dataclasses.replace(dataset, items=items))
        ),
        strict=True,
    ):
        assert np.array_equal(scores(histories), changed_scores(histories)), name


def test_random_paths_reuse_only_the_encoder(planted: Planted, tmp_path: Path) -> None:
    """The item vectors are those of the trained network, and the paths are drawn: only the assignment is compared."""
    drawn, dataset, base = (
        planted.config.replace(start="random", reassignments=0),
        planted.dataset,
        planted.trained.model,
    )
    trained = fit(drawn, dataset, planted.split, Run(tmp_path, drawn, dataset), SilentProgress(), base.encoder)

    assert torch.equal(trained.model.item_vectors, base.item_vectors)
    generator = np.random.default_rng([drawn.seed, 1])
    assert np.array_equal(trained.paths, random_paths(40, 2, 2, 6, generator))


def test_results_are_kept_until_settings_or_data_change(planted: Planted, tmp_path: Path) -> None:
    """The same settings and data are not measured again; a damaged result is an error."""
    folders = []

    def measure(place: Path) -> dict[str, Any]:
        folders.append(place)
        return {"n": len(folders)}

    def kept(seed: int = 0, dataset: Dataset = planted.dataset) -> dict[str, Any]:
        return keep(tmp_path, "x", planted.config.replace(seed=seed), dataset, SilentProgress(), measure)

    assert (kept(), kept(), kept(seed=1)) == ({"n": 1}, {"n": 1}, {"n": 2})
    assert kept(dataset=dataclasses.replace(planted.dataset, items=planted.dataset.items[::-1])) == {"n": 3}
    (folders[0] / "result.json").write_text("{")
    with pytest.raises(ResumeError, match="damaged"):
        kept()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--set=seed=3"], "--set seed"),
        (["--set=test_users=0"], "no users are held out"),
        (["--seeds=0"], "at least 1"),
    ],
)
def test_wrong_settings_are_refused_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    """The error names the setting or the reason, and no run is started."""
    write_interactions(tmp_path).rename(tmp_path / "shop.interactions.parquet")

    command = ["benchmark", "--data-dir", str(tmp_path), "--runs", str(tmp_path / "runs"), *QUICK, *settings]

    assert dr_trainer(command) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/run"))


def test_a_report_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error comes before any training, not hours later."""
    write_interactions(tmp_path).rename(tmp_path / "shop.interactions.parquet")
    (tmp_path / "file").touch()

    assert dr_trainer(["benchmark", "--data-dir", str(tmp_path), "--report", str(tmp_path / "file")]) == 1
    assert "--report" in capsys.readouterr().err


def test_slope_by_hand() -> None:
    """The largest path halves when alpha grows eightfold."""
    assert slope([1.0, 8.0, 64.0], [400, 200, 100]) == pytest.approx(-1 / 3)


def test_missing_libraries_of_the_benchmark_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to install them, before anything is trained."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert dr_trainer(["benchmark", "--data-dir", str(tmp_path), "--datasets", "online-retail"]) == 1
    assert "faiss, implicit missing: pip install 'deep-retrieval[benchmark]'" in capsys.readouterr().err
