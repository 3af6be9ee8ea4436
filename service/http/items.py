"""The routes that change the catalogue, and their bodies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel, FailFast, Field

from retrieval.changes import Change, Delete, Evidence, Patch, Put
from retrieval.query import BadQuery, Limits
from retrieval.searcher import Searcher
from retrieval.vocabulary import Vocabulary
from service.errors import Overloaded
from service.http.guards import WriteRoute
from service.http.problems import described
from service.http.values import EXACT, Body, ItemId, integer

ITEMS = 1000  # in one request
CLICKED_BY = 100  # histories of an item
USERS = 5000  # histories, or items that an item is like, in one request

#: Only for the OpenAPI document; WriteRoute checks the token.
TOKEN = HTTPBearer(auto_error=False, scheme_name="WriteToken", description="DR_WRITE_TOKEN")

router = APIRouter(route_class=WriteRoute, dependencies=[Depends(TOKEN)], tags=["catalogue"])


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
    ids = _check(body, retriever.searcher.vocabulary)
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


def _check(body: PutRequest, vocabulary: Vocabulary) -> list[ItemId]:
    """The kept ids of the items.

    Raises BadQuery for an id of the wrong kind, one that is named twice, an expiry in the past, or too much evidence.
    """
    ids: list[ItemId] = []
    now = time.time() * 1000
    for place, item in enumerate(body.items):
        item_id = vocabulary.named(item.item_id)
        if item_id is None:
            kind = "an integer" if vocabulary.kind == "integer" else "a string that is not blank"
            raise BadQuery(f"items.{place}.item_id: expected {kind}, as all ids of this catalogue are")
        ids.append(item_id)
        if item.expires and item.expires <= now:
            raise BadQuery(f"items.{place}.expires: expected a time in the future, in ms since 1970")
    if len(set(ids)) < len(ids):
        raise BadQuery("items: an item is named twice; send one entry for it")
    if sum(len(item.clicked_by) or len(item.like) for item in body.items) > USERS:
        raise BadQuery(f"items: expected at most {USERS} histories and liked items together; send several requests")
    return ids


def _changes(
    searcher: Searcher, ids: Sequence[ItemId], items: Sequence[NewItem]
) -> tuple[list[Change], list[dict[str, Any]]]:
    """A put for each item that has to be placed, a patch for the others; and the entries of the answer."""
    kept = [searcher.is_in_catalogue(i) and not (m.clicked_by or m.like) for i, m in zip(ids, items, strict=True)]
    evidence = [Evidence(item.clicked_by, item.like) for item, known in zip(items, kept, strict=True) if not known]
    placements = iter(zip(evidence, searcher.place(evidence), strict=True))
    changes: list[Change] = []
    placed = []
    for item_id, item, known in zip(ids, items, kept, strict=True):
        if known:
            if item.expires is not None or not searcher.is_live(item_id):  # one that has expired comes back
                changes.append(Patch(item_id, expires=item.expires or 0))
            paths, placed_by = searcher.paths_of(item_id), "kept"
        else:
            why, placement = next(placements)
            changes.append(Put(item_id, placement, why, item.expires or None))
            paths, placed_by = list(placement.paths), placement.placed_by
        placed.append({"item_id": item_id, "paths": searcher.facts.nodes(paths), "placed_by": placed_by})
    return changes, placed


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
