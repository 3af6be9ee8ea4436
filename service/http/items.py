"""The routes that change the catalogue, and their bodies."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel, FailFast, Field

from retrieval.changes import Delete
from service.http.guards import WriteRoute
from service.http.problems import described
from service.http.values import Body, ItemId

ITEMS = 1000  # in one request

#: Only for the OpenAPI document; WriteRoute checks the token.
TOKEN = HTTPBearer(auto_error=False, scheme_name="WriteToken", description="DR_WRITE_TOKEN")

router = APIRouter(route_class=WriteRoute, dependencies=[Depends(TOKEN)], tags=["catalogue"])


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
    "/v1/items:delete",
    response_model=DeleteResponse,
    responses=described(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
)
async def delete(body: DeleteRequest, request: Request) -> dict[str, Any]:
    """Take items out of the catalogue: no answer has them any more, in no version, until they are put again.

    Answered when the record is durable and this replica has applied it; other replicas follow within 0.3 s.
    """
    searcher = request.state.reloader.retriever.searcher
    live = {item: searcher.is_live(item) for item in body.item_ids}
    unknown = sum(not live[item] for item in body.item_ids)
    seq = await request.state.writer.append([Delete(item) for item, known in live.items() if known])
    return {"seq": seq, "unknown": unknown}
