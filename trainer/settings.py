"""The settings of a training run in groups, with their bounds and defaults.

Symbols are the paper's (arXiv 2007.07203v2): D layers, K nodes a layer, J paths an item, S candidate paths, V items.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from retrieval.paths.trie import MAX_ENTRIES
from retrieval.query import Limits
from trainer.errors import ConfigError
from trainer.mistakes import mistake

#: In a catalogue of more items than this, a gradient step changes only the vectors of the items that it has read. In a
#: smaller catalogue, Adam changes all item vectors. With 50,000 items that gives slightly higher recall; with 1.5
#: million items it would make an epoch ten times longer.
DENSE_ITEMS = 200_000
#: Epochs with epochs = auto: the most of the encoder, and those of the path layers.
ENCODER_EPOCHS, PATH_EPOCHS = 100, 12
#: The least K that width = "auto" gives.
MIN_WIDTH = 10

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Auto = Literal["auto"]


class Group(BaseModel):
    """Settings that belong together. Values are not converted: "3", 3.0 and true are refused as whole numbers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Turn pydantic's ValidationError into a ConfigError with a line for each mistake."""
        for name, value in values.items():
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ConfigError(f"{name}: expected a number that fits in 64 bits")
        try:
            return handler(values)
        except ValidationError as error:
            wrong = dict.fromkeys(str(entry["loc"][0]) for entry in error.errors())
        settings = cls.model_json_schema()["properties"]
        raise ConfigError("\n".join(mistake(name, values[name], settings) for name in wrong))


class Structure(Group):
    """Structure. A path takes one of K nodes in each of D layers; K^D paths exist, and each item sits on J of them."""

    depth: Count = Field(3, description="D, layers of a path")
    width: Count | Auto = Field(
        "auto", description=f"K, nodes of a layer; auto: the smallest K with K^D >= 5 V J, at least {MIN_WIDTH}"
    )
    paths_per_item: Count = Field(3, description="J, paths of an item")

    @model_validator(mode="after")
    def _paths_exist(self) -> Self:
        if self.width != "auto":
            self._check_paths(self.width)
        elif self.depth > 62 or MIN_WIDTH**self.depth >= 2**63:
            raise ConfigError(f"width, depth: {MIN_WIDTH}^{self.depth} paths do not fit in int64; make depth smaller")
        return self

    def _check_paths(self, width: int) -> None:
        if self.depth > 62 or width**self.depth >= 2**63:
            raise ConfigError(f"width, depth: {width}^{self.depth} paths do not fit in int64; make one smaller")
        if self.paths_per_item > width**self.depth:
            raise ConfigError(
                f"paths_per_item: {self.paths_per_item} different paths asked for, "
                f"but width^depth = {width**self.depth} exist"
            )

    def resolve_width(self, items: int) -> int:
        """K for a catalogue of V items.

        auto: the smallest K with K^D >= 5 V J, and at least 10. Random paths then seldom collide, so the tree, or the
        penalty of a reassignment, decides how many paths are used. Raises ConfigError if the trie of the paths would
        be too large.
        """
        if self.width != "auto":
            width = self.width
        else:
            width = max(MIN_WIDTH, math.ceil((5 * items * self.paths_per_item) ** (1 / self.depth)))
            self._check_paths(width)
        rows = 1 + sum(min(width**d, items * self.paths_per_item) for d in range(self.depth))
        if rows * width > MAX_ENTRIES:
            raise ConfigError(
                f"width: the trie of the paths of {items} items would have {rows * width} entries at K = {width}; "
                f"expected at most {MAX_ENTRIES}; choose a smaller width or a smaller depth"
            )
        return width


