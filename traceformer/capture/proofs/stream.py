"""Claims about the residual stream, from the embedding to the logits, and about the MLP."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from traceformer.capture.proofs.place import Claim, NotHere, Place, Rounding, Sides, apply, error_between
from traceformer.capture.tensors import own_output
from traceformer.models.families import own_family
from traceformer.models.family import ReadoutRow
from traceformer.models.placed import onloaded
from traceformer.models.quantised import holds_codes
from traceformer.sites import SITES, ArrayKey, Stack

__all__ = ["STREAM_CLAIMS", "input_of_mlp"]


def _embedding(place: Place) -> Sides:
    model: Any = place.scene.model
    alone = len(place.scene.row.stacks) == 1
    owner = model if alone else model.get_encoder() if place.stack == "enc" else model.get_decoder()
    try:
        table = owner.get_input_embeddings()
    except NotImplementedError:  # a class of the user's own, which does not say
        table = place.part.get_submodule(place.row.token_embed)
    if holds_codes(table.weight):
        raise NotHere
    with onloaded(table):
        rows = table.weight[place.scene.ids[place.example][place.stack].to(table.weight.device)]
    return place("token_embed"), rows * torch.as_tensor(getattr(table, "embed_scale", 1.0)).to(rows.dtype)


def _first_input(place: Place) -> Sides:
    return place("embed"), place.at(0)("resid_pre")


def _last_output(place: Place) -> Sides:
    recorded = place("resid_pre")
    return recorded, place.at(place.layer - 1)("resid_post") if place.layer else place("embed")


def _own_hidden(place: Place) -> Sides:
    recorded, own = _recorded_and_own_hidden(place)
    if own.shape != recorded.shape:
        raise NotHere
    return recorded, own


def _narrowed_hidden(place: Place) -> Sides:
    recorded, own = _recorded_and_own_hidden(place)
    if own.shape == recorded.shape:
        raise NotHere
    return _project_out(place, recorded), own


def _recorded_and_own_hidden(place: Place) -> Sides:
    assert place.layer is not None
    recorded, layer = place("hidden"), place.layer
    if place.stack not in place.scene.reference.hidden:
        raise NotHere
    own = [states[place.example, : len(recorded)] for states in place.scene.reference.hidden[place.stack]]
    if layer < place.dims.n_layers and _lack_embedding(place, own[0]):
        if layer == 0:
            raise NotHere
        layer -= 1
    return recorded, own[layer]


def _lack_embedding(place: Place, first: Tensor) -> bool:
    """Whether a model's hidden states begin behind its first block, as Mamba's do.

    They are as many as of others, since what the last block makes is there beside the norm of it.
    """
    try:
        embedded, made = place.at(0)("hidden"), place.at(1)("hidden")
    except NotHere:
        return False
    return made.shape == first.shape and torch.equal(made, first) and not torch.equal(embedded, first)


def _project_out(place: Place, stream: Tensor) -> Tensor:
    """OPT-350m embeds and unembeds in fewer dimensions than it computes in."""
    project = getattr(getattr(place.part, "decoder", None), "project_out", None)
    return stream if project is None else apply(project, stream)


def _middle(place: Place) -> Sides:
    recorded, stream = place("resid_mid"), place("resid_pre")
    for attention in ("self",) if place.row.cross is None else ("self", "cross"):
        stream = place.after_attention(attention, stream)
    return recorded, stream


def _end(place: Place) -> Sides:
    recorded, mlp_out = place("resid_post"), place("mlp_out")
    if place.row.parallel:
        stream = place("resid_pre") + place("attn_out", attention="self") + mlp_out
    else:
        stream = place("resid_mid") + mlp_out
    return recorded, stream if place.row.post_norm is None else place.apply(place.row.post_norm, stream)


def _end_of_one(place: Place) -> Sides:
    """Blocks that have either attention or an MLP; there is nothing between them."""
    if not _has_one_sublayer(place):
        raise NotHere
    try:
        added = place("mlp_out")
    except NotHere:
        added = place("attn_out", attention="self")
    return place("resid_post"), place("resid_pre") + added


def _has_one_sublayer(place: Place) -> bool:
    return not place.row.parallel and "resid_mid" not in place.row.mlp


def _final_norm(place: Place) -> Sides:
    recorded, path = place("final_norm"), place.row.final_norm
    assert path is not None
    stream = place.at(place.dims.n_layers - 1)("resid_post")
    return recorded, apply(place.part.get_submodule(path), stream)


def _same_logits(place: Place) -> Sides:
    return _same_output("logits")(place)


def _same_output(site: str) -> Callable[[Place], Sides]:
    def sides(place: Place) -> Sides:
        recorded, own = place(site), place.scene.reference.logits
        if own is None:
            raise NotHere
        return recorded, own[place.example] if SITES[site].is_per_example else own[place.example, : len(recorded)]

    return sides


def _unembedded(place: Place) -> Sides:
    """Unembedding by hand, for decoders: their heads are one matrix and, in most families, a scale, bias or softcap."""
    model, config, recorded = place.scene.model, place.config, place("logits")
    unembedding = model.get_output_embeddings()
    if unembedding is None or _has_layers_in_head(place):
        raise NotHere
    stream = _project_out(place, place.last_stream())
    if getattr(config, "scale_decoder_outputs", False):
        stream = stream * config.d_model**-0.5
    logits = apply(unembedding, stream)
    logits = logits + getattr(model, "final_logits_bias", torch.zeros(1, 1).to(logits))[0]
    family = own_family(config)
    readout = ReadoutRow(logit_divisor=("logits_scaling", 1.0)) if family is None else family.readout
    assert readout is not None
    scale = _stated(config, readout.logit_scale[0] or "logit_scale", "lm_head_multiplier")
    softcap = _stated(config, "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    divisor = _stated(config, readout.logit_divisor[0])
    logits = (logits if scale is None else logits * scale) / (divisor or 1)
    return recorded, logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _stated(config: Any, *names: str) -> float | None:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _through_own_head(place: Place) -> Sides:
    if not _has_layers_in_head(place):
        raise NotHere
    return _through_head("logits")(place)


def _has_layers_in_head(place: Place) -> bool:
    """An encoder's masked-language head has layers of its own, and so have those of families without a readout."""
    family = own_family(place.config)
    return place.stack == "enc" or (family is not None and family.readout is None)


