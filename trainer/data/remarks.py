"""Remarks to print before a long training: how the files were read, and which inputs are not used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from index_store.manifest import Manifest
from retrieval.context import Category
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.files import read_table
from trainer.progress import counted


def remarks(dataset: Dataset, config: TrainConfig, users: Path | None, current: Manifest | None) -> Iterator[str]:
    """One message per remark. users: the users file, if given. current: the manifest of the current version."""
    yield from dataset.notes
    if dataset.context.schema.features:
        yield "context: " + "; ".join(
            f"{feature.name} is a category of {counted(len(feature.values), 'value')}"
            if isinstance(feature, Category)
            else f"{feature.name} is a number, {feature.mean:.4g} on average"
            for feature in dataset.context.schema.features
        )
    if dataset.attributes:
        table = dataset.attributes.table
        without = int(((table.codes < 0).all(axis=1) & (table.offsets[1:] == table.offsets[:-1])).sum())
        values = counted(table.schema.starts[-1], "value")
        words = f" and {counted(len(table.schema.words), 'word')} of titles" if len(table.titles) else ""
        yield f"attributes: {values}{words} in all; {counted(without, 'item')} of {len(dataset.item_ids)} without any"
    if dataset.impressions:
        yield f"{counted(len(dataset.impressions.items), 'row')} shown and not clicked ({config.clicked})"
    if users and not config.context:
        columns = [name for name in read_table(users, ()).names if name not in {"", "user_id"}]
        yield f"--users {users}: not used, because `context` names no column; " + (
            f"to use it, --set context=column,... of {', '.join(columns)}" if columns else "it has only user_id"
        )
    yield from config.without_effect(len(dataset.item_ids))
    if current:
        now = "string" if dataset.item_ids.dtype == object else "integer"
        before = "string" if "item_ids.json" in current.parts else "integer"
        if now != before:
            yield (
                f"warning: item ids are {now}s now, but {before}s in the current version {current.version}, so the "
                f"service will answer with {now}s; --set item_id={before} keeps {before}s"
            )
