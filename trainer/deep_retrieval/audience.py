"""The vectors by which the tree places items: each item's own vector, and the mean vector of its audience.

An item's audience are the users who click it, and users for whom the softmax head draws it. Paths are searched with
user vectors, so items that the same users want should share prefixes. Where clicks are few, the items' own vectors say
too little about that (docs/log-paths.md).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.batches import Batches
from trainer.deep_retrieval.layers import PathModel
from trainer.deep_retrieval.losses import SoftmaxHead, predictions
from trainer.progress import Advance

DRAWS = 2  # items that the head draws for each user vector
#: A mean over this many users counts as much as the prediction from the item's own vector.
PRIOR = 20
RIDGE = 1e-3  # of that prediction, relative to the mean square of the item vectors


def placing_vectors(model: PathModel, head: SoftmaxHead, batches: Batches, advance: Advance) -> NDArray[np.float32]:
    """Item and audience vectors side by side, (V, 2 E); both are centred and have the same mean square.

    The audience's mean is shrunk towards a linear prediction from the item's own vector, see PRIOR. An item without an
    audience has only the prediction. Time: one pass of encoder and head over the clicks.
    """
    device = model.item_bias.device
    total = torch.zeros(model.item_vectors.shape, dtype=torch.float64, device=device)
    count = torch.zeros(len(total), dtype=torch.float64, device=device)
    model.eval()
    with torch.inference_mode():
        for batch in batches.epoch(None):
            users, clicked, _ = predictions(model, batch)
            for wanted in (clicked, *head.sample(model, users, DRAWS).unbind(dim=1)):
                total.index_add_(0, wanted, users.double())
                count.index_add_(0, wanted, torch.ones_like(users[:, 0], dtype=torch.float64))
            advance(len(clicked))
    vectors = model.item_vectors.detach().cpu().numpy()
    vectors = vectors - vectors.mean(axis=0)
    audience = audience_means(vectors, total.cpu().numpy(), count.cpu().numpy())
    return np.concatenate([_scaled(vectors), _scaled(audience)], axis=1)


def audience_means(
    vectors: NDArray[np.float32], total: NDArray[np.float64], count: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The mean of each item's audience minus that of all, (V, E), shrunk towards a prediction from `vectors` (V, E).

    total: (V, E), the sums of the `count` (V,) users of each audience; it is overwritten, to save memory.
    """
    total -= count[:, None] * (total.sum(axis=0) / count.sum())
    ridge = max(RIDGE * float(count @ (vectors**2).mean(axis=1)), 1e-12)  # equal vectors are all 0 when centred
    moments = vectors.T @ (count[:, None] * vectors) + ridge * np.eye(vectors.shape[1])
    total += PRIOR * (vectors @ np.linalg.solve(moments, vectors.T @ total))
    total /= (count + PRIOR)[:, None]
    return total.astype(np.float32)


def _scaled(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors with a mean square length of 1, or all 0."""
    scaled: NDArray[np.float32] = vectors / max(float(np.sqrt((vectors**2).sum(axis=1).mean())), 1e-12)
    return scaled
