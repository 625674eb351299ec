"""Load a model and its tokenizer; state its dimensions in this project's words."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound, TraceformerError, Unreadable, Unsupported, UsageError, check_choice
from traceformer.models.dims import ModelDims
from traceformer.models.families import FAMILIES, architecture_of
from traceformer.models.loaded import LoadedModel, short_name, weights_digest
from traceformer.models.outputs import auto_class
from traceformer.models.part import text_config
from traceformer.network import hub_answers

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["BUILT_IN", "as_loaded", "built_in_folder", "load_model", "pick_device", "quiet"]


def pick_device(name: str | None, dtype: "torch.dtype | None" = None) -> str:
    """Returns the device to use: the one named, or else cuda, then mps, then cpu, whichever is there.

    Raises:
        UsageError: the device named is not there, or has no numbers of a model's `dtype`.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None or name == "auto":
        name = next(device for device, usable in there.items() if usable)
    if not there.get(name.split(":")[0], False):
        choices = (f'`device="{device}"`' for device, usable in there.items() if usable)
        raise UsageError(f"no device {name!r} here", hint=" or ".join(choices))
    if name.startswith("mps") and dtype == torch.float64:
        raise UsageError(
            f"a model of float64 on {name}", why="Apple's GPUs have no such numbers", hint='`device="cpu"`'
        )
    return name