class Network(Group):
    """Network. The encoder turns a user's history into a vector; the path layers give every path a probability."""

    encoder: Literal["lru", "gru"] = Field(
        "lru", description="how the encoder reads a history: lru, gated linear recurrences; gru, a GRU (Sec. 4.1)"
    )
    embedding: Count = Field(64, description="E, length of item and user vectors; units of the encoder")
    hidden: Count = Field(256, description="hidden units of each path layer's MLP")
    history: Annotated[int, Field(ge=1, le=Limits.HISTORY)] = Field(
        69, description="how many of the most recent items the encoder reads (Sec. 4.1)"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto",
        description="dropout rate of the encoder, at most 0.2 while the path layers learn; auto: from 0.2 with many "
        "clicks an item to 0.5 with few",
    )
    context: tuple[str, ...] = Field(
        (), description='columns of user features for the encoder: "name", "name:category" or "name:number"'
    )
    attributes: tuple[str, ...] = Field(
        (),
        description="columns of the items file, written like `context`, that say which clicked items an item without "
        "clicks is like",
    )

    def resolve_dropout(self, clicks: int, items: int) -> float:
        """The dropout rate. auto: 0.5 up to 10 clicks an item, 0.2 from 200 on; linear in their logarithm between."""
        if self.dropout != "auto":
            return self.dropout
        density = min(200.0, max(10.0, clicks / items))
        return 0.5 - 0.3 * math.log(density / 10) / math.log(200 / 10)

    @field_validator("context", "attributes", mode="before")
    @classmethod
    def _as_tuple(cls, names: Any) -> Any:
        """Make a tuple: TOML and JSON give a list, `--set context=country,age` gives a string."""
        if isinstance(names, str):
            names = list(filter(None, map(str.strip, names.split(","))))
        return tuple(names) if isinstance(names, list) else names

    @model_validator(mode="after")
    def _columns_can_be_asked_for(self) -> Self:
        for setting, columns in (("context", self.context), ("attributes", self.attributes)):
            if len(columns) > Limits.FEATURES:
                raise ConfigError(f"{setting}: expected at most {Limits.FEATURES} columns, found {len(columns)}")
            names = [column.partition(":")[0] for column in columns]
            if setting == "attributes" and "title" in names:
                raise ConfigError("attributes: leave out title; the words of titles count without being named")
            for column, name in zip(columns, names, strict=True):
                kinds = ("category", "categorical", "number")
                if not name or column not in {name, *(f"{name}:{kind}" for kind in kinds)}:
                    raise ConfigError(
                        f'{setting}: expected "column", "column:category" or "column:number", found {column!r}'
                    )
                if len(name) > Limits.FEATURE_NAME:
                    raise ConfigError(
                        f"{setting}: expected names of at most {Limits.FEATURE_NAME} characters, found {len(name)}"
                    )
                if names.count(name) > 1:
                    raise ConfigError(f"{setting}: {name} is named twice")
        return self


