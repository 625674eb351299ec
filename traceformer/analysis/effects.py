"""Effects: what came of touching one place of a model after the other, as arithmetic and as a value.

1. A sweep touches cells (a layer and a position, a layer and a head, an attention edge), one at a time, in every pair
   of texts, and looks at one number of each pass, the metric.
2. `normalised` puts that number between those of the two untouched passes: 0 is the corrupt text's, 1 the clean one's.
3. `Effects` keeps a number per pair and cell, and says the mean over pairs, and how far these lie apart.

Meng et al., "Locating and Editing Factual Associations in GPT" (2022); Zhang and Nanda, "Towards Best Practices of
Activation Patching" (2023), whose normalised metric and directions (denoising, noising) these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.analysis.agreement import Agreement, agreement
from traceformer.errors import SelectionError
from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float, Float64, Int64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Axis", "Effects", "Swept", "mean_over_pairs", "normalised", "token_labels"]

_EQUAL = 1e-6
"""What two metrics must differ by, in units of the larger one or of one, for a share of their difference to mean
something."""
_OF_TOKENS = {"position": "token", "query": "query_token", "key": "key_token"}
"""The axes that run over tokens, and the column of a table that names these."""
_NAMED = {**_OF_TOKENS, "group": "heads"}


def normalised(
    metric: Float[np.ndarray, "pair *cell"],
    clean: Float[np.ndarray, "pair"],
    corrupt: Float[np.ndarray, "pair"],
) -> Float64[np.ndarray, "pair *cell"]:
    """Returns (metric - corrupt) / (clean - corrupt); NaN for a pair of which both are equal, within 1e-6."""
    difference = clean.astype(np.float64) - corrupt
    size = np.maximum(1, np.maximum(np.abs(clean), np.abs(corrupt)))
    per_pair = (-1, *[1] * (metric.ndim - 1))
    difference = np.where(np.abs(difference) <= _EQUAL * size, np.nan, difference).reshape(per_pair)
    return (metric - corrupt.reshape(per_pair).astype(np.float64)) / difference


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of effects: `layer`, `head`, `position`, `query`, `key`, or `group` of heads touched at once.

    Attributes:
        numbers: The model's own of layers and heads; positions of a text, negative where they count from its end.
        labels: `L5`, `H3`; the heads of a group; of positions the token, where it is the same in all pairs, and `""`
            elsewhere.
    """

    name: str
    numbers: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def has_tokens(self) -> bool:
        """Whether it runs over the tokens of texts."""
        return self.name in _OF_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What was done to which model, and what was looked at.

    Attributes:
        verb: `patch` or `ablate`.
        model: The model's name.
        digest: That of its weights.
        sites: What was touched: keys of arrays, such as `dec.self.z`.
        metric: The name of the number that was looked at.
        how: `denoise` or `noise`; `zero`, `mean` or `resample`.
        position: Where the metric looks, counted as in a text (-1 is the last token); None for all positions.
        align: How positions of texts of unequal length are matched; None where all are of equal length.
        seed: Of what is drawn at random; None where nothing is.
        way: How the passes were made, in words.
        compared: How many cells were computed a second time, by whole passes of the model.
        error: The largest difference of the metric in these.
    """

    verb: str
    model: str
    digest: str
    sites: tuple[str, ...]
    metric: str
    how: str
    position: int | None = -1
    align: str | None = None
    seed: int | None = None
    way: str = ""
    compared: int = 0
    error: float = 0.0

    @property
    def untouched(self) -> float:
        """The effect of what changes nothing: 1 of noising, which runs the clean text, else 0."""
        return 1.0 if self.how == "noise" else 0.0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Effects:
    """The effect of every cell in every pair; what patching, ablating and attribution patching return.

        effects.values                              # the mean over pairs, over `axes`
        effects.to_frame().sort_values("effect").tail(3)
        effects.pair(0).values                      # one pair's own

    Of patches an effect is a share: 0 leaves the metric where the corrupt text has it, 1 where the clean one has it. Of
    ablations it is the metric with the ablation less the metric without.

    Attributes:
        axes: What the cells run over; more than one pair of texts have positions in common by their numbers.
        by_pair: `effect`, measured; or `estimate` and, NaN where a cell was not measured, `exact`. NaN for a cell that
            a pair does not have (its text is shorter), and for pairs whose clean and corrupt metric are equal.
        clean: The metric of each pair's clean text; of ablations that of the untouched text.
        corrupt: The metric of each pair's corrupt text; of ablations NaN.
        pairs: The pairs' names, or the texts'.
        about: What was done.
    """

    axes: tuple[Axis, ...]
    by_pair: Mapping[str, Float64[np.ndarray, "pair *cell"]]
    clean: Float64[np.ndarray, "pair"]
    corrupt: Float64[np.ndarray, "pair"]
    pairs: tuple[str, ...]
    about: Swept

    @property
    def kind(self) -> str:
        """`effect`, or `estimate` where effects were not measured in every cell."""
        return "effect" if "effect" in self.by_pair else "estimate"

    @property
    def values(self) -> Float64[np.ndarray, "*cell"]:
        """The mean over the pairs that have the cell; NaN where none has."""
        return mean_over_pairs(self.by_pair[self.kind])

    @property
    def agreement(self) -> Agreement:
        """How far mean estimates agree with mean measurements, in the cells that were measured beside them."""
        exact = self.by_pair.get("exact")
        return agreement(self.values, np.full(self.values.shape, np.nan) if exact is None else mean_over_pairs(exact))

    @property
    def spread(self) -> Float64[np.ndarray, "*cell"]:
        """The standard deviation over these pairs; NaN where fewer than two have the cell."""
        each, count = self.by_pair[self.kind], self.n_pairs
        squares = np.nansum((each - self.values) ** 2, axis=0)
        return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)

    @property
    def n_pairs(self) -> Int64[np.ndarray, "*cell"]:
        """How many pairs have a number in each cell."""
        return np.isfinite(self.by_pair[self.kind]).sum(axis=0).astype(np.int64)

    def axis(self, name: str) -> Axis:
        """Returns the axis of this name.

        Raises:
            SelectionError: there is none.
        """
        for each in self.axes:
            if each.name == name:
                return each
        raise SelectionError(f"no axis {name!r}", hint=f"it has {', '.join(each.name for each in self.axes)}")

    def pair(self, number: int) -> "Effects":
        """Returns the effects in one pair.

        Raises:
            SelectionError: there are fewer pairs.
        """
        if not -len(self.pairs) <= number < len(self.pairs):
            raise SelectionError(f"pair {number} requested", why=f"there are pairs 0-{len(self.pairs) - 1}")
        one = slice(number, number + 1 or None)
        arrays = {name: values[one] for name, values in self.by_pair.items()}
        return replace(self, by_pair=arrays, clean=self.clean[one], corrupt=self.corrupt[one], pairs=self.pairs[one])

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per cell: its place on each axis, its token, mean effect, spread, and of how many pairs.

        Where effects are estimates, `estimate` and `exact` stand in the place of `effect`.
        """
        import pandas as pd

        columns: dict[str, Any] = {}
        places = [index.reshape(-1) for index in np.indices(self.values.shape)]
        for axis, place in zip(self.axes, places, strict=True):
            columns[axis.name] = np.array(axis.numbers, np.int64)[place]
            if axis.name in _NAMED:
                columns[_NAMED[axis.name]] = [axis.labels[i] for i in place]
        for name, values in self.by_pair.items():
            columns[name] = mean_over_pairs(values).reshape(-1)
        return pd.DataFrame({**columns, "spread": self.spread.reshape(-1), "pairs": self.n_pairs.reshape(-1)})

    def to_json(self) -> dict[str, Any]:
        """Returns everything; lists run over the axes in their order, and None stands for NaN."""
        return {
            **asdict(self.about),
            "axes": [asdict(axis) for axis in self.axes],
            **{name: plain(mean_over_pairs(values)) for name, values in self.by_pair.items()},
            "spread": plain(self.spread),
            "pairs": [
                {"id": name, "clean": plain(float(clean)), "corrupt": plain(float(corrupt))}
                for name, clean, corrupt in zip(self.pairs, self.clean, self.corrupt, strict=True)
            ],
            "by_pair": {name: plain(values) for name, values in self.by_pair.items()},
        }

    def __repr__(self) -> str:
        shape = " x ".join(f"{len(axis.numbers)} {axis.name}s" for axis in self.axes)
        of = f"{len(self.pairs)} {'text' if self.about.verb == 'ablate' else 'pair'}{'s' * (len(self.pairs) != 1)}"
        sites = " + ".join(site.rpartition(".")[2] for site in self.about.sites)
        return f"Effects({self.about.model}: {self.about.how} {sites}, {self.about.metric}; {shape}, {of})"

    def _repr_html_(self) -> str:
        return in_notebook(self)


def mean_over_pairs(values: Float64[np.ndarray, "pair *cell"]) -> Float64[np.ndarray, "*cell"]:
    """Returns the mean over the pairs that have a cell; NaN where none has."""
    there = np.isfinite(values)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def token_labels(tokens: Sequence[Sequence[str]], length: int, *, from_end: bool = False) -> tuple[str, ...]:
    """Returns a label for each of `length` positions: the token that all texts have there which are so long, or ""."""
    labels: list[str] = []
    for place in range(length):
        at = place - length if from_end else place
        there = {text[at] for text in tokens if -len(text) <= at < len(text)}
        labels.append(there.pop() if len(there) == 1 else "")
    return tuple(labels)
