"""The network's weights in a version, and the network made from them again, to go on learning.

The weights cannot be read from model.onnx, where parts of the network are computed in advance.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from index_store.errors import VersionDamaged
from index_store.path_facts import PathFacts
from index_store.version import Version
from retrieval.context import ContextSchema
from trainer.config import TrainConfig
from trainer.deep_retrieval.layers import PathModel

WEIGHTS = "weights.safetensors"
#: The tensors of a PathModel that have a row for each item.
ITEM_TENSORS = _VECTORS, _BIAS = "encoder.item_embedding.weight", "item_bias"
_START = "start"


def weights_part(model: PathModel) -> bytes:
    """The part weights.safetensors: all weights but those of the items, which have parts of their own."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    vectors = tensors.pop(_VECTORS)
    del tensors[_BIAS]
    return save({**tensors, _START: vectors[model.encoder.start].clone()})


def load_model(version: Version, config: TrainConfig, clicks: int) -> PathModel:
    """The network of a version, on the CPU. clicks: all clicks of its training. Raises VersionDamaged."""
    items, facts = version.manifest.items, PathFacts.of(version.manifest.structure)
    schema = ContextSchema.from_json(version.document("context.json"))
    model = PathModel(config, facts.width, np.full(items, clicks / items), schema)
    try:
        tensors = load(bytes(version.parts[WEIGHTS]))
        start = tensors.pop(_START)
        vectors = torch.from_numpy(version.array("item_vectors.npy").astype(np.float32))
        tensors |= {_VECTORS: torch.cat([vectors, start[None]]), _BIAS: torch.tensor(version.array("item_bias.npy"))}
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        raise VersionDamaged(f"{version.manifest.version} {WEIGHTS}: not this network ({error})") from None
    return model
