"""What is proved of edits on a given model.

1. Numbers that are put in the place of equal ones change nothing, at every site that can be edited.
2. The residual stream of another text, put in a text's place at all its positions, gives that text's output.
3. Without one head, attention adds less by what this head's mixed values are through W_O.
4. Steering by nothing and cutting no edge changes nothing.
5. Edits beside a cache give what they give in one pass.

The first, second and fourth hold to the bit.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from traceformer.capture.edits.kinds import add, cut
from traceformer.capture.edits.session import Editing
from traceformer.capture.edits.touching import Place, Touch, Touching, check_place
from traceformer.capture.proofs.place import Rounding, Scene, apply, error_between
from traceformer.capture.proofs.tested import Errors
from traceformer.capture.scores import Span
from traceformer.capture.spots import scale_of
from traceformer.capture.tensors import first_output, own_output
from traceformer.errors import Unsupported
from traceformer.models.outputs import reads_itself
from traceformer.models.part import text_config, text_part
from traceformer.models.quantised import quantisation_of
from traceformer.sites import ArrayKey, ArraySpec, Stack

__all__ = ["DONOR", "prove_edits"]

_SAME = "an edit that puts its own numbers there changes nothing"
DONOR = "of another text, put there by an edit, gives that text's output"
_HEAD = "without a head is what it was less z @ W_O of that head"
_NOTHING = "steering by 0 and cutting no edge change nothing"
_CACHED = "edited beside a cache is as edited in one pass"
_STREAM = ("resid_pre", "resid_mid", "resid_post")


def prove_edits(
    scene: Scene,
    specs: Sequence[ArraySpec],
    inputs: Mapping[str, Tensor],
    spans: Mapping[Stack, Sequence[Span]],
    errors: Errors,
) -> None:
    """Adds how far off each fact is, the largest over places, where the model has what it is about."""
    model: Any = scene.model
    places = [place for spec in specs for place in _places(scene, spec)]
    if not places:
        return

    keys = {spec.key for spec in specs}

    def add_error(key: ArrayKey, fact: str, error: float, rounding: Rounding = Rounding.NONE) -> None:
        if key in keys:
            errors[key, fact, rounding] = max(error, errors.get((key, fact, rounding), 0.0))

    def output(touches: Mapping[Place, Touch], given: Mapping[str, Tensor] = inputs) -> Tensor:
        with Touching(model, touches, scene.row):
            return _output_of(model(**given))

    plain = output({})
    together = torch.equal(output(dict.fromkeys(places, torch.clone)), plain)
    for key in dict.fromkeys(key for key, _ in places):
        own = {place: torch.clone for place in places if place[0] == key}
        add_error(key, _SAME, 0.0 if together else error_between(output(own), plain))

    for stack in spans:
        if not reads_itself(model) and not _read_tokens(model):  # or it would be given the text that it is a donor for
            _prove_donor(scene, stack, inputs, spans[stack], places, output, add_error)
        editable = {(key.site, key.attention) for key, _ in places if key.stack == stack}
        key = ArrayKey(stack, None, "resid_post")
        steered = add("resid_post", None, np.ones(scene.dims.stacks[stack].d_model), 0.0, stack=stack)
        kept = [cut(key="response", stack=stack)] if ("attn_pattern", "self") in editable else []
        with Editing(model, (*([steered] if any(place[0] == key for place in places) else []), *kept), scene.row):
            add_error(key, _NOTHING, error_between(_output_of(model(**inputs)), plain))
    if quantisation_of(model) is not None:  # which rounds a row by all that a module is given with it
        return
    for key in {key for key, _ in places if key.site == "z"}:
        _prove_head(scene, key, output, add_error)
    _prove_cached(scene, places, add_error)


def _read_tokens(model: Any) -> bool:
    """Whether blocks are given more of a token than its stream: an embedding for each layer (Gemma 3n, Gemma 4)."""
    return bool(getattr(text_config(model.config), "hidden_size_per_layer_input", 0))


def _places(scene: Scene, spec: ArraySpec) -> list[Place]:
    """The layers of an array that can be edited."""
    layers = spec.layers or (None,)
    try:
        check_place(scene.model, scene.row, spec.key, layers[0])
    except Unsupported:
        return []
    return [(spec.key, layer) for layer in layers]


def _prove_donor(
    scene: Scene,
    stack: Stack,
    inputs: Mapping[str, Tensor],
    spans: Sequence[Span],
    places: Sequence[Place],
    output: Callable[..., Tensor],
    add_error: Callable[..., None],
) -> None:
    name = "decoder_input_ids" if stack == "dec" and "decoder_input_ids" in inputs else "input_ids"
    if name not in inputs:
        return
    ids = inputs[name].clone()
    for row, span in zip(ids, spans, strict=True):
        row[span.start : span.stop] = row[span.start : span.stop].flip(0)
    donor = {**inputs, name: ids}
    depth = scene.dims.stacks[stack].n_layers
    blocks = text_part(scene.model).get_submodule(scene.row.stacks[stack].blocks)
    if any("original_hidden_states" in inspect.signature(block.forward).parameters for block in blocks.children()):
        return  # Zamba's blocks read the embeddings beside the stream, which then is not all that a text hands on
    chosen = [
        (key, layer)
        for key, layer in places
        if key.stack == stack and key.site in _STREAM and layer in (0, depth // 2, depth - 1)
    ]
    kept: dict[Place, Tensor] = {}

    def keep(place: Place) -> Touch:
        def touch(tensor: Tensor) -> Tensor:
            kept[place] = tensor.clone()
            return tensor

        return touch

    wanted = output({place: keep(place) for place in chosen}, donor)
    for place in chosen:
        add_error(place[0], DONOR, error_between(output({place: lambda _, place=place: kept[place]}), wanted))


def _prove_head(scene: Scene, key: ArrayKey, output: Callable[..., Tensor], add_error: Callable[..., None]) -> None:
    row, layer = scene.row.stacks[key.stack], _middle_of(scene, key.stack)
    attention = row.attention_of(key.attention)
    assert attention is not None
    out = key._replace(site="attn_out")
    if attention.out_proj is None or not scene.row.has(out):
        return
    module = text_part(scene.model).get_submodule(f"{row.blocks}.{layer}.{attention.out_proj}")
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Touch:
        def touch(tensor: Tensor) -> Tensor:
            seen[name] = tensor.clone()
            return tensor

        return touch

    def without(mixed: Tensor) -> Tensor:
        left = mixed.clone()
        left[:, 0] = 0
        return left

    output({(key, layer): keep("z"), (out, layer): keep("before")})
    output({(key, layer): without, (out, layer): keep("after")})
    whole = seen["z"].transpose(1, 2)
    alone = torch.zeros_like(whole)
    alone[:, :, 0] = whole[:, :, 0]
    projected, of_head, bias = (
        torch.stack([apply(module, each) for each in rows.flatten(-2)]) for rows in (whole, alone, 0 * whole)
    )
    scale = scale_of(row)
    projected, of_head, bias = projected * scale, of_head * scale, bias * scale
    if projected.shape != seen["before"].shape or not torch.allclose(projected, seen["before"], rtol=1e-3, atol=1e-4):
        return  # what attention adds is not what its projection makes: a norm or a gate stands between
    expected = seen["before"].float() - (of_head.float() - bias.float())
    add_error(out, _HEAD, error_between(seen["after"].float(), expected), Rounding.MODEL)


def _prove_cached(scene: Scene, places: Sequence[Place], add_error: Callable[..., None]) -> None:
    """Tries the first text without padding: all but its last token, then that one beside the cache."""
    model: Any = scene.model
    logits = ArrayKey("dec", None, "logits")
    accepted = inspect.signature(model.forward).parameters
    if (logits, None) not in places or list(scene.row.stacks) != ["dec"] or "past_key_values" not in accepted:
        return
    ids = scene.ids[0]["dec"][None]
    layer = _middle_of(scene, "dec")
    changes: dict[str, Touch] = {
        "z": lambda mixed: torch.cat([0 * mixed[:, :1], mixed[:, 1:]], 1),
        "k": lambda keys: keys / 2,
        "resid_post": lambda rows: rows + 1,
    }
    touches: dict[Place, Touch] = {
        (key, layer): changes[key.site] for key, number in places if number == layer and key.site in changes
    }
    if ids.shape[1] < 2 or not touches:
        return
    with Touching(model, touches, scene.row):
        whole = model(input_ids=ids, use_cache=False).logits[:, -1]
        begun = model(input_ids=ids[:, :-1], use_cache=True)
        cache = getattr(begun, "past_key_values", None)
        if cache is None:
            return
        placed = {"position_ids": torch.full_like(ids[:, -1:], ids.shape[1] - 1)} if "position_ids" in accepted else {}
        last = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True, **placed).logits[:, -1]
    add_error(logits, _CACHED, error_between(last, whole), Rounding.BATCH)


def _middle_of(scene: Scene, stack: Stack) -> int:
    """A layer in the middle of those that have attention, or of all where none has."""
    dims = scene.dims.stacks[stack]
    layers = dims.attention_layers or range(dims.n_layers)
    return layers[len(layers) // 2]


def _output_of(output: Any) -> Tensor:
    made = own_output(output)
    made = first_output(output) if made is None else made
    assert made is not None
    return made
