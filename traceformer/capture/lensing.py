"""The logit lens while the model runs: of each row of the residual stream, the k likeliest next words.

1. Rows go through the model's own final norm, projection and scale, in float32 whatever the model runs in.
2. They are multiplied by its own unembedding, some rows and some words at a time, so that no more than 64 MiB of logits
   is ever there. Each block, with bias and softcap, updates what is kept of each row: the k largest logits, and the
   logarithm of the sum of all exponentials.
3. A word's probability is exp(its logit - that logarithm), as of the softmax over all words.

`analysis/lens.py` reads the same out of a stored residual stream, without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from transformers import PreTrainedModel

from traceformer.errors import Unsupported, UsageError
from traceformer.models.family import Architecture
from traceformer.models.readout import ReadoutParts, find_readout
from traceformer.sites import ArrayKey, ArraySpec, Stack

__all__ = ["Lensing", "plan_lens"]

_WORDS = 8192
_ROWS = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Lensing:
    """The two arrays that the lens is recorded as, of which other array, and the model's readout, on its device."""

    specs: tuple[ArraySpec, ArraySpec]
    source: ArrayKey
    readout: ReadoutParts
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def top_k(self) -> int:
        return self.specs[0].width

    def of(self, layer: int, rows: Float[Tensor, "batch position d_model"]) -> Mapping[ArrayKey, Tensor]:
        """Returns ids and probabilities of the likeliest next words, (batch, position, k), the likeliest first."""
        parts = [self._likeliest(self._normed(part)) for part in rows.flatten(0, 1).split(_ROWS)]
        found = (torch.cat(each).unflatten(0, rows.shape[:2]) for each in zip(*parts, strict=True))
        return {spec.key: values for spec, values in zip(self.specs, found, strict=True)}

    def _tensor(self, name: str | None) -> Float32[Tensor, "..."] | None:
        return None if name is None else self.tensors[name].float()

    def _normed(self, rows: Float[Tensor, "row d_model"]) -> Float32[Tensor, "row d_embed"]:
        own, rows = self.readout, rows.float()
        if own.norm is not None:
            if own.norm == "layer":
                rows = rows - rows.mean(dim=1, keepdim=True)
            rows = rows / (rows.square().mean(dim=1, keepdim=True) + own.epsilon).sqrt()
            weight, bias = self._tensor(own.norm_weight), self._tensor(own.norm_bias)
            if weight is not None:
                rows = rows * (weight + 1 if own.norm == "rms_plus_one" else weight)
            if bias is not None:
                rows = rows + bias
        project_out = self._tensor(own.project_out)
        return (rows if project_out is None else rows @ project_out.T) * own.scale

    def _likeliest(
        self, rows: Float32[Tensor, "row d_embed"]
    ) -> tuple[Int64[Tensor, "row k"], Float32[Tensor, "row k"]]:
        unembedding, bias = self.tensors[self.readout.unembedding], self._tensor(self.readout.bias)
        top = rows.new_empty((len(rows), 0))
        ids = torch.empty((len(rows), 0), dtype=torch.int64, device=rows.device)
        total = rows.new_full((len(rows), 1), -torch.inf)
        for first in range(0, len(unembedding), _WORDS):
            words = slice(first, first + _WORDS)
            logits = rows @ unembedding[words].float().T
            if bias is not None:
                logits += bias.flatten()[words]
            if self.readout.softcap is not None:
                logits.div_(self.readout.softcap).tanh_().mul_(self.readout.softcap)
            total = torch.logaddexp(total, logits.logsumexp(dim=1, keepdim=True))
            largest, places = logits.topk(min(self.top_k, logits.shape[1]))
            top, ids = torch.cat([top, largest], dim=1), torch.cat([ids, places + first], dim=1)
            top, order = top.topk(min(self.top_k, top.shape[1]))
            ids = ids.gather(1, order)
        return ids, (top - total).exp()


def plan_lens(
    top_k: int, layers: Mapping[Stack, tuple[int, ...]], architecture: Architecture, model: PreTrainedModel
) -> Lensing:
    """Returns what the lens is to record of a model: the k likeliest words after each of the decoder's layers.

    Args:
        layers: The layers selected in each stack that runs.

    Raises:
        Unsupported: there is no decoder, it does not run, or no readout is known of the model.
        UsageError: the model has not so many words, or it is less than one.
    """
    if "dec" not in architecture.stacks:
        raise Unsupported("the logit lens of an encoder", why="it predicts no next token")
    if "dec" not in layers:
        raise Unsupported("the logit lens of an encoder alone", why="the decoder runs only with --targets_file")
    if model.get_output_embeddings() is None:
        raise Unsupported("the logit lens of a model without an unembedding", why="it has no language-model head")
    tensors = model.state_dict()
    readout = find_readout(tensors, model.config.to_dict(), where=type(model).__name__)
    used = (readout.norm_weight, readout.norm_bias, readout.project_out, readout.unembedding, readout.bias)
    tensors = {name: tensors[name] for name in used if name is not None}
    n_words = len(tensors[readout.unembedding])
    if not 1 <= top_k <= n_words:
        raise UsageError(f"the {top_k} likeliest words", why=f"the model has {n_words}", hint="--lens-top-k 5")
    ids, probabilities = (
        ArraySpec(ArrayKey("dec", None, site), layers["dec"], (), top_k) for site in ("lens_topk", "lens_topk_prob")
    )
    return Lensing((ids, probabilities), ArrayKey("dec", None, "resid_post"), readout, tensors)
