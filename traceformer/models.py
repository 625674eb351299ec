"""Load a model and its tokenizer; state its dimensions in this project's words."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from traceformer.errors import NotFound, Unreadable, Unsupported, UsageError
from traceformer.sites import Stack

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = [
    "BUILT_IN",
    "Arch",
    "LoadedModel",
    "ModelDims",
    "StackDims",
    "built_in_folder",
    "load_model",
    "pick_device",
    "quiet",
    "weights_digest",
    "with_padding",
]

Arch: TypeAlias = Literal["enc", "dec", "encdec"]


@dataclass(frozen=True, slots=True)
class StackDims:
    """The sizes of one stack; `d_mlp` is 0 where there is no single MLP, `n_ctx` 0 where there is no limit.

    `d_embed` is d_model but in families that embed tokens in fewer dimensions (ELECTRA, OPT-350m).
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_embed: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int

    def kv_heads_of(self, heads: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the kv_heads that these heads read, each once (grouped-query attention)."""
        group = self.n_heads // self.n_kv_heads
        return tuple(sorted({head // group for head in heads}))


@dataclass(frozen=True, slots=True)
class ModelDims:
    """The sizes of a model, stack by stack."""

    arch: Arch
    stacks: Mapping[Stack, StackDims]

    @classmethod
    def from_config(cls, config: Any) -> "ModelDims":
        """Returns the sizes that a Hugging Face config states under whatever names its family uses.

        Raises:
            Unsupported: the config states no number of layers, heads or dimensions, as vision models' may not.
        """
        arch = arch_of(config)
        sides: tuple[Stack, ...] = ("enc", "dec") if arch == "encdec" else (arch,)
        return cls(arch, {side: _stack_dims(config, side, arch) for side in sides})

    def to_json(self) -> dict[str, Any]:
        return {stack: asdict(dims) for stack, dims in self.stacks.items()}


def _first(config: Any, *names: str, default: int | None = None) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    if default is None:
        raise Unsupported(
            f"the config of model type {config.model_type!r} states none of {', '.join(names)}",
            why="it may not be a text transformer",
        )
    return default


def _stack_dims(config: Any, side: Stack, arch: Arch) -> StackDims:
    own = ("encoder_", "decoder_")[side == "dec"] if arch == "encdec" else ""
    layers = (f"{own}layers", *(("num_decoder_layers",) if side == "dec" and arch == "encdec" else ()))
    n_layers = _first(config, *layers, "num_hidden_layers", "num_layers", "n_layer", "n_layers")
    n_heads = _first(config, f"{own}attention_heads", "num_attention_heads", "num_heads", "n_head", "n_heads")
    d_model = _first(config, "hidden_size", "d_model", "n_embd", "dim")
    widths = (f"{own}ffn_dim", "intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "n_inner", "expansion_ratio")
    d_mlp = _first(config, *widths, default=4 * d_model)
    if d_mlp == getattr(config, "expansion_ratio", None):
        d_mlp *= d_model
    return StackDims(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=_first(config, "num_key_value_heads", default=n_heads),
        d_model=d_model,
        d_embed=_first(config, "embedding_size", "word_embed_proj_dim", default=d_model),
        d_head=_first(config, "d_kv", "head_dim", default=d_model // n_heads),
        d_mlp=0 if has_experts(config) else d_mlp,
        d_vocab=_first(config, "vocab_size"),
        n_ctx=n_ctx_of(config),
    )


def has_experts(config: Any) -> bool:
    return any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts"))


def n_ctx_of(config: Any) -> int:
    """Returns how many positions the model has, 0 where any length works (relative positions only)."""
    n_ctx = _first(config, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", default=0)
    if config.model_type in ("t5", "mt5", "bloom"):  # relative bias or ALiBi: n_positions is only a hint
        return 0
    if config.model_type in ("roberta", "xlm-roberta"):  # positions count from the padding id + 1
        return n_ctx - config.pad_token_id - 1
    return n_ctx


def arch_of(config: Any) -> Arch:
    """Returns enc, dec or encdec: what kind of stacks a model of this config has."""
    if getattr(config, "is_encoder_decoder", False):
        return "encdec"
    if config.model_type in _ENCODERS:
        return "enc"
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL

    return "dec" if type(config) in CAUSAL else "enc"


# Encoders that transformers can also wrap as causal language models.
_ENCODERS = frozenset(("bert", "roberta", "xlm-roberta", "electra", "camembert", "xlm-roberta-xl", "megatron-bert"))


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


def pick_device(name: str | None) -> str:
    """Returns the device to use: the one named, or else cuda, then mps, then cpu, whichever is there.

    Raises:
        UsageError: the device named is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None or name == "auto":
        return next(device for device, usable in there.items() if usable)
    if not there.get(name.split(":")[0], False):
        choices = (f'`device="{device}"`' for device, usable in there.items() if usable)
        raise UsageError(f"no device {name!r} here", hint=" or ".join(choices))
    return name


def load_model(
    name: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    with_head: bool = False,
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Returns a model in eval mode, with its tokenizer.

    `name` is a Hub name, a local folder, `nanochat:sft[:TAG[:STEP]]`, or a built-in model (`byte`, `byte-sparse`; a
    folder of that name is `./byte`).

    Decoders load with their language-model head, encoder-decoders likewise; encoders without one unless
    `with_head`, where the checkpoint has one. Weights keep the dtype they are stored in unless `dtype` says otherwise;
    the built-in models compute in float32.

    Raises:
        NotFound: no such folder, and no such model on the Hub or in its cache; a built-in model is not installed.
        Unreadable: the folder is not a transformer, has only pickled weights, or its weights are not those of the model
            that its config describes.
        Unsupported: the model needs code of its own, which is not run.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

    if name.startswith("nanochat:"):
        from traceformer.nanochat import load_nanochat

        return load_nanochat(
            name, device=device, dtype=dtype, attn_implementation=attn_implementation, allow_pickle=allow_pickle
        )
    source = name
    if name in BUILT_IN:
        name, dtype = str(built_in_folder(name)), dtype or "float32"
    folder = Path(name)
    local = folder.is_dir()
    if folder.is_file():
        why = "a model is a folder with config.json, weights and tokenizer"
        raise Unreadable(f"{name} is a file", why=why, hint="a folder that train or save_pretrained made")
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise NotFound(f"no model folder {name}")
    if local and not (folder / "config.json").is_file():
        raise Unreadable(f"{name} is not a transformer", why="there is no config.json in the folder")
    place: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": not local and not _hub_answers(),
    }
    with _explained(name, local), quiet(transformers):
        stated, _ = PretrainedConfig.get_config_dict(name, **place)
        if stated.get("model_type") in _OWN_FAMILIES:
            import_module(_OWN_FAMILIES[stated["model_type"]])
        config = AutoConfig.from_pretrained(name, **place)
    arch = arch_of(config)
    kind = {"encdec": "AutoModelForSeq2SeqLM", "dec": "AutoModelForCausalLM"}.get(
        arch, "AutoModelForMaskedLM" if with_head and _has_masked_head(config) else "AutoModel"
    )
    with _explained(name, local), quiet(transformers):
        tokenizer = AutoTokenizer.from_pretrained(name, **place)
        model, info = getattr(transformers, kind).from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, dtype) if dtype else "auto",
            use_safetensors=None if allow_pickle else True,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **place,
        )
    _check_keys(source, info)
    model = model.to(pick_device(device)).eval()
    return LoadedModel(
        model,
        with_padding(tokenizer),
        ModelDims.from_config(config),
        short_name(source),
        source,
        revision,
        weights_digest(model),
    )