def load_model(
    model: "str | Path | nn.Module",
    tokenizer: Any = None,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    dtype: str | None = None,
    with_head: bool = False,
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    like: str | None = None,
) -> LoadedModel:
    """Returns a model with its tokenizer, ready to be recorded.

        load_model("gpt2")
        load_model(my_model, my_tokenizer)

    By name it comes in eval mode, as what its config.json says that it is: a language model, a classifier, or a model
    without a head. A model at hand may be with a head or without, on any device, in any dtype, in train mode or not,
    under torch.compile, DataParallel or PEFT. It stays as it is, and so does its tokenizer, of which a copy is used.

    Args:
        model: A Hub name, a local folder, `nanochat:sft[:TAG[:STEP]]`, or a built-in model (`byte`, `byte-sparse`; a
            folder of that name is `./byte`). Or a model of transformers that is at hand.
        tokenizer: Stands in for the model's own. Of a model at hand it is the only one; without it only token ids can
            be read.
        adapter: An adapter of PEFT, a folder or a Hub name; a folder that holds one beside a model's weights comes with
            it, and one that holds nothing else with the model that it was made for. Its layers stand around the
            model's, as PEFT has them. A tokenizer in its folder goes before the model's.
        revision: The commit, tag or branch of a model on the Hub.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; the fastest there is by default.
        device_map: In its place, for models that no device has room for: which device each of its modules is on, as
            accelerate takes it, or `auto`, `balanced`, `balanced_low_0`, `sequential`, which fill those that there are.
            What no GPU has room for stays in memory until it is used, and on disk what that has no room for.
        offload_folder: Where on disk that is.
        dtype: What the model computes in; by default what its weights are stored in, float32 of the built-in models.
        with_head: Load an encoder with its language-model head, where the checkpoint has one.
        attn_implementation: Which of transformers' implementations of attention; by default the model's own choice.
        allow_pickle: Load weights from pickle files, which can run code of whoever made them.
        trust_remote_code: Run code that comes with the model.
        like: A family whose row the model is recorded by, whatever its own: `like="llama"`. Every fact of it is proved
            on the first texts that are recorded.

    Raises:
        UsageError: this is no model or no tokenizer, or a model at hand is to be changed by `dtype` or the like.
        NotFound: no such folder or adapter, and no such model on the Hub or in its cache; a built-in model is not
            installed; no such family.
        Unreadable: the folder is not a transformer, has only pickled weights, or its weights are not those of the model
            that its config describes; or an adapter does not fit.
        Unsupported: the model needs code of its own, which is not run; it is at hand, and cannot be recorded; peft is
            not installed, or an adapter is of a kind that cannot be recorded.
    """
    import torch
    import transformers
    from transformers import AutoConfig, PretrainedConfig
    from transformers.utils.hub import cached_file

    from traceformer.models.adapters import adapt, find_adapter
    from traceformer.models.held import hold, own_tokenizer
    from traceformer.models.tokenizer import load_tokenizer, tokenizer_lies_in
    from traceformer.models.weights import check_index, check_layers

    settings: dict[str, Any] = {
        **{"device": device, "device_map": device_map, "offload_folder": offload_folder},
        **{"dtype": dtype, "with_head": with_head, "attn_implementation": attn_implementation},
        **{"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code},
    }
    if dtype is not None:
        check_choice("dtype", dtype, ("float32", "bfloat16", "float16", "float64"))
    if device_map is not None:
        from traceformer.models.placed import check_map

        check_map(device_map, device, adapter, model)
    elif offload_folder is not None:
        raise UsageError("`offload_folder` without `device_map`", why="nothing is kept on disk then")
    if like is not None:
        architecture_of({}, like)  # a misspelt family fails before anything is loaded
        loaded = load_model(model, tokenizer, adapter=adapter, revision=revision, **settings)
        return replace(loaded, architecture=architecture_of(loaded.config, like), like=like)
    own = None if tokenizer is None else own_tokenizer(tokenizer)
    if not isinstance(model, str | Path):
        every = {"adapter": adapter, "revision": revision, **settings}
        given = [f"`{setting}`" for setting, value in every.items() if value]
        if given:
            raise UsageError(f"{' and '.join(given)} of a model that is at hand", why="it is recorded as it is")
        return hold(model, own)
    name = model if isinstance(model, str) else str(model.absolute())  # a path is never a name of the Hub
    if name.startswith("nanochat:"):
        if adapter is not None:
            raise UsageError("`adapter` of a nanochat checkpoint", why="PEFT makes adapters for folders and Hub names")
        _refuse_revision(name, revision)
        from traceformer.models.nanochat import load_nanochat

        loaded = load_nanochat(
            name, device=device, dtype=dtype, attn_implementation=attn_implementation, allow_pickle=allow_pickle
        )
        return loaded if own is None else replace(loaded, tokenizer=own)
    source = name
    if name in BUILT_IN or Path(name).is_dir():
        _refuse_revision(name, revision)
    if name in BUILT_IN:
        name, dtype = str(built_in_folder(name)), dtype or "float32"
    folder = Path(name)
    local = folder.is_dir()
    if folder.is_file():
        why = "a model is a folder with config.json, weights and tokenizer"
        raise Unreadable(f"{name} is a file", why=why, hint="a folder that train or save_pretrained made")
    _refuse_missing_path(name, "model")
    local_only = not local and not hub_answers()
    place: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": local_only,
    }
    with _explained(name, local):
        beside = find_adapter(name, revision, local_only=local_only)
    if beside is not None and adapter is not None:
        why = f"{name} has one of its own beside its weights"
        raise UsageError("which adapter?", why=why, hint="leave `adapter` away, or name a model without one")
    if beside is not None and not (beside / "config.json").is_file():
        return _load_base_of(beside, name if revision is None else str(beside), tokenizer, **settings)
    if local and not (folder / "config.json").is_file():
        raise Unreadable(f"{name} is not a transformer", why="there is no config.json in the folder")
    if local:
        check_index(folder)
    adapter_name = name if adapter is None else str(adapter.absolute() if isinstance(adapter, Path) else adapter)
    adapter_folder = beside if adapter is None else _find_named_adapter(adapter_name)
    with _explained(name, local), quiet(transformers):
        stated: Any = PretrainedConfig.get_config_dict(name, **place)[0]
        if not isinstance(stated, dict) or not isinstance(stated.get("model_type", ""), str):
            raise Unreadable(
                f"{name} is not a transformer", why="its config.json holds no object that names a model type"
            )
        if stated.get("model_type") in FAMILIES:
            import_module(FAMILIES[stated["model_type"]].module)  # which makes it known to transformers
        config = AutoConfig.from_pretrained(name, **place)
        if not isinstance(getattr(config, "dtype", None), torch.dtype | str | None):
            raise Unreadable(f"{name} cannot be loaded", why=f"its config.json says dtype {config.dtype!r}")
    if local:
        check_layers(folder, getattr(text_config(config), "num_hidden_layers", 0))
    for stating in (config, text_config(config)):
        pad = getattr(stating, "pad_token_id", None)
        if isinstance(pad, int) and pad >= getattr(stating, "vocab_size", pad + 1):
            stating.pad_token_id = None  # it has no embedding, and some classes cannot be made with it
    maker = _maker_of(source, config, auto_class(config, with_head=with_head))
    with _explained(name, local), quiet(transformers):
        if own is None and adapter_folder is not None and tokenizer_lies_in(adapter_folder):
            own = load_tokenizer(str(adapter_folder), adapter_folder)
        elif own is None:
            snapshot = folder if local else Path(str(cached_file(name, "config.json", **place))).parent
            own = load_tokenizer(name, snapshot, **place)
        made, info = maker.from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, dtype) if dtype else "auto",
            use_safetensors=None if allow_pickle else True,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            device_map=device_map,
            offload_folder=offload_folder,
            adapter_kwargs={"subfolder": "none"},  # or transformers would put an adapter in by itself, with peft only
            **place,
        )
    _check_keys(source, info, is_bare=made.base_model is made)
    with torch.no_grad():
        for key in info["missing_keys"]:  # a pooler, which would be random, and so would the digest of the weights
            if made.get_parameter(key).is_meta:
                raise Unsupported(f"{name} without its {key}", why="the rest of it would be kept elsewhere")
            made.get_parameter(key).zero_()
    made, adapted = (made if device_map is not None else made.to(pick_device(device, made.dtype))).eval(), None
    short = short_name(source)
    if adapter_folder is not None:
        with quiet(transformers):
            made, adapted = adapt(made, source, adapter_folder, adapter_name, allow_pickle=allow_pickle)
        short = short if adapter is None else f"{short}-{short_name(adapter_name)}"
    return LoadedModel(
        made.eval(),
        own,
        ModelDims.of(made),
        short,
        source,
        revision,
        weights_digest(made),
        adapter=adapted,
    )