def _through_head(site: str) -> Callable[[Place], Sides]:
    """A head of any kind: run, with the recorded stream put in its way, and what a pooler makes of that."""

    def sides(place: Place) -> Sides:
        model, recorded = place.scene.model, place(site)
        stream = _project_out(place, place.last_stream())

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            output.last_hidden_state = stream[None]
            if getattr(output, "pooler_output", None) is not None:
                output.pooler_output = module.get_submodule("pooler")(stream[None])
            return output

        handle = model.base_model.register_forward_hook(replace)
        try:
            output = own_output(model(input_ids=place.scene.ids[place.example][place.stack][None]))
        finally:
            handle.remove()
        assert output is not None
        return recorded, output[0]

    return sides


def _alone(place: Place) -> Sides:
    recorded, model = place("class_logits"), place.scene.model
    if model.dtype not in (torch.float32, torch.float64):  # a batch of another shape rounds otherwise
        raise NotHere
    stack: Stack = "enc" if "enc" in place.scene.ids[place.example] else "dec"
    return recorded, model(input_ids=place.scene.ids[place.example][stack][None]).logits[0]


def input_of_mlp(place: Place) -> Tensor:
    """Returns what the MLP reads: normed, of parallel blocks attention's input, or the stream itself."""
    if "mlp_norm" in place.row.mlp:
        return place("mlp_norm")
    return place("attn_norm", attention="self") if place.row.parallel else _stream_into_mlp(place)


def _stream_into_mlp(place: Place) -> Tensor:
    return place("resid_pre" if place.row.parallel or _has_one_sublayer(place) else "resid_mid")


def _mlp_norm(place: Place) -> Sides:
    recorded = place("mlp_norm")
    return recorded, place.apply(place.row.mlp["mlp_norm"].path, _stream_into_mlp(place))


def _mlp_up(place: Place) -> Sides:
    recorded, tap = place("mlp_up"), place.row.mlp["mlp_up"]
    whole = place.apply(tap.path, input_of_mlp(place))
    half = whole.shape[-1] // 2
    return recorded, {"first half": whole[:, :half], "second half": whole[:, half:]}.get(tap.part, whole)


