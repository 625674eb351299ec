"""Checkpoints of karpathy/nanochat, in transformers' NanoChat class.

1. They lie under NANOCHAT_BASE_DIR (~/.cache/nanochat): a folder per stage of training, in it one per model
   (`d20`: 20 layers), in it `model_STEP.pt` and `meta_STEP.json`. The tokenizer is in `tokenizer/`.
2. Weights are read with `weights_only=True` and renamed. A name or setting that the class has no place for is
   refused: nanochat's later architectures (value embeddings, windows, residual scales) are other models.
3. Two things differ between that code and the class, and are made equal: the epsilon of the norms, which is float32's
   own, and the cosines and sines of the rotary embedding, which it rounds to bfloat16.
"""

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from traceformer.errors import NotFound, Unreadable, Unsupported, UsageError
from traceformer.models.dims import ModelDims
from traceformer.models.load import pick_device, quiet
from traceformer.models.loaded import LoadedModel, weights_digest
from traceformer.models.nanochat_tokenizer import BOS, END, load_tokenizer
from traceformer.plain_json import parse_json

if TYPE_CHECKING:
    import torch
    from transformers import NanoChatConfig, NanoChatForCausalLM, PreTrainedTokenizerFast

__all__ = ["Checkpoint", "Source", "checkpoints_of", "find_checkpoint", "load_model", "load_nanochat"]

Source: TypeAlias = Literal["base", "mid", "sft", "rl"]