BUILT_IN = ("byte", "byte-sparse")
"""The models that come with the package: byte-level decoders, dense and sparse."""

# Model types that transformers does not know, and the modules that register them with it when they are imported.
_OWN_FAMILIES = {"byte_sparse": "traceformer.bytelm"}


def built_in_folder(name: str) -> Path:
    """Returns the folder of a built-in model.

    Raises:
        NotFound: its weights are not there.
    """
    folder = Path(__file__).parent / "bytelm" / "weights" / name
    if not (folder / "model.safetensors").is_file():
        raise NotFound(
            f"the built-in model {name!r} is not installed",
            why=f"there are no weights in {folder}",
            hint=f"reinstall traceformer; if you mean a folder, write ./{name}",
        )
    return folder


def _check_keys(name: str, info: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that is not that of the model: half of it would be random, or left out, without a word.

    A pooler that it lacks is no loss, nothing here reads it; nor are heads that it has beside the numbered blocks.
    """
    missing = sorted(key for key in info["missing_keys"] if ".pooler." not in f".{key}")
    unexpected = sorted(info["unexpected_keys"])
    if missing or any(re.search(r"(^|\.)\d+\.", key) for key in unexpected):
        parts = {"lacks the weights of": missing, "has those of": unexpected}
        said = " and ".join(f"{verb} {_some(keys)}" for verb, keys in parts.items() if keys)
        raise Unreadable(f"{name} {said}", why="its config.json describes another model than its weights belong to")


def _some(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"


def _hub_answers() -> bool:
    """Whether the Hub's name can be resolved: without a network, its client would try for half a minute."""
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub.constants import ENDPOINT

    try:
        return bool(socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None))
    except OSError:
        return False


def _has_masked_head(config: Any) -> bool:
    return any(name.endswith("ForMaskedLM") or name == "BertForPreTraining" for name in config.architectures or ())


def short_name(source: str) -> str:
    """Returns a model's name as it stands in a run id: a folder's own name, a Hub name with its `/` replaced."""
    path = Path(source)
    name = path.resolve().name if path.is_dir() else source
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"


@contextmanager
def _explained(name: str, local: bool) -> Generator[None]:
    """Turns what transformers says of a model that does not load into one of our errors."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        ImportError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        text = str(error).strip()
        first = text.splitlines()[0] if text else type(error).__name__
        if "trust_remote_code" in text:
            raise Unsupported(f"{name} needs code of its own", why="such code is not run") from error
        if "safetensors" in text or "pytorch_model.bin" in text:
            raise Unreadable(
                f"{name} has no safetensors weights",
                why="pickled weights can run code when they are read",
                hint="convert them to safetensors, or pass `allow_pickle=True` if you trust them",
            ) from error
        if local:
            raise Unreadable(f"{name} cannot be loaded", why=first) from error
        raise NotFound(
            f"no model {name!r} in the Hub's cache, nor could it be fetched",
            why=first,
            hint="give a folder, or a Hub name such as gpt2",
        ) from error


@contextmanager
def quiet(transformers: Any) -> Generator[None]:
    """Silences transformers' own bars and reports while a model loads; what matters is raised instead."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


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
