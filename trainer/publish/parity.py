"""Check that the exported ONNX network gives the same results as the trained torch network."""

from __future__ import annotations

import numpy as np
import torch

from retrieval.paths.structure import PathStructure
from retrieval.paths.trie import path_trie
from retrieval.query import Limits
from trainer.data.requests import Requests, pad_histories
from trainer.errors import ExportRefused
from trainer.publish.network import Network

TOLERANCE = 1e-3  # between torch and ONNX, in log-probabilities and user vectors
HALF_TOLERANCE = 0.03  # between user vectors computed from item vectors in float32 and in float16


def check_parity(network: Network, structure: PathStructure, requests: Requests) -> None:
    """Raise ExportRefused unless ONNX and torch agree, at several batch sizes, history lengths and beam widths.

    They agree if user vectors are equal, if the log-probabilities at each rank are equal, and if each path found by
    ONNX has the same log-probability in torch.
    """
    trie = torch.from_numpy(path_trie(structure.index.path_ids, network.model.depth, network.model.width))
    histories = [*requests.histories, np.empty(0, np.int64)]
    categories = np.concatenate([requests.categories, requests.categories[:1] * 0])
    numbers = np.concatenate([requests.numbers, requests.numbers[:1] * 0])
    for batch in sorted({1, 2, len(histories)}):
        chosen = slice(len(histories) - batch, None)
        padded = pad_histories(histories[chosen], structure.history)
        there = padded >= 0
        inputs = [
            torch.from_numpy(structure.index.item_vectors[padded] * there[:, :, None]),
            torch.from_numpy(there.sum(axis=1)),
            torch.from_numpy(categories[chosen]),
            torch.from_numpy(numbers[chosen]),
        ]
        for beam in (1, 10, 50, Limits.BEAM):
            beams = structure.search(histories[chosen], categories[chosen], numbers[chosen], beam)
            with torch.inference_mode():
                user, _, log_probs = network(*inputs, torch.tensor(beam), trie)
                found = torch.from_numpy(structure.index.path_ids[beams.paths])
                again = network.model.path_log_probs(user, found, trie)
                trained = network.model.encoder(torch.from_numpy(padded), *inputs[2:])
                last = trained[torch.arange(batch), inputs[1]]
            if not np.allclose(last.numpy(), beams.user, rtol=HALF_TOLERANCE, atol=HALF_TOLERANCE):
                raise ExportRefused(
                    f"the exported encoder differs from the trained one at batch size {batch}; nothing was published"
                )
            alive = np.isfinite(beams.log_probs)
            for name, expected, actual in (
                ("user vectors", user.numpy(), beams.user),
                ("log-probabilities", log_probs.numpy(), beams.log_probs),
                ("paths", again.numpy()[alive], beams.log_probs[alive]),
                ("unused beam places", np.where(alive, 0, -1), np.where(beams.paths >= 0, 0, -1)),
            ):
                if expected.shape != actual.shape or not np.allclose(expected, actual, rtol=TOLERANCE, atol=TOLERANCE):
                    raise ExportRefused(
                        f"ONNX and torch differ in their {name} at batch {batch} and beam {beam}; nothing was published"
                    )
