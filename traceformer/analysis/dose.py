"""Dose and response: how far steering moves a trait in what a model writes, and what that costs in fluency."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float64, Int64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Dose", "Steered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steered:
    """What was steered, and how.

    Attributes:
        model: The model's name.
        digest: That of its weights.
        direction: The direction's name.
        site, layer: Where it was added, and where responses are projected onto it.
        norm: The norm of its vector, which was added as it is.
        position: The tokens that it was added to, as a run's metadata has it.
        settings: How tokens were chosen.
    """

    model: str
    digest: str
    direction: str
    site: str
    layer: int
    norm: float
    position: Any
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dose:
    """What a model writes when it is steered more and more, as the model reads it that is not steered.

        found.summary()                                 # a row per scale
        found.to_frame()                                # a row per scale and response, with its text

    Attributes:
        scales: How often the direction's vector was added, in rising order; 0 is the model as it is.
        names: The responses' names: the prompt's, and a number where it was answered several times.
        texts: The responses, scale by scale.
        n_tokens: How many tokens each has.
        projection: The mean over a response's tokens of (a @ v) / |v|, a their activations at the site and layer.
        log_prob: The mean over a response's tokens of the logarithm of their probabilities, natural, at temperature 1.
        about: What was steered, and how.
    """

    scales: tuple[float, ...]
    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    n_tokens: Int64[np.ndarray, "scale response"]
    projection: Float64[np.ndarray, "scale response"]
    log_prob: Float64[np.ndarray, "scale response"]
    about: Steered

    @property
    def rises(self) -> bool:
        """Whether the mean projection rises with every step of the scale; one scale takes no step."""
        return len(self.scales) > 1 and bool((np.diff(self.projection.mean(axis=1)) > 0).all())

    def summary(self) -> "pd.DataFrame":
        """Returns a row per scale: means over responses, and the standard deviations of these."""
        import pandas as pd

        several = len(self.names) > 1
        columns: dict[str, Any] = {"scale": self.scales}
        for name, values in (("projection", self.projection), ("log_prob", self.log_prob)):
            columns[name] = values.mean(axis=1)
            columns[f"{name}_sd"] = values.std(axis=1, ddof=1) if several else np.nan
        return pd.DataFrame({**columns, "tokens": self.n_tokens.mean(axis=1)})

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per scale and response."""
        import pandas as pd

        n = len(self.names)
        columns = {
            "scale": np.repeat(self.scales, n),
            "example": [*self.names] * len(self.scales),
            "projection": self.projection.ravel(),
            "log_prob": self.log_prob.ravel(),
            "tokens": self.n_tokens.ravel(),
            "response": [text for texts in self.texts for text in texts],
        }
        return pd.DataFrame(columns)

    def to_json(self) -> dict[str, Any]:
        """Returns everything, scale by scale."""
        summary = self.summary().to_dict("list")
        scales: list[dict[str, Any]] = []
        for i, texts in enumerate(self.texts):
            responses = [
                {
                    "example": name,
                    "projection": float(self.projection[i, j]),
                    "log_prob": float(self.log_prob[i, j]),
                    "tokens": int(self.n_tokens[i, j]),
                    "response": text,
                }
                for j, (name, text) in enumerate(zip(self.names, texts, strict=True))
            ]
            means = {str(name): column[i] for name, column in summary.items()}
            scales.append({**plain(means), "responses": plain(responses)})
        return {**plain(asdict(self.about)), "rises": self.rises, "scales": scales}

    def __repr__(self) -> str:
        about, means = self.about, self.projection.mean(axis=1)
        first, last = (f"{means[i]:.3g} at {self.scales[i]:g}" for i in (0, -1))
        place = f"{about.direction} at {about.site} of layer {about.layer}"
        return f"Dose({about.model}: {place}; projection {first} to {last}, {len(self.names)} responses each)"

    def _repr_html_(self) -> str:
        return in_notebook(self)
