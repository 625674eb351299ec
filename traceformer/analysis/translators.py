"""Translators: what puts a layer's rows of the residual stream in the place of the last layer's.

Of each layer a matrix W and a vector b: h' = W h + b. The model's own final norm and unembedding follow, as they follow
the last layer (`lens.normed`, `lens.read_out`). Three kinds differ in where W and b come from, and in nothing else:

- `tuned`: they make the read-out of h' as near as can be to what the model says in the end, in KL divergence (Belrose
  et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens"; what that paper adds to the row
  itself, the identity, is within W here).
- `ridge`: they make h' as near as can be to the last layer's row, in the sum of squares.
- `jacobian`: W is the mean derivative of the last layer's row by this layer's, b is mostly zero.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from traceformer.arguments import checked
from traceformer.errors import ConfigurationChanged, SelectionError, UsageError
from traceformer.presentation import in_notebook, plain, present
from traceformer.shapes import Float, Float32, Float64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KINDS", "HeldOut", "Kind", "Translators"]

Kind: TypeAlias = Literal["tuned", "ridge", "jacobian"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """How well translators do on rows that neither fitting nor choosing has seen, beside the logit lens on the same.

    Attributes:
        kl: The mean over rows of KL(what the model says in the end || what is read out of the translated row), nats.
        top1: The share of rows whose likeliest token is that of the end.
        logit_kl, logit_top1: The same of the logit lens, which translates nothing.
        chosen: What each layer's translator is: `identity`, `ridge`, `tuned`, or another kind's name.
        rows, examples: How many they were.
    """

    kl: Float64[np.ndarray, "layer"]
    top1: Float64[np.ndarray, "layer"]
    logit_kl: Float64[np.ndarray, "layer"]
    logit_top1: Float64[np.ndarray, "layer"]
    chosen: tuple[str, ...]
    rows: int
    examples: int

    def to_json(self) -> dict[str, Any]:
        """Returns everything; lists run over layers."""
        return plain(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HeldOut":
        """Returns what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        numbers = {name: _numbers(data[name]) for name in ("kl", "top1", "logit_kl", "logit_top1")}
        return cls(
            **numbers, chosen=tuple(map(str, data["chosen"])), rows=int(data["rows"]), examples=int(data["examples"])
        )


def _numbers(values: Any) -> Float64[np.ndarray, "layer"]:
    """Numbers of layers; what JSON has no number for is null there, and NaN here."""
    return np.array([np.nan if value is None else float(value) for value in values])


