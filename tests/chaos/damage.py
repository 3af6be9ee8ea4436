"""Versions that must not be served: damaged after they were stored, or published with wrong content."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from index_store.manifest import Manifest, PartInfo, fingerprint, sha256
from index_store.version import Version, npy
from retrieval.paths.index import PathIndex

Parts = dict[str, bytes]

_X = b'{"name": "x", "kind": "category", "values": ["y"]}'


def stored_damage(folder: Path, others: Path, random: Random, count: int) -> Iterator[tuple[str, Parts]]:
    """Yield `count` cases of damage to a version's files: a description, and the content of the damaged files.

    Files that are not mentioned stay as they are. others: the folder of another version.
    """
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    kinds: list[Callable[[str], bytes]] = [
        lambda name: _flipped(files[name], random),
        lambda name: _flipped(files[name], random),
        lambda name: files[name][: random.randrange(len(files[name]))],
        lambda name: files[name] + random.randbytes(random.randrange(1, 100)),
        lambda name: (others / name).read_bytes(),
        lambda name: random.randbytes(len(files[name])),
        lambda _: b"",
    ]
    names = ["flipped bit", "flipped bit", "cut short", "longer", "another version's", "noise", "empty"]
    done = 0
    while done < count:
        kind, file = done % len(kinds), random.choice(sorted(files))
        content = kinds[kind](file)
        if content != files[file]:
            yield f"{names[kind]}: {file}", {file: content}
            done += 1


def _flipped(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    bit = random.randrange(8 * len(changed))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def wrong_versions(version: Version, other: Version) -> dict[str, tuple[Parts, dict[str, Any]]]:
    """Wrong versions by a description of the fault: all parts, and the manifest's fields that are not `version`'s.

    `write_version` stores each of them with right digests. other: a version of another training on the same items.
    """
    parts = {name: bytes(part) for name, part in version.parts.items()}
    foreign = {name: bytes(part) for name, part in other.parts.items()}
    index, manifest = PathIndex.of(version), version.manifest
    vectors, bias = np.array(index.item_vectors), np.array(index.item_bias)
    rng = np.random.default_rng(0)

    def with_parts(**changed: bytes) -> Parts:
        endings = {name.split(".")[0]: name for name in parts}
        return parts | {endings[name]: content for name, content in changed.items()}

    def with_structure(**changed: Any) -> dict[str, Any]:
        return {"structure": {**manifest.structure, **changed}}

    def with_value(array: Any, value: float) -> bytes:
        changed = array.copy()
        changed.flat[len(changed) // 2] = value
        return npy(changed)

    near = index.neighbours
    reranker = json.loads(parts["reranker.json"])
    reranker["weights"]["logit"] = float("nan")
    out_of_range = np.array(index.path_items)
    out_of_range[3] = manifest.items
    wrong_parts: dict[str, tuple[Parts, dict[str, Any]]] = {
        description: (changed, {})
        for description, changed in {
            "NaN weights": with_parts(model=_poisoned(version, np.nan)),
            "infinite weights": with_parts(model=_poisoned(version, np.inf)),
            "foreign operator": with_parts(model=_foreign(version)),
            "external data": with_parts(model=_external(version)),
            "a model that asks for 16 GB": with_parts(model=_bomb()),
            "a model that answers other things": with_parts(model=_constant()),
            "half a model": with_parts(model=parts["model.onnx"][: len(parts["model.onnx"]) // 2]),
            "no model": with_parts(model=b"nonsense"),
            "an empty model": with_parts(model=b""),
            "another version's model": with_parts(model=foreign["model.onnx"]),
            "another version's index": {
                name: foreign[name] if name.startswith("path_") else part for name, part in parts.items()
            },
            "another version's vectors": with_parts(item_vectors=foreign["item_vectors.npy"]),
            "another version's golden queries": with_parts(golden=foreign["golden.json"]),
            "shuffled vectors": with_parts(item_vectors=npy(rng.permutation(vectors))),
            "shifted path lists": with_parts(path_items=npy(np.roll(index.path_items, 7))),
            "shifted ids": with_parts(path_ids=npy(index.path_ids + 1)),
            "an item index too large": with_parts(path_items=npy(out_of_range)),
            "offsets that fall": with_parts(path_offsets=npy(index.path_offsets[::-1])),
            "a NaN vector": with_parts(item_vectors=with_value(vectors, np.nan)),
            "an infinite vector": with_parts(item_vectors=with_value(vectors, np.inf)),
            "a NaN bias": with_parts(item_bias=with_value(bias, np.nan)),
            "vectors of float32": with_parts(item_vectors=npy(vectors.astype(np.float32))),
            "ids of int32": with_parts(item_ids=npy(np.arange(manifest.items, dtype=np.int32))),
            "a vector too few": with_parts(item_vectors=npy(vectors[:-1])),
            "a vector too many": with_parts(item_vectors=npy(np.concatenate([vectors, vectors[:1]]))),
            "a bias too few": with_parts(item_bias=npy(bias[:-1])),
            "ids twice": with_parts(item_ids=npy(np.zeros(manifest.items, np.int64))),
            "pickled ids": with_parts(item_ids=_pickled(manifest.items)),
            "a header of 40 TB": with_parts(item_vectors=_immense()),
            "no golden queries": with_parts(golden=b"{}"),
            "golden queries that are none": with_parts(golden=b"[1, 2]"),
            "deep JSON": with_parts(golden=b"[" * 100_000),
            "a NaN in the reranker": with_parts(reranker=json.dumps(reranker).encode()),
            "another reranker": with_parts(reranker=b'{"kind": "lr", "weights": {"clicks": 1}, "intercept": 0}'),
            "no facts about new items": with_parts(placing=b"{}"),
            "facts about new items of another size": with_parts(
                placing=b'{"users": [0], "matrix": [[1]], "items": [0], "length": 1, "bias": 0}'
            ),
            "a late item that is not there": with_parts(late_items=npy(np.array([manifest.items], np.int32))),
            "late items without neighbours": with_parts(late_items=npy(np.array([0], np.int32))),
            "a neighbour that is not there": with_parts(neighbours=npy(np.full_like(near.items, manifest.items))),
            "similarities of another shape": with_parts(similarities=npy(near.similarities[:, :-1])),
            "similarities of float": with_parts(similarities=npy(near.similarities.astype(np.float32))),
            "an end too few": with_parts(item_ends=npy(np.array(index.ends)[:-1])),
            "records of an item too many": with_parts(item_since=npy(np.zeros(manifest.items + 1, np.int64))),
            "attributes that are none": with_parts(attributes=b"[3]"),
            "attributes of an item too few": with_parts(
                attribute_codes=npy(np.zeros((manifest.items - 1, 0), np.int32))
            ),
            "titles that end before they begin": with_parts(title_offsets=npy(np.arange(manifest.items + 1)[::-1])),
            "features of another size": with_parts(feature_vectors=npy(np.zeros((1, 2), np.float16))),
            "no weights": {name: part for name, part in parts.items() if name != "weights.safetensors"},
            "a context it has not": with_parts(
                context=b'{"features": [{"name": "x", "kind": "category", "values": ["y"]}]}'
            ),
            "a broken context": with_parts(context=b'{"features": 3}'),
            "a feature twice": with_parts(context=b'{"features": [%s, %s]}' % (_X, _X)),
            "a scale of 0": with_parts(context=b'{"features": [{"name": "x", "kind": "number", "mean": 0, "std": 0}]}'),
            "no item vectors": {name: part for name, part in parts.items() if name != "item_vectors.npy"},
            "a part too many": parts | {"extra.npy": npy(np.zeros(3))},
        }.items()
    }
    wrong_facts: dict[str, dict[str, Any]] = {
        "a newer format": {"format": 99},
        "no format": {"format": None},
        "an item fewer in the manifest": {"items": manifest.items - 1},
        "a path fewer in the manifest": with_structure(paths=manifest.structure["paths"] - 1),
        "another kind": {"kind": "pyramid"},
        "a fact too many": with_structure(colour=1),
        "another depth": with_structure(depth=manifest.structure["depth"] + 1),
        "another width": with_structure(width=manifest.structure["width"] + 1),
        "another embedding in the manifest": {"embedding": 2 * manifest.embedding},
        "a beam of 0": with_structure(beam=0),
        "a beam beyond the widest": with_structure(beam=manifest.structure["max_beam"] + 1),
        "a history of a billion": {"history": 10**9},
        "a k that is text": {"k": "5"},
        "paths read to depth -1": with_structure(per_path=-1),
        "a time that is none": {"created": 5},
    }
    return wrong_parts | {description: (parts, changed) for description, changed in wrong_facts.items()}


def write_version(versions: Path, counter: int, like: Manifest, parts: Parts, facts: dict[str, Any]) -> str:
    """Write a version folder with right digests, even if its content is wrong. Returns the version's name."""
    infos = {name: PartInfo(len(part), sha256(part)) for name, part in sorted(parts.items())}
    digest = fingerprint(infos)
    name = f"v{counter}-{digest[:12]}"
    manifest = dataclasses.replace(like, parts=infos, fingerprint=digest, version=name, **facts)
    folder = versions / name
    folder.mkdir()
    for part, content in parts.items():
        (folder / part).write_bytes(content)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return name