class GradientSteps(Group):
    """Gradient steps. First the encoder learns with a softmax head; then both are fixed and the path layers learn."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where training runs; auto: on a GPU if torch sees one"
    )
    epochs: Count | Auto = Field(
        "auto",
        description="most passes over the interactions, at least two: first the encoder learns, then the path layers; "
        f"auto: {PATH_EPOCHS} for the path layers, at most {ENCODER_EPOCHS} for the encoder",
    )
    warmup_epochs: Count | Auto = Field(
        "auto",
        description="most epochs in which the encoder learns, before there are paths; auto: two of five of `epochs`",
    )
    patience: Count = Field(
        4, description="the encoder stops learning if the NDCG of tuning users has not risen for so many epochs"
    )
    start: Literal["tree", "random"] = Field(
        "tree",
        description="the first paths: from a tree over the vectors of items and of their users, or random (Sec. 3.2)",
    )
    reassignments: Annotated[int, Field(ge=0)] = Field(
        0,
        description="M-steps, spread evenly over the epochs after the warm-up (the paper: one per epoch). With start = "
        "tree, no path gets longer than the longest; with start = random, the path layers learn by eq. (2), as in the "
        "paper",
    )
    taught: Share = Field(
        0.5,
        description="share of the path layers' targets that are drawn by the softmax head, in proportion to its "
        "squared probabilities, not from the clicks",
    )
    batch: Count | Auto = Field(
        "auto",
        description="interactions per step of the encoder; auto: a hundredth of all, from 256 to 1024. "
        "Path layers use steps of about 256",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        0.003,
        description="Adam's learning rate for the path layers; falls linearly to a tenth (each reassignment starts a "
        "new fall). The encoder learns with a third of it",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01,
        description="AdamW's decay of the encoder's matrices and vectors; without effect on item vectors in catalogues "
        f"of over {DENSE_ITEMS:,} items",
    )
    later: Share | Auto = Field(
        "auto",
        description="share of targets that are a random later item of the user instead of the next; auto: 0.5, with "
        "split = last-out 0",
    )
    full_softmax_items: Count = Field(
        10_000, description="largest catalogue for the full softmax; in larger ones the head samples negatives"
    )
    negatives: Count = Field(2000, description="negatives sampled per step, for the whole batch")

    @model_validator(mode="after")
    def _paths_have_epochs(self) -> Self:
        if self.warmup_epochs != "auto" and self.epochs != "auto" and self.warmup_epochs >= self.epochs > 1:
            raise ConfigError(
                f"warmup_epochs: expected less than epochs = {self.epochs}, or no paths would be learned; "
                f"found {self.warmup_epochs}"
            )
        return self

    def resolve_batch(self, interactions: int) -> int:
        """Interactions per step of the encoder. auto: an epoch of a small data set has about a hundred steps, if that
        is between 256 and 1024 interactions per step.
        """
        return min(1024, max(256, interactions // 100)) if self.batch == "auto" else self.batch

    def samples_negatives(self, items: int) -> bool:
        """Whether the head learns from sampled negatives instead of from all V items."""
        return items > self.full_softmax_items

    def steps_are_sparse(self, items: int) -> bool:
        """Whether a gradient step changes only the vectors of the items it has read."""
        return self.samples_negatives(items) and items > DENSE_ITEMS

    @property
    def encoder_epochs(self) -> int:
        """The most epochs in which the encoder and the head learn, before the path layers."""
        if self.epochs == "auto":
            return ENCODER_EPOCHS if self.warmup_epochs == "auto" else self.warmup_epochs
        passes = max(2, self.epochs)
        return max(1, passes * 2 // 5) if self.warmup_epochs == "auto" else min(self.warmup_epochs, passes - 1)

    @property
    def path_epochs(self) -> int:
        """The number of epochs in which the path layers learn, at least one."""
        return PATH_EPOCHS if self.epochs == "auto" else max(2, self.epochs) - self.encoder_epochs

    def reassignment_epochs(self) -> set[int]:
        """The epochs of the path layers that end with an M-step, counted from 1.

        About equally many epochs follow each M-step, the last included.
        """
        count = min(self.reassignments, self.path_epochs - 1)
        return {self.path_epochs * number // (count + 1) for number in range(1, count + 1)}


class Assignment(Group):
    """Reassignment. The M-step (Sec. 3.3) moves items to other paths; all of this needs `reassignments` above 0."""

    candidate_paths: Count = Field(80, description="S, paths with a score per item; all K^D paths if that is less")
    eta: Annotated[float, Field(gt=0, le=1)] = Field(
        0.999, description="decay of an item's scores at each further observation of the item"
    )
    alpha: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto", description="penalty factor on crowded paths; auto: a request then reads about 7.5 times k items"
    )
    sweeps: Count = Field(5, description="T, sweeps of the coordinate descent (Sec. 3.3: 3 to 5)")


class Answer(Group):
    """Answers. Defaults for requests that do not set k, beam or per_path."""

    k: Annotated[int, Field(ge=1, le=Limits.K)] = Field(
        100, description="candidates returned; a request reads at most 9 k items on average"
    )
    beam: Annotated[int, Field(ge=1, le=Limits.BEAM)] | Auto = Field(
        "auto", description="W, paths searched; auto: chosen by measurement after training"
    )
    per_path: Annotated[int, Field(ge=1, le=Limits.PER_PATH)] | Auto = Field(
        "auto", description="n, items read of a path; auto: chosen together with beam"
    )
    rerank: Literal["lr", "softmax"] = Field(
        "lr", description="method that orders the candidates: logistic regression, or the softmax head alone"
    )
    neighbours: Annotated[int, Field(ge=0, le=100)] = Field(
        16,
        description="M, most similar items of each item, and as many that follow it, by which the reranker compares "
        "candidates with the history; they take 12 M bytes an item",
    )

    @model_validator(mode="after")
    def _reads_are_allowed(self) -> Self:
        if self.beam != "auto" and self.per_path != "auto" and self.beam * self.per_path > Limits.READS:
            raise ConfigError(
                f"beam, per_path: a request may read at most {Limits.READS} items, "
                f"and {self.beam} * {self.per_path} is more"
            )
        return self


class Gate(Group):
    """Gate. An index that fails one of these checks is published only with `fit --allow-collapsed`."""

    gate_largest: Share = Field(
        0.05, description="largest share of the items on one path; 10 times k items are always allowed"
    )
    gate_entropy: Share = Field(
        0.3, description="smallest allowed entropy of the paths, relative to that of the items (log2 V)"
    )
    gate_reach: Share = Field(
        0.1,
        description="smallest allowed share of the clicked items that training users' requests read, relative to the "
        "share that the same number of random reads would reach",
    )


class Data(Group):
    """Data. How the files are read, and which users are held out for `evaluate`."""

    item_id: Literal["auto", "integer", "string"] = Field(
        "auto", description="type of item ids; auto: integer if every id in every file is one"
    )
    user_id: Literal["auto", "integer", "string"] = Field("auto", description="the same for user ids")
    min_rating: float | None = Field(None, description="interactions with a lower rating are dropped")
    strength: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="column of the interactions, such as `rating` or `weight`, with how much each click counts in the "
        "losses, at least 0",
    )
    clicked: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="column of the interactions that is 0 or false in rows that were shown and not clicked; only the "
        "reranker learns from these, and their items are in the catalogue",
    )
    min_item_interactions: Count = Field(1, description="items with fewer interactions are dropped, before users are")
    min_interactions: Count = Field(3, description="users with fewer interactions are dropped")
    split: Literal["users", "last-out"] = Field(
        "users", description="what is held out: the second half of some users' items, or the last item of every user"
    )
    test_users: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="users held out; auto: a tenth of all, at most 1,000; with last-out everybody, at most 50,000",
    )
    tuning_users: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="training users whose later items the network is not trained on, to stop its training in time and "
        "to fit the reranker; auto: a tenth of all, at most 1,000; with last-out everybody",
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of all random numbers")
