"""A model that is at hand: with its tokenizer, its sizes, and where both came from."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import Unsupported
from traceformer.models.dims import ModelDims

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["LoadedModel", "short_name", "weights_digest", "with_padding"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode with its tokenizer, and where they came from; `digest` is `weights_digest`'s."""

    model: "PreTrainedModel"
    tokenizer: Any
    dims: ModelDims
    name: str
    source: str
    revision: str | None
    digest: str

    @property
    def config(self) -> Any:
        return self.model.config


def short_name(source: str) -> str:
    """Returns a model's name as it stands in a run id: a folder's own name, a Hub name with its `/` replaced."""
    path = Path(source)
    name = path.resolve().name if path.is_dir() else source
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"


def with_padding(tokenizer: Any) -> Any:
    """Returns the tokenizer, padding on the right, with eos for padding where it has no padding token."""
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise Unsupported(
                "the tokenizer has neither a padding nor an end token",
                hint="set tokenizer.pad_token and save it with the model",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weights_digest(model: "nn.Module") -> str:
    """Returns a 128-bit hash (XXH3) over every parameter's name, shape, dtype and bytes, in slices of bounded size."""
    import torch
    import xxhash

    digest = xxhash.xxh3_128()
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    with torch.inference_mode():
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            bits = tensor.detach().reshape(-1).view(views[tensor.element_size()])
            for part in bits.split(_DIGEST_SLICE):
                digest.update(part.cpu().numpy().data)
    return digest.hexdigest()


_DIGEST_SLICE = 16 << 20  # elements