def _model(version: Version) -> onnx.ModelProto:
    return onnx.load_from_string(bytes(version.parts["model.onnx"]))


def _poisoned(version: Version, value: float) -> bytes:
    model = _model(version)
    (tensor,) = [tensor for tensor in model.graph.initializer if "encoder.pooled" in tensor.name]
    tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), value, np.float32), tensor.name))
    return bytes(model.SerializeToString())


def _foreign(version: Version) -> bytes:
    model = _model(version)
    model.graph.node[0].domain = "com.example"
    return bytes(model.SerializeToString())


def _external(version: Version) -> bytes:
    """A model whose weights are to be read from another file."""
    model = _model(version)
    onnx.external_data_helper.convert_model_to_external_data(model, location="secret.bin", size_threshold=0)
    for tensor in model.graph.initializer:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
    return bytes(model.SerializeToString())


def _graph(nodes: list[Any], types: tuple[int, int, int]) -> bytes:
    """A model of these nodes, with the inputs and outputs of a version's model."""
    inputs = [
        helper.make_tensor_value_info("history", TensorProto.FLOAT16, ["B", "T", 16]),
        helper.make_tensor_value_info("length", TensorProto.INT64, ["B"]),
        helper.make_tensor_value_info("categories", TensorProto.INT64, ["B", 0]),
        helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["B", 0]),
        helper.make_tensor_value_info("beam", TensorProto.INT64, []),
        helper.make_tensor_value_info("trie", TensorProto.INT32, ["R", 6]),
    ]
    names = "user", "paths", "path_log_probs"
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, types, strict=True)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return bytes(model.SerializeToString())


