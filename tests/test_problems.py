"""What is wrong with a body is found and said briefly, however much is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.api import BatchRequest

#: Each of nearly a megabyte. Every mistake that is found becomes two objects: with all of them, hundreds of megabytes.
WRONG: dict[str, list[dict[str, Any]]] = {
    "excluded ids": [{"exclude": [[]] * 10_000}] * 34,
    "ids": [{"history": [[]] * 1000}] * 64,
    "fields": [{f"field{i}": 1 for i in range(60_000)}],
    "features": [{"context": {f"feature{i}": [] for i in range(40_000)}}],
    "features of each": [{"context": {f"feature{i}": [] for i in range(64)}}] * 64,
}


@pytest.mark.parametrize("what", WRONG)
def test_of_a_million_mistakes_few_are_looked_at(what: str) -> None:
    """Those of one user's features at most."""
    with pytest.raises(ValidationError) as found:
        BatchRequest.model_validate({"requests": WRONG[what]})

    assert found.value.error_count() <= 64 * 5  # an error a type that a feature may have
