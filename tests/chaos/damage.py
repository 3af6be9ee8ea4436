"""Versions that must not be served: damaged where they are stored, or published whole with something wrong in them."""

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
    """`count` times what a disk, a copy or a hand may do to a version's files: what it is, and the files that change.

    Of each, an empty value is a file cut to nothing and a missing one stays. others: another version's folder.
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
    """By what is wrong: all parts, and the fields of the manifest that are not `version`'s. All digests will be right.

    other: a version of other training on the same items.
    """
    parts = {name: bytes(part) for name, part in version.parts.items()}
    foreign = {name: bytes(part) for name, part in other.parts.items()}
    index, manifest = PathIndex.of(version), version.manifest
    vectors, bias = np.array(index.item_vectors), np.array(index.item_bias)
    rng = np.random.default_rng(0)

    def having(**changed: bytes) -> Parts:
        endings = {name.split(".")[0]: name for name in parts}
        return parts | {endings[name]: content for name, content in changed.items()}

    def own(**changed: Any) -> dict[str, Any]:
        return {"structure": {**manifest.structure, **changed}}

    def put(array: Any, value: float) -> bytes:
        changed = array.copy()
        changed.flat[len(changed) // 2] = value
        return npy(changed)

    reranker = json.loads(parts["reranker.json"])
    reranker["weights"]["logit"] = float("nan")
    out_of_range = np.array(index.path_items)
    out_of_range[3] = manifest.items
    found: dict[str, tuple[Parts, dict[str, Any]]] = {
        what: (changed, {})
        for what, changed in {
            "NaN weights": having(model=_poisoned(version, np.nan)),
            "infinite weights": having(model=_poisoned(version, np.inf)),
            "foreign operator": having(model=_foreign(version)),
            "external data": having(model=_external(version)),
            "a model that asks for 16 GB": having(model=_bomb()),
            "a model that answers other things": having(model=_constant()),
            "half a model": having(model=parts["model.onnx"][: len(parts["model.onnx"]) // 2]),
            "no model": having(model=b"nonsense"),
            "an empty model": having(model=b""),
            "another version's model": having(model=foreign["model.onnx"]),
            "another version's index": {
                name: foreign[name] if name.startswith("path_") else part for name, part in parts.items()
            },
            "another version's vectors": having(item_vectors=foreign["item_vectors.npy"]),
            "another version's golden queries": having(golden=foreign["golden.json"]),
            "shuffled vectors": having(item_vectors=npy(rng.permutation(vectors))),
            "shifted path lists": having(path_items=npy(np.roll(index.path_items, 7))),
            "shifted ids": having(path_ids=npy(index.path_ids + 1)),
            "an item index too large": having(path_items=npy(out_of_range)),
            "offsets that fall": having(path_offsets=npy(index.path_offsets[::-1])),
            "a NaN vector": having(item_vectors=put(vectors, np.nan)),
            "an infinite vector": having(item_vectors=put(vectors, np.inf)),
            "a NaN bias": having(item_bias=put(bias, np.nan)),
            "vectors of float32": having(item_vectors=npy(vectors.astype(np.float32))),
            "ids of int32": having(item_ids=npy(np.arange(manifest.items, dtype=np.int32))),
            "a vector too few": having(item_vectors=npy(vectors[:-1])),
            "a vector too many": having(item_vectors=npy(np.concatenate([vectors, vectors[:1]]))),
            "a bias too few": having(item_bias=npy(bias[:-1])),
            "ids twice": having(item_ids=npy(np.zeros(manifest.items, np.int64))),
            "pickled ids": having(item_ids=_pickled(manifest.items)),
            "a header of 40 TB": having(item_vectors=_immense()),
            "no golden queries": having(golden=b"{}"),
            "golden queries that are none": having(golden=b"[1, 2]"),
            "deep JSON": having(golden=b"[" * 100_000),
            "a NaN in the reranker": having(reranker=json.dumps(reranker).encode()),
            "another reranker": having(reranker=b'{"kind": "lr", "weights": {"clicks": 1}, "intercept": 0}'),
            "a context it has not": having(
                context=b'{"features": [{"name": "x", "kind": "category", "values": ["y"]}]}'
            ),
            "a broken context": having(context=b'{"features": 3}'),
            "a feature twice": having(context=b'{"features": [%s, %s]}' % (_X, _X)),
            "a scale of 0": having(context=b'{"features": [{"name": "x", "kind": "number", "mean": 0, "std": 0}]}'),
            "no item vectors": {name: part for name, part in parts.items() if name != "item_vectors.npy"},
            "a part too many": parts | {"extra.npy": npy(np.zeros(3))},
        }.items()
    }
    facts: dict[str, dict[str, Any]] = {
        "a newer format": {"format": 99},
        "no format": {"format": None},
        "an item fewer in the manifest": {"items": manifest.items - 1},
        "a path fewer in the manifest": own(paths=manifest.structure["paths"] - 1),
        "another kind": {"kind": "pyramid"},
        "a fact too many": own(colour=1),
        "another depth": own(depth=manifest.structure["depth"] + 1),
        "another width": own(width=manifest.structure["width"] + 1),
        "another embedding in the manifest": {"embedding": 2 * manifest.embedding},
        "a beam of 0": own(beam=0),
        "a beam beyond the widest": own(beam=manifest.structure["max_beam"] + 1),
        "a history of a billion": {"history": 10**9},
        "a k that is text": {"k": "5"},
        "paths read to depth -1": own(per_path=-1),
        "a time that is none": {"created": 5},
    }
    return found | {what: (parts, changed) for what, changed in facts.items()}


def write_version(versions: Path, counter: int, like: Manifest, parts: Parts, facts: dict[str, Any]) -> str:
    """A version folder whose digests are right, whatever is in it. Returns its name."""
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
    for tensor in model.graph.initializer:
        if "encoder.project" in tensor.name:
            array = np.full(tuple(tensor.dims), value, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return bytes(model.SerializeToString())


def _foreign(version: Version) -> bytes:
    model = _model(version)
    model.graph.node[0].domain = "com.example"
    return bytes(model.SerializeToString())


def _external(version: Version) -> bytes:
    """Its weights are to be read from another file."""
    model = _model(version)
    onnx.external_data_helper.convert_model_to_external_data(model, location="secret.bin", size_threshold=0)
    for tensor in model.graph.initializer:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
    return bytes(model.SerializeToString())


def _graph(nodes: list[Any], types: tuple[int, int, int]) -> bytes:
    """A model with a version's inputs and outputs and these nodes."""
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
    """A few hundred bytes that ask for 4 billion floats at the first run."""
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
    """A model that counts to 2^62."""
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
    """An array of objects, which numpy would unpickle if it were let."""
    import io

    file = io.BytesIO()
    np.save(file, np.array([str(i) for i in range(items)], dtype=object), allow_pickle=True)
    return file.getvalue()


def _immense() -> bytes:
    """A header that claims ten billion vectors, and a hundred bytes."""
    import io

    file = io.BytesIO()
    header = {"descr": "<f2", "fortran_order": False, "shape": (10**10, 2048)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(100)
