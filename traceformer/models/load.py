"""Load a model and its tokenizer; state its dimensions in this project's words."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound, TraceformerError, Unreadable, Unsupported, UsageError
from traceformer.models.dims import ModelDims, arch_of
from traceformer.models.families import FAMILIES
from traceformer.models.loaded import LoadedModel, short_name, weights_digest, with_padding
from traceformer.network import hub_answers

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BUILT_IN", "as_loaded", "built_in_folder", "load_model", "pick_device", "quiet"]


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
    model: "str | Path | nn.Module",
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    with_head: bool = False,
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Returns a model with its tokenizer, ready to be recorded.

        load_model("gpt2")
        load_model(my_model, my_tokenizer)

    By name `model` is a Hub name, a local folder, `nanochat:sft[:TAG[:STEP]]`, or a built-in model (`byte`,
    `byte-sparse`; a folder of that name is `./byte`). It comes in eval mode, a decoder with its language-model head, an
    encoder-decoder likewise, an encoder without one unless `with_head`, where the checkpoint has one. Weights keep the
    dtype they are stored in unless `dtype` says otherwise; the built-in models compute in float32. A `tokenizer` given
    stands in for the model's own.

    Or it is a model of transformers that is at hand: with a head or without, on any device, in any dtype, in train mode
    or not, under torch.compile or DataParallel. It stays as it is, and so does its tokenizer, of which a copy is used;
    without one only token ids can be read.

    Raises:
        UsageError: this is no model or no tokenizer, or a model at hand is to be changed by `dtype` or the like.
        NotFound: no such folder, and no such model on the Hub or in its cache; a built-in model is not installed.
        Unreadable: the folder is not a transformer, has only pickled weights, or its weights are not those of the model
            that its config describes.
        Unsupported: the model needs code of its own, which is not run; or it is at hand, and cannot be recorded.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

    from traceformer.models.held import hold, own_tokenizer

    own = None if tokenizer is None else own_tokenizer(tokenizer)
    if not isinstance(model, str | Path):
        settings = {
            **{"revision": revision, "device": device, "dtype": dtype, "attn_implementation": attn_implementation},
            **{"with_head": with_head, "allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code},
        }
        given = [f"`{setting}`" for setting, value in settings.items() if value]
        if given:
            raise UsageError(f"{' and '.join(given)} of a model that is at hand", why="it is recorded as it is")
        return hold(model, own)
    name = model if isinstance(model, str) else str(model.absolute())  # a path is never a name of the Hub
    if name.startswith("nanochat:"):
        from traceformer.models.nanochat import load_nanochat

        loaded = load_nanochat(
            name, device=device, dtype=dtype, attn_implementation=attn_implementation, allow_pickle=allow_pickle
        )
        return loaded if own is None else replace(loaded, tokenizer=own)
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
        "local_files_only": not local and not hub_answers(),
    }
    with _explained(name, local), quiet(transformers):
        stated, _ = PretrainedConfig.get_config_dict(name, **place)
        if stated.get("model_type") in FAMILIES:
            import_module(FAMILIES[stated["model_type"]].module)  # which makes it known to transformers
        config = AutoConfig.from_pretrained(name, **place)
    arch = arch_of(config)
    kind = {"encdec": "AutoModelForSeq2SeqLM", "dec": "AutoModelForCausalLM"}.get(
        arch, "AutoModelForMaskedLM" if with_head and _has_masked_head(config) else "AutoModel"
    )
    with _explained(name, local), quiet(transformers):
        if own is None:
            own = with_padding(AutoTokenizer.from_pretrained(name, **place))
        made, info = getattr(transformers, kind).from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, dtype) if dtype else "auto",
            use_safetensors=None if allow_pickle else True,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **place,
        )
    _check_keys(source, info)
    made = made.to(pick_device(device)).eval()
    return LoadedModel(
        made,
        own,
        ModelDims.from_config(config),
        short_name(source),
        source,
        revision,
        weights_digest(made),
    )


def as_loaded(model: "str | Path | LoadedModel | nn.Module", *, with_head: bool) -> LoadedModel:
    """Returns a model as `load_model` gives it: loaded already, or what a name or a model that is held stands for."""
    if isinstance(model, LoadedModel):
        return model
    return load_model(model, with_head=with_head) if isinstance(model, str | Path) else load_model(model)


BUILT_IN = ("byte", "byte-sparse")
"""The models that come with the package: byte-level decoders, dense and sparse."""


def built_in_folder(name: str) -> Path:
    """Returns the folder of a built-in model.

    Raises:
        NotFound: its weights are not there.
    """
    folder = Path(__file__).parents[1] / "bytelm" / "weights" / name
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


def _has_masked_head(config: Any) -> bool:
    return any(name.endswith("ForMaskedLM") or name == "BertForPreTraining" for name in config.architectures or ())


@contextmanager
def _explained(name: str, local: bool) -> Generator[None]:
    """Turns what transformers says of a model that does not load into one of our errors."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (torch.OutOfMemoryError, TraceformerError):
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