@dataclass(frozen=True, slots=True, eq=False)
class Translators:
    """An affine map for each layer of a model: h' = W h + b stands in the place of the last layer's row.

        found = fit_lens(run)
        found.translated(run.get(0, "resid_post", layer=2), 2)      # (token, d_model)
        found.save("byte-lens.safetensors")

    Attributes:
        kind: `tuned`, `ridge` or `jacobian`.
        layers: The model's numbers of the layers, in rising order.
        weights: W of each layer; the second axis is that of h', the third that of h.
        biases: b of each layer.
        model: What the model is called, as far as that is known.
        model_weights: The digest of its weights, as a run states it (`run.about.model_weights`); None where that is not
            known, as of a published file.
        d_vocab: The number of words of the model; None where that is not known.
        about: How they were found, as far as that is known: site, texts, steps, seed, sizes.
        held_out: How well they do on rows that they were not fitted on; None where that was not measured.
    """

    kind: Kind
    layers: tuple[int, ...]
    weights: Float32[np.ndarray, "layer d_model d_model"]
    biases: Float32[np.ndarray, "layer d_model"]
    model: str | None = None
    model_weights: str | None = None
    d_vocab: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    held_out: HeldOut | None = None

    def __repr__(self) -> str:
        first, *others = self.layers
        numbers = f"layers {first}-{others[-1]}" if others else f"layer {first}"
        of = f" of {self.model}" if self.model else ""
        return f"Translators({self.kind}{of}: {numbers}, {self.d_model} wide{self._told()})"

    def _told(self) -> str:
        own = self.held_out
        if own is None:
            return ""
        return f"; held-out KL {own.kl.mean():.3g} where the logit lens has {own.logit_kl.mean():.3g}"

    def _repr_html_(self) -> str | None:
        return in_notebook(self) if self.held_out is not None else None

    @property
    def d_model(self) -> int:
        """The width of rows."""
        return self.biases.shape[1]

    def translated(self, rows: Float[np.ndarray, "row d_model"], layer: int) -> Float32[np.ndarray, "row d_model"]:
        """Returns a layer's rows of the residual stream in the place of the last layer's: W h + b, in float32.

        Rows that are behind the final norm already, as the last entry of `hidden` is, are not to be translated.

        Raises:
            SelectionError: there is no translator for the layer.
            UsageError: rows of another width, or no rows of numbers.
        """
        if layer not in self.layers:
            stated = ", ".join(map(str, self.layers))
            raise SelectionError(f"no translator for layer {layer}", why=f"there are those of layers {stated}")
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.dtype.kind not in "fiu":
            raise UsageError(f"{rows.dtype} of shape {rows.shape}", why="rows of numbers are wanted: (row, d_model)")
        if rows.shape[1] != self.d_model:
            raise UsageError(f"rows {rows.shape[1]} wide", why=f"these translators are for rows {self.d_model} wide")
        at = self.layers.index(layer)
        return rows.astype(np.float32, copy=False) @ self.weights[at].T + self.biases[at]

    def check_model(self, d_model: int, d_vocab: int, model_weights: str | None = None) -> None:
        """Makes sure that they are for a model of this width and vocabulary, and as far as both are known for this one.

        Raises:
            ConfigurationChanged: they are for another width or vocabulary, or for a model with other weights; both
                are named.
        """
        of = f"translators of {self.model}" if self.model else "translators"
        if d_model != self.d_model:
            raise ConfigurationChanged(f"{of} for a model {d_model} wide", why=f"they are for rows {self.d_model} wide")
        if self.d_vocab is not None and d_vocab != self.d_vocab:
            raise ConfigurationChanged(
                f"{of} for a model of {d_vocab} words", why=f"they are for one of {self.d_vocab}"
            )
        if None not in (model_weights, self.model_weights) and model_weights != self.model_weights:
            raise ConfigurationChanged(
                f"the {of} are for another model",
                why=f"its weights have digest {self.model_weights}, this one's {model_weights}",
                hint="fit a lens of this one",
            )

    @checked
    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a .safetensors file with matrices, vectors and all that is known of them; `open_lens` reads it.

        Raises:
            UsageError: its name ends otherwise; of a Jacobian lens .pt works as well.
            RunExists: something is there, and `overwrite` is False.
            OutOfSpace: the disk is full.
        """
        present(self, "file", path, overwrite)

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per layer: held-out KL (nats) and top-1, the same of the logit lens, and of how many rows.

        Where that was not measured there are the layers and how far each W is from the identity (Frobenius norm).
        """
        import pandas as pd

        eye = np.eye(self.d_model, dtype=np.float32)
        columns: dict[str, Any] = {"layer": self.layers}
        if self.held_out is not None:
            own = self.held_out
            columns |= {
                "kl": own.kl,
                "top1": own.top1,
                "logit_kl": own.logit_kl,
                "logit_top1": own.logit_top1,
                "chosen": own.chosen,
                "rows": own.rows,
            }
        return pd.DataFrame({**columns, "from_identity": [float(np.linalg.norm(own - eye)) for own in self.weights]})

    def to_json(self) -> dict[str, Any]:
        """Returns all but matrices and vectors; `held_out` is null where it was not measured."""
        return {
            "kind": self.kind,
            "layers": list(self.layers),
            "model": self.model,
            "model_weights": self.model_weights,
            "d_model": self.d_model,
            "d_vocab": self.d_vocab,
            "about": plain(dict(self.about)),
            "held_out": None if self.held_out is None else self.held_out.to_json(),
        }