def _refuse_missing_path(name: str, what: str) -> None:
    """Refuses the name of a folder that is not there, which can be no name of the Hub."""
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1):
        raise NotFound(f"no {what} folder {name}")


def _find_named_adapter(name: str) -> Path:
    from traceformer.models.adapters import find_adapter

    local = Path(name).is_dir()
    _refuse_missing_path(name, "adapter")
    with _explained(name, local, "adapter"):
        folder = find_adapter(name, None, local_only=not local and not hub_answers())
    if folder is None:
        why = "there is no adapter_config.json in the folder" if local else "no folder, and none in the Hub's cache"
        raise NotFound(f"no adapter {name}", why=why)
    return folder


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise UsageError(f"`revision={revision!r}` of {name}", why="it is read as it is: revisions are the Hub's")


def _load_base_of(folder: Path, adapter: str, tokenizer: Any, **settings: Any) -> LoadedModel:
    """Returns the model that an adapter was made for, with it."""
    from traceformer.models.adapters import base_of

    base, revision = base_of(folder)
    hint = f'`model=MODEL, adapter="{adapter}"` says where that is'
    if base is None:
        raise Unreadable(f"{adapter} holds an adapter alone", why="it does not say of which model", hint=hint)
    try:
        revision = None if Path(base).is_dir() else revision  # PEFT writes down one of a folder, too
        return load_model(base, tokenizer, adapter=adapter, revision=revision, **settings)
    except NotFound as error:
        why = f"{error.message}; {error.why}" if error.why else error.message
        raise NotFound(f"{adapter} holds an adapter alone, made for {base}", why=why, hint=hint) from error


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


def _maker_of(name: str, config: Any, auto: str) -> Any:
    """Returns what makes a model of this config: an automatic class, or transformers' own that the config names.

    What cannot be recorded is refused before its weights are read: what nobody can make, or has no sizes of its own.
    Of several models in one some classes make the text model alone, whose config is another; they are asked then.
    """
    import transformers

    maker: Any = getattr(transformers, auto)
    if getattr(config, "auto_map", None):
        return maker
    if type(config) in maker._model_mapping:
        made = maker._model_mapping[type(config)]
    else:
        named = next(iter(getattr(config, "architectures", None) or ()), "")
        made = maker = getattr(transformers, named, None)
        if getattr(made, "config_class", None) is not type(config):
            own = "its own class" if made is None else named
            raise Unsupported(
                f"{name} cannot be loaded by its name",
                why=f"{auto} knows no model type {config.model_type!r}",
                hint=f"load it with {own} of transformers, and give that: load_model(model, tokenizer)",
            )
    if getattr(made, "config_class", None) is type(config):
        ModelDims.from_config(config)
    return maker


def _check_keys(name: str, info: Mapping[str, Any], *, is_bare: bool) -> None:
    """Refuses a checkpoint that is not that of the model: half of it would be random, or left out, without a word.

    A pooler that it lacks is no loss, unless a classifier reads it; nor are heads that it has beside its blocks.
    """
    missing = sorted(key for key in info["missing_keys"] if not (is_bare and ".pooler." in f".{key}"))
    unexpected = sorted(info["unexpected_keys"])
    if missing or any(re.search(r"(^|\.)\d+\.", key) for key in unexpected):
        parts = {"lacks the weights of": missing, "has those of": unexpected}
        said = " and ".join(f"{verb} {_some(keys)}" for verb, keys in parts.items() if keys)
        raise Unreadable(f"{name} {said}", why="its config.json describes another model than its weights belong to")


def _some(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"


@contextmanager
def _explained(name: str, local: bool, what: str = "model") -> Generator[None]:
    """Turns what transformers says of a model, or of an adapter, that does not load into one of our errors."""
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
        if "offload_folder" in text:
            raise UsageError(
                f"{name} has no room on these devices, and in memory",
                why="the rest of it would be kept on disk until it is used",
                hint='`offload_folder="FOLDER"`',
            ) from error
        if "safetensors" in text or "pytorch_model.bin" in text:
            raise Unreadable(
                f"{name} has no safetensors weights",
                why="pickled weights can run code when they are read",
                hint="convert them to safetensors, or load them with `allow_pickle=True` if you trust them",
            ) from error
        if local:
            raise Unreadable(f"{name} cannot be loaded", why=first) from error
        raise NotFound(
            f"no {what} {name!r} in the Hub's cache, nor could it be fetched",
            why=first,
            hint="give a folder, or a Hub name such as gpt2" if what == "model" else "give its folder, or its Hub name",
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
