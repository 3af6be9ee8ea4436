"""The routes that change the catalogue, and their bodies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel, FailFast, Field

from retrieval.attributes import TITLE
from retrieval.changes import Change, Delete, Evidence, Patch, Put
from retrieval.query import BadQuery, Limits
from retrieval.searcher import Searcher
from retrieval.vocabulary import Vocabulary
from service.errors import ItemNotFound, Overloaded
from service.http.guards import Route, WriteRoute
from service.http.problems import described
from service.http.values import EXACT, Body, ItemId, integer

ITEMS = 1000  # in one request
CLICKED_BY = 100  # histories of an item
USERS = 5000  # histories, or items that an item is like, in one request

#: Only for the OpenAPI document; WriteRoute checks the token.
TOKEN = HTTPBearer(auto_error=False, scheme_name="WriteToken", description="DR_WRITE_TOKEN")

router = APIRouter(route_class=WriteRoute, dependencies=[Depends(TOKEN)], tags=["catalogue"])
reading = APIRouter(route_class=Route, tags=["catalogue"])


History = Annotated[list[ItemId], FailFast(), Field(max_length=Limits.HISTORY)]


class NewItem(Body):
    """An item, and what is known about it."""

    item_id: ItemId
    clicked_by: Annotated[list[History], FailFast()] = Field(
        [],
        max_length=CLICKED_BY,
        description="histories of users who clicked it: item ids, oldest first, without the item",
    )
    like: Annotated[list[ItemId], FailFast()] = Field(
        [], max_length=CLICKED_BY, description="items that it is like; used if no history has a known item"
    )
    attributes: dict[str, Any] = Field(
        {},
        max_length=Limits.FEATURES,
        description="as the items file of the training names them, and `title`; null takes one away. If neither "
        "clicked_by nor like helps, a new item is placed by them",
    )
    expires: Annotated[int, integer(0, EXACT)] | None = Field(
        None,
        description="ms since 1970; from then on no answer has it. 0: an item that exists does not expire any more",
    )


class PutRequest(Body):
    """The items to put into the catalogue, or to change."""

    items: Annotated[list[NewItem], FailFast()] = Field(min_length=1, max_length=ITEMS)


class PlacedItem(BaseModel):
    """Where an item is found now: the nodes of its paths.

    placed_by: the evidence that was used. kept: the item exists and is where it was. none: nothing known helps; the
    item is in the catalogue, but only a search of the whole catalogue finds it.
    """

    item_id: ItemId
    paths: list[list[int]]
    placed_by: Literal["clicks", "like", "attributes", "kept", "none"]


class PutResponse(BaseModel):
    """The record that has the items: an answer whose `seq` is at least this may have them."""

    seq: int
    items: list[PlacedItem]


class PathOfItem(BaseModel):
    """A path that has an item. position: from 1 on; a request reads the first `per_path` items of a path, of `size`."""

    nodes: list[int]
    position: int
    size: int


class Neighbour(BaseModel):
    """An item that the same users click. similarity: 0 to 1."""

    item_id: ItemId
    similarity: float


class ItemResponse(BaseModel):
    """What the catalogue has about an item.

    live: false if it was deleted or has expired. since: when it was put, in ms since 1970; null if the version was
    trained with it. Times among the attributes are in ms since 1970 too.
    """

    item_id: ItemId
    live: bool
    since: int | None
    attributes: dict[str, Any]
    title: str | None
    paths: list[PathOfItem]
    neighbours: list[Neighbour]


class DeleteRequest(Body):
    """The items to delete."""

    item_ids: Annotated[list[ItemId], FailFast()] = Field(min_length=1, max_length=ITEMS, description="item ids")


class DeleteResponse(BaseModel):
    """The record that deletes the items: an answer whose `seq` is at least this has none of them.

    unknown: how many of the ids are not in the catalogue, or not any more.
    """

    seq: int
    unknown: int


@router.post(
    "/v1/items", response_model=PutResponse, responses=described(400, 401, 403, 408, 413, 415, 422, 429, 500, 503)
)
async def put(body: PutRequest, request: Request) -> dict[str, Any]:
    """Put items into the catalogue. An item that exists gets another place if something new is known about it.

    Answered when the record is durable and this replica has applied it; other replicas follow within 0.3 s.
    """
    retriever = request.state.reloader.retriever
    writer = request.state.writer
    ids = _check(body, retriever.searcher)
    if len(ids) > retriever.room - writer.reserved:
        raise Overloaded("there is no room for new items; make a new version, or raise DR_NEW_ITEMS")
    writer.reserved += len(ids)
    try:
        await request.state.reloader.follower.advance()  # what was changed elsewhere decides what is kept
        loop = asyncio.get_running_loop()
        changes, placed = await loop.run_in_executor(writer.placing, _changes, retriever.searcher, ids, body.items)
        return {"seq": await writer.append(changes), "items": placed}
    finally:
        writer.reserved -= len(ids)


def _check(body: PutRequest, searcher: Searcher) -> list[ItemId]:
    """The kept ids of the items.

    Raises BadQuery for an id of the wrong kind, one that is named twice, an attribute that the version does not have or
    of the wrong type, an expiry in the past, or too much evidence.
    """
    vocabulary, schema = searcher.vocabulary, searcher.descriptions.schema
    ids: list[ItemId] = []
    now = time.time() * 1000
    for place, item in enumerate(body.items):
        ids.append(named(vocabulary, item.item_id, f"items.{place}.item_id"))
        if item.attributes and (problem := schema.problem(item.attributes)):
            raise BadQuery(f"items.{place}.attributes: {problem}")
        if item.expires and item.expires <= now:
            raise BadQuery(f"items.{place}.expires: expected a time in the future, in ms since 1970")
    if len(set(ids)) < len(ids):
        raise BadQuery("items: an item is named twice; send one entry for it")
    if sum(len(item.clicked_by) or len(item.like) for item in body.items) > USERS:
        raise BadQuery(f"items: expected at most {USERS} histories and liked items together; send several requests")
    return ids


def named(vocabulary: Vocabulary, item: int | str, field: str) -> ItemId:
    """The kept id of the item. Raises BadQuery if it is of the wrong kind; the message names the field."""
    item_id = vocabulary.named(item)
    if item_id is None:
        kind = "an integer" if vocabulary.kind == "integer" else "a string that is not blank"
        raise BadQuery(f"{field}: expected {kind}, as all ids of this catalogue are")
    return item_id


def _changes(
    searcher: Searcher, ids: Sequence[ItemId], items: Sequence[NewItem]
) -> tuple[list[Change], list[dict[str, Any]]]:
    """A put for each item that has to be placed, a patch for the others; and the entries of the answer."""
    kept = [searcher.is_in_catalogue(i) and not (m.clicked_by or m.like) for i, m in zip(ids, items, strict=True)]
    schema, now = searcher.descriptions.schema, int(1000 * time.time())
    evidence = [
        Evidence(item.clicked_by, item.like, schema.normal(item.attributes))
        for item, known in zip(items, kept, strict=True)
        if not known
    ]
    placements = iter(zip(evidence, searcher.place(evidence), strict=True))
    changes: list[Change] = []
    placed = []
    for item_id, item, known in zip(ids, items, kept, strict=True):
        if known:
            described = schema.normal(item.attributes)
            if not searcher.is_live(item_id):  # it has expired, and another version may have forgotten it
                why = Evidence(attributes={**searcher.descriptions.of(item_id), **described})
                changes.append(Put(item_id, searcher.where(item_id), why, item.expires or None, now))
            elif item.expires is not None or described:
                changes.append(Patch(item_id, expires=item.expires, attributes=described))
            paths, placed_by = searcher.paths_of(item_id), "kept"
        else:
            why, placement = next(placements)
            changes.append(Put(item_id, placement, why, item.expires or None, now))
            paths, placed_by = list(placement.paths), placement.placed_by
        placed.append({"item_id": item_id, "paths": searcher.facts.nodes(paths), "placed_by": placed_by})
    return changes, placed


@reading.get("/v1/items/{item_id:path}", response_model=ItemResponse, responses=described(404, 500, 503))
async def show(item_id: str, request: Request) -> dict[str, Any]:
    """What the catalogue has about an item: whether it is live, its attributes, and where it is found."""
    searcher = request.state.reloader.retriever.searcher
    return await asyncio.to_thread(_shown, searcher, item_id)


def _shown(searcher: Searcher, text: str) -> dict[str, Any]:
    vocabulary, index = searcher.vocabulary, searcher.structure.index
    known = vocabulary.indices([text])
    if not len(known):
        raise ItemNotFound("no item of the catalogue has this id")
    (name,), item = vocabulary.names(known), int(known[0])
    values = dict(searcher.descriptions.of(name))
    places = index.places_of(item) if searcher.is_live(name) else []
    items, similarities = index.neighbours_of(item)
    return {
        "item_id": name,
        "live": searcher.is_live(name),
        "since": int(index.since(known)[0]) or None,
        "title": values.pop(TITLE, None),
        "attributes": values,
        "paths": [
            {"nodes": nodes, "position": position, "size": size}
            for nodes, (_, position, size) in zip(
                searcher.facts.nodes([path for path, _, _ in places]), places, strict=True
            )
        ],
        "neighbours": [
            {"item_id": other, "similarity": round(similarity, 4)}
            for other, similarity in zip(vocabulary.names(items.astype(np.int64)), similarities.tolist(), strict=True)
        ],
    }


@router.post(
    "/v1/items:delete",
    response_model=DeleteResponse,
    responses=described(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
)
async def delete(body: DeleteRequest, request: Request) -> dict[str, Any]:
    """Take items out of the catalogue: no answer has them any more, in no version, until they are put again.

    Answered when the record is durable and this replica has applied it; other replicas follow within 0.3 s.
    """
    searcher = request.state.reloader.retriever.searcher
    ids = [searcher.vocabulary.named(item) for item in body.item_ids]
    unknown = sum(item is None or not searcher.is_live(item) for item in ids)
    # Items that are unknown here may have been put elsewhere a moment ago, so their deletes are written too.
    changes = [Delete(item) for item in dict.fromkeys(ids) if item is not None]
    return {"seq": await request.state.writer.append(changes), "unknown": unknown}
