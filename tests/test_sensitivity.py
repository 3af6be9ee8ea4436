"""The sensitivity report measures what the published version answers, and says which differences are chance."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from retrieval.paths.rerank import SOFTMAX
from retrieval.query import Limits
from tests.conftest import Planted
from tests.planted import write_interactions
from tests.silent_progress import SilentProgress
from tests.test_commands import QUICK
from trainer.__main__ import main as dr_trainer
from trainer.benchmark import sensitivity as sensitivity_module
from trainer.benchmark.sensitivity import MeasuredPaths, chance
from trainer.data.requests import held_out_requests
from trainer.evaluate import evaluate


@pytest.mark.parametrize("beam", [1, 4, 100])
def test_the_trained_network_measures_like_the_published_version(planted: Planted, beam: int) -> None:
    """Without an export it has the published version's recall, share and reads, ranked by the softmax head."""
    requests = held_out_requests(planted.dataset, planted.split)
    mine = MeasuredPaths(planted.trained, requests, planted.config)
    published = evaluate.MeasuredVersion(planted.searcher, requests, 5, SilentProgress())
    per_path = Limits.READS // Limits.BEAM
    answers = published.retrieval(5, beam, per_path, SilentProgress(), widen=False, reranker=SOFTMAX)
    reads = published.reads(5, beam, per_path)

    exact = mine.brute_force()
    figures = mine.figures(beam, exact)

    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(exact, published.brute_force.filtered, strict=True))
    expected = answers.figures(requests, 5)["filtered"]
    assert {measure: figures[measure] for measure in expected} == pytest.approx(expected)
    assert (
        (figures["structural_recall"], figures["reads"])
        == (reads.exact, reads.mean)
        == (reads.exact, answers.reads.mean())
    )
    assert np.mean(figures["recall_by_user"]) == pytest.approx(figures["recall"])


def test_chance_by_hand() -> None:
    """Twenty users who all find 0.5 more with the second value: not chance. One user, or equal values: chance."""
    sure = chance(np.array([[0.1, 0.2, 0.3, 0.4] * 5, [0.6, 0.7, 0.8, 0.9] * 5]))
    assert sure["standard_error"] == pytest.approx(0)
    assert not sure["within"]

    # Differences of 0.5 and -0.3: mean 0.1, standard deviation 0.8 / sqrt(2), so an error of 0.4.
    unsure = chance(np.array([[0.0, 0.6], [0.5, 0.3]]))
    assert unsure["standard_error"] == pytest.approx(0.4)
    assert unsure["within"]
    # With each user's values shuffled, the two means are 0.4 apart, in either direction, as often as 0.1.
    assert unsure["by_chance"] == pytest.approx(0.4)

    assert chance(np.array([[0.2], [0.9]])) == {"standard_error": None, "by_chance": pytest.approx(0.7), "within": True}
    assert chance(np.full((3, 4), 0.5)) == {"standard_error": 0.0, "by_chance": 0.0, "within": True}


def test_the_best_of_many_equal_values_is_within_chance() -> None:
    """Ten values differ by noise alone: the best is more than a standard error above the worst, as in any ten."""
    recalls = np.random.default_rng(1).random((10, 50))

    result = chance(recalls)

    assert np.ptp(recalls.mean(axis=1)) > result["standard_error"]
    assert result["within"]


def test_a_small_data_set_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is exported or trained twice; table and page give what is within chance, and the number of users."""
    for name, values in (("COUNTS", (2, 3)), ("WIDTHS", (1, 2)), ("DEPTHS", (2,)), ("ALPHAS", (0.01, 1))):
        monkeypatch.setattr(sensitivity_module, name, values)  # with the usual values the test would take half a minute
    command = ["sensitivity", str(write_interactions(tmp_path)), "--runs", str(tmp_path / "runs"), *QUICK]
    command += ["--set=epochs=3", "--set=width=8", "--report", str(tmp_path / "report")]

    assert dr_trainer([*command, "--json"]) == 0

    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["users"] == 20
    assert set(document["chance"]) == set(document["effects"]) == {"beam", "width", "depth", "paths_per_item", "alpha"}
    for name, effect in document["effects"].items():
        recalls = [row["recall"] for row in document[name]]
        assert effect == pytest.approx(max(recalls) - min(recalls))
        assert document["chance"][name]["within"] == (effect <= document["chance"][name]["by_chance"] + 1e-12)
    assert "ONNX" not in err
    # One training with the settings as given, for K, D and J; another K, K^D in two layers, another J; three for alpha.
    assert err.count("layers of") == 1 + 1 + 1 + 1 + 3
    page = (tmp_path / "report" / "index.html").read_text()
    captions = re.findall("<figcaption>(.*)</figcaption>", page)
    assert sum("points between the best and the worst" in caption for caption in captions) == 5
    assert "20 held-out users" in page

    assert dr_trainer(command) == 0
    out, err = capsys.readouterr()
    assert "learning" not in err
    assert err.count("layers of") == 1  # only the first training is loaded, to measure the beams
    ends = [line.split("points ")[1] for line in out.splitlines() if "points " in line]
    within = "between the best and the worst; within chance (20 users)"
    assert [end == within for end in ends] == [result["within"] for result in document["chance"].values()]