def _bomb() -> bytes:
    """A model of a few hundred bytes that asks for 4 billion floats when it runs."""
    size = helper.make_tensor("size", TensorProto.INT64, [1], [4_000_000_000])
    nodes = [
        helper.make_node("Constant", [], ["size"], value=size),
        helper.make_node("ConstantOfShape", ["size"], ["user"]),
        helper.make_node("Identity", ["length"], ["paths"]),
        helper.make_node("Identity", ["numbers"], ["path_log_probs"]),
    ]
    return _graph(nodes, (TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT))


def _constant() -> bytes:
    nodes = [
        helper.make_node("Identity", ["history"], ["user"]),
        helper.make_node("Identity", ["length"], ["paths"]),
        helper.make_node("Identity", ["numbers"], ["path_log_probs"]),
    ]
    return _graph(nodes, (TensorProto.FLOAT16, TensorProto.INT64, TensorProto.FLOAT))


def endless() -> bytes:
    """A model whose loop runs 2^62 times."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["sum", "sum"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Constant", [], ["rounds"], value=helper.make_tensor("r", TensorProto.INT64, [], [2**62])),
        helper.make_node("Constant", [], ["true"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True])),
        helper.make_node("Cast", ["history"], ["start"], to=TensorProto.FLOAT),
        helper.make_node("Loop", ["rounds", "true", "start"], ["user"], body=body),
        helper.make_node("Identity", ["length"], ["paths"]),
        helper.make_node("Identity", ["numbers"], ["path_log_probs"]),
    ]
    return _graph(nodes, (TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT))


def _pickled(items: int) -> bytes:
    """An array of objects, which numpy would unpickle if allow_pickle were set."""
    import io

    file = io.BytesIO()
    np.save(file, np.array([str(i) for i in range(items)], dtype=object), allow_pickle=True)
    return file.getvalue()


def _immense() -> bytes:
    """An array file whose header claims ten billion vectors, followed by a hundred bytes."""
    import io

    file = io.BytesIO()
    header = {"descr": "<f2", "fortran_order": False, "shape": (10**10, 2048)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(100)
