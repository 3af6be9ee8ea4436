"""The route that takes events, from which the trainer learns."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, FailFast, Field

from retrieval.query import Limits
from service.http.guards import WriteRoute
from service.http.items import TOKEN, named
from service.http.problems import described
from service.http.values import EXACT, Body, Context, ItemId, integer

EVENTS = 1000  # in one request

router = APIRouter(route_class=WriteRoute, dependencies=[Depends(TOKEN)], tags=["catalogue"])


class Event(Body):
    """A user with this history and context has clicked an item."""

    item_id: ItemId
    history: Annotated[list[ItemId], FailFast()] = Field(
        [], max_length=Limits.HISTORY, description="what the user clicked before, oldest first, without the item"
    )
    context: Context = Field({}, description="the user's features, as in a retrieve request")
    time: Annotated[int, integer(0, EXACT)] | None = Field(None, description="of the click, in ms since 1970")


class EventsRequest(Body):
    """Events."""

    events: Annotated[list[Event], FailFast()] = Field(
        min_length=1, max_length=EVENTS, description="what users clicked, of one user in order of time"
    )


class EventsResponse(BaseModel):
    """How many events will be learned from."""

    accepted: int


@router.post(
    "/v1/events",
    status_code=202,
    response_model=EventsResponse,
    responses=described(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
)
async def events(body: EventsRequest, request: Request) -> dict[str, Any]:
    """Tell what users clicked. Answered when the events are durable; `dr-trainer follow` learns from them later."""
    vocabulary = request.state.reloader.retriever.searcher.vocabulary
    for place, event in enumerate(body.events):
        named(vocabulary, event.item_id, f"events.{place}.item_id")
    await request.state.event_log.append([event.model_dump(exclude_defaults=True) for event in body.events])
    return {"accepted": len(body.events)}
