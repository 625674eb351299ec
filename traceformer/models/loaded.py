"""A model that is at hand: with its tokenizer, its sizes, and where both came from."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import Unsupported, UsageError
from traceformer.filenames import readable_name
from traceformer.models.dims import ModelDims
from traceformer.models.families import FAMILIES, architecture_of, own_family
from traceformer.models.family import Architecture, Family
from traceformer.models.mechanisms import stated, unstated
from traceformer.models.part import text_config

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = [
    "Adapter",
    "LoadedModel",
    "Proved",
    "n_embeddings_of",
    "short_name",
    "valid_pad_id",
    "weights_digest",
    "with_padding",
]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of PEFT that a model has in its layers.

    Attributes:
        source: The name that it was loaded under; in a model at hand its name there, or several.
        kind: PEFT's name of such adapters: `lora`, `ia3`.
        made_for: The name of the base model that its configuration states.
        files: `adapter_digest` of its files, where it was loaded from some.
    """

    source: str
    kind: str
    made_for: str | None = None
    files: str | None = None


@dataclass(frozen=True, slots=True)
class Proved:
    """What was proved, on the texts that are recorded, of a row that is not that of the model's family.

    Attributes:
        how: Where the row is from, in words.
        facts: What holds, each with the place that it is about.
        error: The largest one of all.
        tokens: How many there were in the texts that it was proved on.
    """

    how: str
    facts: tuple[str, ...]
    error: float
    tokens: int


@dataclass(frozen=True, slots=True, repr=False)
class LoadedModel:
    """A model with its tokenizer, and where they came from.

    Attributes:
        model: In eval mode if it was loaded by name; a held one is as its owner left it, and recorded in eval mode.
        tokenizer: Pads on the right; None where there is none, and only token ids can be read.
        source: The name it was loaded under, or that it gives itself.
        digest: `weights_digest`'s.
        held: Whether it was at hand already: its weights may be those of no file.
        adapter: The adapter that it has in its layers.
        architecture: How it is built, where that is not the row of its family: that of `like`, or one that was found.
        like: The family whose row was chosen by hand.
        proved: What was proved of `architecture`; None until it is.
    """

    model: "PreTrainedModel"
    tokenizer: Any
    dims: ModelDims
    name: str
    source: str
    revision: str | None
    digest: str
    held: bool = False
    adapter: Adapter | None = None
    architecture: Architecture | None = None
    like: str | None = None
    proved: Proved | None = None

    @property
    def built(self) -> Architecture:
        """How it is built: as its own row says, or that of its family.

        Raises:
            Unsupported: there is neither.
        """
        return self.architecture or architecture_of(self.config)

    @property
    def family(self) -> Family | None:
        """The row of the family that it is recorded as: the one chosen by hand, or its own; None where it has none."""
        return own_family(self.config) if self.like is None else FAMILIES[self.like]

    @property
    def has_sinks(self) -> bool:
        """Whether a head may look at nothing, so that rows of its pattern sum to less than 1: told, or seen."""
        if self.proved is not None:
            return any(fact.endswith("(sinks)") for fact in self.proved.facts)
        return self.family is not None and self.family.sinks

    @property
    def _where(self) -> str:
        from traceformer.models.placed import devices_of, elsewhere

        more = " and kept elsewhere until used" if elsewhere(self.model) else ""
        return f"{', '.join(map(str, devices_of(self.model)))}{more}"

    @property
    def source_and_adapter(self) -> str:
        """The name it was loaded under, and that of its adapter: `gpt2 + my-adapter`."""
        beside = self.adapter and self.adapter.source
        return self.source if not beside or beside == self.source else f"{self.source} + {beside}"

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def pad_id(self) -> int:
        """The token that batches are padded with: masked, so that any one does that has an embedding."""
        return valid_pad_id(self.model, None if self.tokenizer is None else self.tokenizer.pad_token_id)

    def reader(self) -> Any:
        """Returns the tokenizer, with which texts can be read.

        Raises:
            UsageError: there is none.
        """
        if self.tokenizer is None:
            raise UsageError(
                f"texts cannot be read without a tokenizer, and {self.name} came with none",
                hint="its tokenizer's files beside its weights; of a model at hand load_model(model, tokenizer); what "
                "is recorded, but not answered, may be token ids: `ids_column=COLUMN`, or lists of them in Python",
            )
        return self.tokenizer

    def __repr__(self) -> str:
        stacks = list(self.dims.stacks.values())
        layers = " + ".join(str(dims.n_layers) for dims in stacks)
        kind = {"enc": "encoder", "dec": "decoder", "encdec": "encoder-decoder"}[self.dims.arch]
        dtype = str(self.model.dtype).removeprefix("torch.")
        return (
            f"Model({self.name!r}: {self.config.model_type}, {kind}, {layers} layers of {stacks[-1].n_heads} heads, "
            f"d_model {stacks[-1].d_model}, {dtype} on {self._where}"
            f"{'' if self.adapter is None else f', adapter {self.adapter.source}'})"
        )


def valid_pad_id(model: "PreTrainedModel", stated: int | None = None) -> int:
    """Returns the token to pad with: the one stated, the config's, or 0. Some lie beyond the embeddings, or are -1."""
    n_embeddings = n_embeddings_of(model)
    ids = (stated, *(getattr(each, "pad_token_id", None) for each in (model.config, text_config(model.config))))
    return next((token for token in ids if isinstance(token, int) and 0 <= token < n_embeddings), 0)


def n_embeddings_of(model: "PreTrainedModel") -> int:
    """Returns how many tokens have an embedding; where a class does not say where these are, its config says it."""
    try:
        embedding: Any = model.get_input_embeddings()
    except NotImplementedError:
        config = text_config(model.config)
        size = stated(config, "vocab_size")
        if size is None:
            raise unstated(config, "vocab_size") from None
        return int(size)
    return int(getattr(embedding, "weight", embedding).shape[0])  # some classes give the matrix itself


def short_name(source: str) -> str:
    """Returns a model's name as it stands in a run id: a folder's own name, a Hub name with its `/` replaced."""
    path = Path(source)
    name = path.resolve().name if os.path.isdir(path) else source  # false, too, of what no folder can be called
    return readable_name(name, otherwise="model")


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
    """Returns a 128-bit hash (XXH3) over every parameter's name, shape, dtype and bytes, in slices of bounded size.

    Of adapters it covers as well which of them are at work, and how strongly.
    """
    import torch
    import xxhash

    from traceformer.models.placed import Weights

    digest = xxhash.xxh3_128()
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    with torch.inference_mode():
        weights = Weights(model)
        for name in sorted(weights):
            tensor = weights[name]
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            bits = tensor.detach().reshape(-1).view(views[tensor.element_size()])
            for part in bits.split(_DIGEST_SLICE):
                digest.update(part.cpu().numpy().data)
    for name, module in model.named_modules():
        at_work = {setting: getattr(module, setting) for setting in _OF_ADAPTERS if hasattr(module, setting)}
        if "active_adapters" in at_work:
            digest.update(f"{name} {type(module).__name__} {at_work}".encode())
    return digest.hexdigest()


_DIGEST_SLICE = 16 << 20  # elements
_OF_ADAPTERS = ("active_adapters", "merged_adapters", "disable_adapters", "scaling")  # no tensors, of PEFT's layers
