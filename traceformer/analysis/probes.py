"""Linear probes of a label, and what they reach on texts that they were not fitted on, beside their controls.

`logistic` fits them, `probe_controls` splits texts and draws what is beside them. `Probes` is what that gives for some
layers.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from traceformer.arguments import checked
from traceformer.errors import SelectionError, UsageError
from traceformer.presentation import in_notebook, plain, present
from traceformer.shapes import Float, Float64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Class", "Fitted", "Probe", "Probes", "Scores"]

Class: TypeAlias = bool | int | str

_NAMES = {-1: "previous token", 1: "next token"}
_LOW, _HIGH = 2.5, 97.5


@dataclass(frozen=True, slots=True)
class Scores:
    """What a probe reaches on the rows of texts that were held out, as shares of these rows.

    Attributes:
        accuracy: The share that it puts into their class.
        low: The 2.5th percentile of that over texts drawn anew.
        high: The 97.5th.
        shuffled: The accuracy of a probe of shuffled labels; the mean where these were drawn several times.
        control: That of a probe of the control task, likewise; None for labels of texts.
        selectivity: The accuracy less `control`, or less `shuffled` for labels of texts.
        selectivity_low: The 2.5th percentile of that.
        selectivity_high: The 97.5th.
    """

    accuracy: float
    low: float
    high: float
    shuffled: float
    control: float | None
    selectivity: float
    selectivity_low: float
    selectivity_high: float

    @staticmethod
    def of(
        hits: Float64[np.ndarray, "score"],
        drawn: Float64[np.ndarray, "resample score"],
        draws: int,
        *,
        with_control: bool,
    ) -> "Scores":
        """Returns the scores of a probe, of the probes of shuffled labels, and of those of the control task, in order.

        Args:
            hits: Their accuracies.
            drawn: These over texts drawn anew.
            draws: How many there are of each control.
            with_control: Whether there is a control task.
        """
        shuffles, controls = slice(1, 1 + draws), slice(1 + draws, None)
        against = controls if with_control else shuffles
        selectivity = drawn[:, 0] - drawn[:, against].mean(axis=1)
        low, high = np.percentile(drawn[:, 0], (_LOW, _HIGH)).tolist()
        selectivity_low, selectivity_high = np.percentile(selectivity, (_LOW, _HIGH)).tolist()
        return Scores(
            float(hits[0]),
            low,
            high,
            float(hits[shuffles].mean()),
            float(hits[controls].mean()) if with_control else None,
            float(hits[0] - hits[against].mean()),
            selectivity_low,
            selectivity_high,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """The probe of one layer, or of one head.

    Attributes:
        layer: The model's number; None where the site has no layers.
        head: Likewise; None for all heads side by side, or where there are none.
        weights: Of standardised rows; of two classes the first's are 0.
        bias: Of each class.
        mean: What rows are less by, before.
        scale: What they are divided by then.
        scores: What it reaches.
        passes: How often the rows were read to fit it and its controls.
        converged: Whether they all came to their minimum.
    """

    layer: int | None
    head: int | None
    weights: Float64[np.ndarray, "class d"]
    bias: Float64[np.ndarray, "class"]
    mean: Float64[np.ndarray, "d"]
    scale: Float64[np.ndarray, "d"]
    scores: Scores
    passes: int
    converged: bool

    @property
    def place(self) -> str:
        """`L5`, `L5H3`, or nothing where the site has no layers."""
        layer, head = ("" if n is None else f"{letter}{n}" for letter, n in (("L", self.layer), ("H", self.head)))
        return layer + head

    def probabilities(self, rows: Float[np.ndarray, "row d"]) -> Float64[np.ndarray, "row class"]:
        """Returns each class's probability at each row.

        Raises:
            UsageError: rows of another width, or with NaN or inf, or no rows of numbers.
        """
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.dtype.kind not in "fiu":
            raise UsageError(f"{rows.dtype} of shape {rows.shape}", why="rows of numbers are wanted: (row, d)")
        if rows.shape[1] != len(self.mean):
            raise UsageError(f"rows of width {rows.shape[1]}", why=f"the probe was fitted on rows of {len(self.mean)}")
        if not np.isfinite(rows).all():
            first = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise UsageError(f"row {first} holds NaN or inf", why="no class is the likeliest of such a row")
        logits = (rows.astype(np.float64) - self.mean) / self.scale @ self.weights.T + self.bias
        np.exp(logits - logits.max(axis=1, keepdims=True), out=logits)
        return logits / logits.sum(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What probes were fitted on, and how.

    Attributes:
        label: What the label is called.
        of: Whether it is one of tokens or of texts.
        offset: How many places behind a row's own token that is whose label it has.
        run: The run's name.
        model: The model's.
        model_weights: The digest of its weights.
        site: The array that the rows are of, such as `dec.resid_post`.
        position: What stands for a text, where the label is of texts.
        train_rows: How many rows they were fitted on.
        train_texts: In how many texts.
        rows: How many rows were held out.
        texts: In how many texts.
        majority: The share of the held-out rows that have the most frequent class of the others.
        by_token: The share of those that have the most frequent class of their kind of token, for labels of tokens.
        random: What the same probe reaches on random rows.
        penalty: That of the objective.
        held_out: The share of texts that was to be held out.
        draws: How often the labels of controls were drawn.
        seed: Of all that is drawn.
    """

    label: str
    of: Literal["token", "text"]
    offset: int
    run: str
    model: str | None
    model_weights: str | None
    site: str
    position: str | None
    train_rows: int
    train_texts: int
    rows: int
    texts: int
    majority: float
    by_token: float | None
    random: float
    penalty: float
    held_out: float
    draws: int
    seed: int

    @property
    def named(self) -> str:
        """The label, and which token's it is where that is not the row's own."""
        if not self.offset:
            return self.label
        return f"{self.label} of the {_NAMES.get(self.offset) or f'token {self.offset:+}'}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Probes:
    """Linear probes of one label: at each layer, or each head, what can be read off by planes.

        probes.to_frame()                                       # a row per layer
        probes.predict(run.activations("resid_post", 2), 2)     # of each row

    Attributes:
        classes: The label's classes, as far as training rows have them.
        counts: How many training rows each has.
        probes: One for each layer, or head.
        about: What they were fitted on, and how.
    """

    classes: tuple[Class, ...]
    counts: tuple[int, ...]
    probes: tuple[Probe, ...]
    about: Fitted

    def __repr__(self) -> str:
        best, about = self.best, self.about
        place = f" at {best.place}" if best.place else ""
        reached = f"held-out accuracy {best.scores.accuracy:.3f}{place}, selectivity {best.scores.selectivity:.3f}"
        of = f"{len(self.probes)} of {about.site}" if len(self.probes) > 1 else about.site
        return f"Probes({about.named!r}, {len(self.classes)} classes, {of}; {reached})"

    def _repr_html_(self) -> str:
        return in_notebook(self)

    def __len__(self) -> int:
        return len(self.probes)

    def __iter__(self) -> Iterator[Probe]:
        return iter(self.probes)

    @property
    def layers(self) -> tuple[int | None, ...]:
        """The layers, each once."""
        return tuple(dict.fromkeys(probe.layer for probe in self.probes))

    @property
    def heads(self) -> tuple[int | None, ...]:
        """The heads, each once."""
        return tuple(dict.fromkeys(probe.head for probe in self.probes))

    @property
    def best(self) -> Probe:
        """The probe of the highest accuracy, the first of several."""
        return max(self.probes, key=lambda probe: probe.scores.accuracy)

    def at(self, layer: int | None = None, head: int | None = None) -> Probe:
        """Returns the probe of a layer, or of a head; the only one there is need not be named.

        Raises:
            SelectionError: there is none, or several.
        """
        found = [
            probe
            for probe in self.probes
            if layer in (None, probe.layer) and (probe.head == head if head is not None else True)
        ]
        if len(found) == 1:
            return found[0]
        there = ", ".join(probe.place for probe in (found or self.probes)[:12])
        asked = "".join(f" {what} {n}" for what, n in (("layer", layer), ("head", head)) if n is not None)
        raise SelectionError(f"which probe{' of' if asked else ''}{asked}?", why=f"there are {there}")

    def predict(
        self, rows: Float[np.ndarray, "row d"], layer: int | None = None, head: int | None = None
    ) -> list[Class]:
        """Returns the class of each row, as the probe of a layer has it; `rows` are a run's `activations`, say."""
        return [self.classes[i] for i in self.probabilities(rows, layer, head).argmax(axis=1).tolist()]

    def probabilities(
        self, rows: Float[np.ndarray, "row d"], layer: int | None = None, head: int | None = None
    ) -> Float64[np.ndarray, "row class"]:
        """Returns each class's probability at each row, in the order of `classes`."""
        return self.at(layer, head).probabilities(rows)

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per layer, or per head: accuracy with its interval, controls, baselines, and how many rows."""
        import pandas as pd

        about = self.about
        same = {
            "random_features": about.random,
            "majority": about.majority,
            "by_token": about.by_token,
            "train_rows": about.train_rows,
            "train_texts": about.train_texts,
            "rows": about.rows,
            "texts": about.texts,
        }
        rows = [{"layer": probe.layer, "head": probe.head, **asdict(probe.scores), **same} for probe in self.probes]
        numbers = dict.fromkeys(("control", "by_token"), "float64")
        return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64", **numbers})

    def to_json(self) -> dict[str, Any]:
        """Returns all but the weights."""
        probes = [
            {
                "layer": probe.layer,
                "head": probe.head,
                **asdict(probe.scores),
                "passes": probe.passes,
                "converged": probe.converged,
            }
            for probe in self.probes
        ]
        classes = [{"class": name, "train_rows": n} for name, n in zip(self.classes, self.counts, strict=True)]
        return plain({**asdict(self.about), "classes": classes, "probes": probes})

    @checked
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes a .safetensors file with weights and scores, which `open_probes` reads.

        Raises:
            UsageError: its name does not end in .safetensors.
            RunExists: something is there, and `overwrite` is False.
        """
        present(self, "file", path, overwrite)