def _is_gated(place: Place) -> bool:
    """Whether the down projection's input is nearer to act * up than to act: seen in the model, not in its row."""
    act, up, mid = place("mlp_act"), place("mlp_up"), place("mlp_mid")
    return error_between(mid, act * up) < error_between(mid, act)


def _plain_mid(place: Place) -> Sides:
    if _is_gated(place):
        raise NotHere
    return place("mlp_mid"), place("mlp_act")


def _gated_mid(place: Place) -> Sides:
    if not _is_gated(place):
        raise NotHere
    return place("mlp_mid"), place("mlp_act") * place("mlp_up")


def _plain_act(place: Place) -> Sides:
    if _is_gated(place):
        raise NotHere
    return place("mlp_act"), place.apply(place.row.mlp["mlp_act"].path, place("mlp_up"))


def _mlp_down(place: Place) -> Sides:
    return place("mlp_down"), place.apply(place.row.mlp["mlp_mid"].path, place("mlp_mid"))


def _mlp_out(place: Place) -> Sides:
    recorded, down, path = place("mlp_out"), place("mlp_down"), place.row.mlp["mlp_out"].path
    return recorded, place.normed(path, down) * place.scale


def _experts(place: Place) -> Sides:
    recorded = place("mlp_out")
    if "mlp_down" in place.row.mlp and _is_recorded(place, "mlp_down"):
        raise NotHere
    return recorded, place.apply(place.row.mlp["mlp_out"].path, input_of_mlp(place)) * place.scale


def _is_recorded(place: Place, site: str) -> bool:
    """Whether the layer has the site: of two kinds of MLP only one may."""
    key = ArrayKey(place.stack, None, site)
    others = any(each == key for each, _ in place.scene.arrays)
    return not others or (key, place.layer) in place.scene.arrays


STREAM_CLAIMS = (
    Claim("token_embed", "equals the embedding's rows of the token ids", _embedding, Rounding.MODEL),
    Claim("embed", "equals resid_pre of the first block", _first_input, Rounding.NONE),
    Claim("resid_pre", "equals resid_post of the block before, or embed", _last_output, Rounding.NONE),
    Claim("resid_mid", "equals resid_pre + attn_out, normed in post-norm blocks", _middle, Rounding.MODEL),
    Claim("mlp_norm", "equals the norm of the residual stream", _mlp_norm, Rounding.MODEL),
    Claim("mlp_up", "equals the up projection of the MLP's input", _mlp_up, Rounding.MODEL),
    Claim("mlp_act", "equals the activation function of mlp_up", _plain_act, Rounding.MODEL),
    Claim("mlp_mid", "equals mlp_act", _plain_mid, Rounding.NONE),
    Claim("mlp_mid", "equals mlp_act * mlp_up", _gated_mid, Rounding.MODEL),
    Claim("mlp_down", "equals the down projection of mlp_mid", _mlp_down, Rounding.MODEL),
    Claim("mlp_out", "equals mlp_down, after the post-norm where there is one", _mlp_out, Rounding.MODEL),
    Claim("mlp_out", "equals the experts' output for the MLP's input", _experts, Rounding.MODEL),
    Claim("resid_post", "equals resid_mid + mlp_out (parallel: resid_pre + attn_out + mlp_out)", _end, Rounding.MODEL),
    Claim("resid_post", "equals resid_pre + what the block's one sublayer adds", _end_of_one, Rounding.MODEL),
    Claim("hidden", "equals the model's own output_hidden_states", _own_hidden, Rounding.NONE),
    Claim("hidden", "gives the last of the model's own, after project_out", _narrowed_hidden, Rounding.MODEL),
    Claim("final_norm", "equals the final norm of the last resid_post", _final_norm, Rounding.MODEL),
    Claim("logits", "equals the model's logits when nothing is recorded", _same_logits, Rounding.NONE),
    Claim("logits", "equals the unembedding of the last residual stream", _unembedded, Rounding.MODEL),
    Claim("logits", "equals the model's own head on the last residual stream", _through_own_head, Rounding.MODEL),
    *(
        claim
        for site in ("class_logits", "token_class_logits")
        for claim in (
            Claim(site, "equals the model's own when nothing is recorded", _same_output(site), Rounding.NONE),
            Claim(site, "equals the model's own head on the last residual stream", _through_head(site), Rounding.MODEL),
        )
    ),
    Claim("class_logits", "equals the model's own of the text alone", _alone, Rounding.BATCH),
)