_FOLDERS: Mapping[str, str] = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where one checkpoint lies: `base_dir` is nanochat's, `folder` the model's own."""

    base_dir: Path
    source: str
    tag: str
    step: int

    @property
    def folder(self) -> Path:
        return self.base_dir / _FOLDERS[self.source] / self.tag

    @property
    def weights(self) -> Path:
        return self.folder / f"model_{self.step:06d}.pt"

    @property
    def meta(self) -> Path:
        return self.folder / f"meta_{self.step:06d}.json"

    def __str__(self) -> str:
        return f"nanochat:{self.source}:{self.tag}:{self.step}"


def find_checkpoint(source: str, model_tag: str | None = None, step: int | None = None) -> Checkpoint:
    """Returns the checkpoint that is meant: of the model with most layers, and its last step, unless told otherwise.

    Raises:
        UsageError: there is no such stage, or the tag is no plain name.
        NotFound: there is no such checkpoint; the message says what there is.
    """
    if source not in _FOLDERS:
        raise UsageError(f"no nanochat model {source!r}", hint=f"one of {', '.join(_FOLDERS)}")
    if model_tag is not None and (not _NAME.fullmatch(model_tag) or model_tag in (".", "..")):
        raise UsageError(f"{model_tag!r} is no tag of a model", hint="such as d20")
    stated = os.environ.get("NANOCHAT_BASE_DIR")
    base_dir = Path(stated) if stated else Path.home() / ".cache" / "nanochat"
    models = base_dir / _FOLDERS[source]
    tags = sorted((path.name for path in models.glob("*") if path.is_dir()), key=lambda tag: _size(models / tag))
    if model_tag is None and not tags:
        raise NotFound(
            f"no {source} checkpoints in {models}", hint="set NANOCHAT_BASE_DIR to where nanochat keeps its files"
        )
    tag = model_tag or tags[-1]
    steps = _steps_in(models / tag)
    if not steps:
        raise NotFound(f"no checkpoint in {models / tag}", hint=f"there are models {', '.join(tags)}" if tags else "")
    if step is not None and step not in steps:
        raise NotFound(f"no step {step} in {models / tag}", hint=f"there are steps {', '.join(map(str, steps))}")
    return Checkpoint(base_dir, source, tag, steps[-1] if step is None else step)


def checkpoints_of(model: str) -> list[Checkpoint]:
    """Returns all checkpoints of a model: of its name, `nanochat:base:d12`, or of its folder.

    Raises:
        UsageError: the folder is not where nanochat keeps such.
        NotFound: there are none.
    """
    name = re.fullmatch(r"nanochat:([^:]+)(?::([^:]+))?", model)
    if name:
        source, tag = name[1], name[2]
    else:
        folder = Path(model).absolute()
        source = next((each for each, kept in _FOLDERS.items() if kept == folder.parent.name), None)
        tag = folder.name
        if source is None:
            raise UsageError(
                f"{model} holds model_STEP.pt, but is not where nanochat keeps them",
                why=f"that is NANOCHAT_BASE_DIR/{_FOLDERS['base']}/TAG",
                hint="set NANOCHAT_BASE_DIR, and name the model: nanochat:base:TAG",
            )
    newest = find_checkpoint(source, tag)
    if not name and newest.folder.resolve() != Path(model).resolve():
        raise UsageError(
            f"{model} is not in nanochat's folder", hint=f"NANOCHAT_BASE_DIR={Path(model).absolute().parents[1]}"
        )
    return [replace(newest, step=step) for step in _steps_in(newest.folder)]


def _steps_in(folder: Path) -> list[int]:
    found = (re.fullmatch(r"model_(\d+)\.pt", path.name) for path in folder.glob("model_*.pt"))
    return sorted(int(match[1]) for match in found if match)


def _size(folder: Path) -> tuple[int, float, str]:
    """Orders models as nanochat does: those named after their depth by it, before these the others by their age."""
    depth = re.match(r"d(\d+)", folder.name)
    return (int(depth[1]), 0.0, folder.name) if depth else (-1, folder.stat().st_mtime, folder.name)


def load_nanochat(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
) -> LoadedModel:
    """Returns the model named `nanochat:SOURCE[:TAG[:STEP]]`, SOURCE being base, mid, sft or rl.

    Raises:
        UsageError, NotFound: as `find_checkpoint` raises them.
        Unreadable: a file is damaged, or holds anything but tensors.
        Unsupported: the checkpoint is of another architecture, or its tokenizer is pickled and may not be opened.
    """
    match = re.fullmatch(r"nanochat:([^:]+)(?::([^:]+)(?::(\d+))?)?", name)
    if not match:
        raise UsageError(
            f"cannot read the model {name!r}", hint="nanochat:sft, nanochat:sft:d20 or nanochat:sft:d20:650"
        )
    checkpoint = find_checkpoint(match[1], match[2], int(match[3]) if match[3] else None)
    model, tokenizer, _ = _load(checkpoint, device, dtype, attn_implementation, allow_pickle)
    return LoadedModel(
        model,
        tokenizer,
        ModelDims.of(model),
        str(checkpoint).replace(":", "-"),
        str(checkpoint),
        None,
        weights_digest(model),
    )


def load_model(
    source: Source,
    device: "str | torch.device | None" = None,
    phase: Literal["train", "eval"] = "eval",
    model_tag: str | None = None,
    step: int | None = None,
    *,
    allow_pickle: bool = False,
) -> "tuple[NanoChatForCausalLM, PreTrainedTokenizerFast, dict[str, Any]]":
    """Returns model, tokenizer and the checkpoint's own metadata, as nanochat's function of this name does.

        model, tokenizer, meta = load_model("sft", "cpu")

    Raises as `load_nanochat` does.
    """
    where = None if device is None else str(device)
    model, tokenizer, meta = _load(find_checkpoint(source, model_tag, step), where, None, None, allow_pickle)
    return model.train(phase == "train"), tokenizer, meta


def _load(
    checkpoint: Checkpoint,
    device: str | None,
    dtype: str | None,
    attn_implementation: str | None,
    allow_pickle: bool,
) -> "tuple[NanoChatForCausalLM, PreTrainedTokenizerFast, dict[str, Any]]":
    import torch
    import transformers
    from transformers import NanoChatConfig, NanoChatForCausalLM

    meta = _read_meta(checkpoint.meta)
    sizes = _sizes(meta, checkpoint.meta)
    tokenizer = load_tokenizer(checkpoint.base_dir / "tokenizer", allow_pickle)
    if len(tokenizer) != sizes["vocab_size"]:
        raise Unreadable(
            f"the tokenizer in {checkpoint.base_dir / 'tokenizer'} has {len(tokenizer)} tokens, "
            f"{checkpoint} has {sizes['vocab_size']}",
            why="it belongs to another model",
        )
    stops: Any = [tokenizer.convert_tokens_to_ids(token) for token in (END, BOS)]
    config = NanoChatConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["n_embd"],
        intermediate_size=4 * sizes["n_embd"],
        num_hidden_layers=sizes["n_layer"],
        num_attention_heads=sizes["n_head"],
        num_key_value_heads=sizes["n_kv_head"],
        max_position_embeddings=sizes["sequence_len"],
        rms_norm_eps=torch.finfo(torch.float32).eps,  # what torch's rms_norm takes where none is given
        bos_token_id=stops[1],
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    weights = dict(_renamed(_read_weights(checkpoint.weights)))
    _check_weights(weights, config, checkpoint)
    # Embeddings are stored in bfloat16, which float32 holds exactly.
    kind = getattr(torch, dtype) if dtype else torch.float32
    with quiet(transformers):
        model: Any = NanoChatForCausalLM.from_pretrained(
            None, config=config, state_dict=weights, dtype=kind, attn_implementation=attn_implementation
        )
    model.model.rotary_emb.register_forward_hook(_round_as_nanochat)
    return model.to(device=pick_device(device, kind)).eval(), tokenizer, meta


def _round_as_nanochat(_: Any, __: Any, cos_sin: "tuple[torch.Tensor, torch.Tensor]") -> Any:
    return tuple(part.bfloat16().to(part.dtype) for part in cos_sin)


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        stated = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"no file {path}", why="nanochat writes it beside the weights") from None
    except ValueError as error:
        raise Unreadable(f"{path} is no JSON", why=str(error)) from None
    if not isinstance(stated, dict) or not isinstance(stated.get("model_config"), dict):
        raise Unreadable(f"{path} states no model_config")
    return stated


def _sizes(stated: Mapping[str, Any], path: Path) -> dict[str, int]:
    config = dict(stated["model_config"])
    sizes = {
        name: config.pop(name, None)
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    }
    wrong = [name for name, size in sizes.items() if not isinstance(size, int) or isinstance(size, bool) or size < 1]
    if wrong:
        raise Unreadable(f"{path} states no {', '.join(wrong)}")
    further = [f"{name} {value}" for name, value in config.items() if value]
    if further:
        raise Unsupported(
            f"{path} states {', '.join(further)}", why="transformers' NanoChat class is the architecture without it"
        )
    return sizes


def _read_weights(path: Path) -> "Mapping[str, torch.Tensor]":
    import torch

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None
    except pickle.UnpicklingError as error:
        raise Unreadable(
            f"{path} holds more than tensors", why="reading it could run code, so it is not read"
        ) from error
    except Exception as error:  # what a damaged archive of pickled tensors comes upon: torch's own assertions, zlib's
        why = next(iter(str(error).splitlines()), "torch cannot make tensors of it")
        raise Unreadable(f"{path} is damaged", why=why) from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise Unreadable(f"{path} is no dictionary of tensors")
    return weights


_IN_A_LAYER: Mapping[str, str] = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _renamed(weights: "Mapping[str, torch.Tensor]") -> "Iterator[tuple[str, torch.Tensor]]":
    """Yields the weights under the class's names; those it has no place for keep their own."""
    for name, tensor in weights.items():
        name = name.removeprefix("_orig_mod.")  # what torch.compile puts before every name
        in_layer = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)\.weight", name)
        if in_layer and in_layer[2] in _IN_A_LAYER:
            name = f"model.layers.{in_layer[1]}.{_IN_A_LAYER[in_layer[2]]}.weight"
        yield ("model.embed_tokens.weight" if name == "transformer.wte.weight" else name), tensor


def _check_weights(weights: "Mapping[str, torch.Tensor]", config: "NanoChatConfig", checkpoint: Checkpoint) -> None:
    import torch
    from transformers import NanoChatForCausalLM

    if config.num_hidden_layers > len(weights):  # each layer has six, and making many takes minutes
        raise Unreadable(
            f"{checkpoint.weights} has {len(weights)} tensors",
            why=f"its {config.num_hidden_layers} layers have six each",
        )
    try:
        with torch.device("meta"):
            model = NanoChatForCausalLM(config)
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        raise Unreadable(f"{checkpoint.meta} states sizes that no model has", why=str(error)) from error
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    unknown = sorted(weights.keys() - shapes.keys())
    if unknown:
        raise Unsupported(
            f"{checkpoint} is of another architecture: it has {', '.join(unknown[:3])}"
            f"{' ...' if len(unknown) > 3 else ''}",
            why="transformers' NanoChat class is nanochat's architecture of 2025, without these weights",
        )
    wrong = sorted(name for name, shape in shapes.items() if name not in weights or weights[name].shape != shape)
    if wrong:
        raise Unreadable(
            f"{checkpoint.weights} lacks {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}",
            why="or has it in another shape than meta_*.json states",
        )
