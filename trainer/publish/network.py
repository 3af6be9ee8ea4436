"""The network that is exported, and its ONNX file.

torch's exporter traces the network, which takes 4 to 10 seconds. The graph depends on the shapes of the weights but not
on their values, so networks of one architecture are traced once in a process.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from onnxscript.optimizer import optimize
from torch import Tensor, nn

from retrieval.context import ContextSchema
from retrieval.query import Limits
from trainer.deep_retrieval.layers import PathModel
from trainer.publish.weights import ITEM_TENSORS


class Network(nn.Module):
    """The exported network, from a history's item vectors, the context and a beam width to a user vector and paths.

    No part of the network has a row for each item, because the item vectors and the trie of the paths are inputs.
    """

    def __init__(self, model: PathModel) -> None:
        super().__init__()
        self.model = model
        self.start = nn.Parameter(model.encoder.item_embedding.weight[model.encoder.start].detach().clone())

    def forward(
        self, history: Tensor, length: Tensor, categories: Tensor, numbers: Tensor, beam: Tensor, trie: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """User vectors (B, E), the paths' positions among the paths in use (B, W), and their log-probabilities (B, W).

        Paths are ordered best first. history: float16 (B, T, E), item vectors, oldest first, padded with 0. length:
        (B,), the number of items in each history. beam: int64 scalar, 1 to Limits.BEAM. trie: int32 (R, K), see
        `retrieval.paths.trie`.
        """
        width: int = beam.item()  # type: ignore[assignment]  # int() would make it a constant of the export
        torch._check(width >= 1)  # noqa: SLF001 -- tells the exporter a bound
        torch._check(width <= Limits.BEAM)  # noqa: SLF001
        items = torch.cat([self.start.expand(history.shape[0], 1, -1), history.float()], dim=1)  # (B, T + 1, E)
        user = self.model.encoder.last(items, length, categories, numbers)  # (B, E)
        return user, *self.model.beam_search(user, width, trie)


#: The graphs that were traced, by the names and shapes of the weights.
_traced: dict[tuple[tuple[str, tuple[int, ...]], ...], onnx.ModelProto] = {}


def to_onnx(network: Network, schema: ContextSchema) -> bytes:
    """The ONNX file, for any batch size, history length, beam width and trie. It has no data about this machine."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    weights = {name: tensor for name, tensor in tensors.items() if name.removeprefix("model.") not in ITEM_TENSORS}
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in weights.items())
    if shapes not in _traced:
        _traced[shapes] = _trace(network, schema)
    model = onnx.ModelProto()
    model.CopyFrom(_traced[shapes])
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            values = weights[tensor.name].detach().cpu().numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with _quiet():
        model = optimize(model)  # computes what depends only on the weights
    _remove_remarks(model)
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def _trace(network: Network, schema: ContextSchema) -> onnx.ModelProto:
    """The graph as the exporter writes it, with the weights as initializers under their names in `network`."""
    example = (
        torch.zeros(2, 2, network.start.shape[0], dtype=torch.float16),
        torch.tensor([1, 2]),
        torch.zeros(2, len(schema.categories), dtype=torch.int64),
        torch.zeros(2, len(schema.numbers)),
        torch.tensor(2),
        torch.zeros(2, network.model.width, dtype=torch.int32),
    )
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            external_data=False,
            verbose=False,
            optimize=False,
            input_names=["history", "length", "categories", "numbers", "beam", "trie"],
            output_names=["user", "paths", "path_log_probs"],
            dynamic_shapes=({0: "batch", 1: "time"}, {0: "batch"}, {0: "batch"}, {0: "batch"}, None, {0: "rows"}),
        )
    assert program is not None, "the exporter returns a program when it is given no file"
    return program.model_proto


def _remove_remarks(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about its source, which has paths of this machine."""
    for part in (model, model.graph):
        del part.metadata_props[:]
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's own warnings and prints."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript"))}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
