"""Slopes against finite differences that plain hooks make, and estimates where they must be exact."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tests.families import mostly_slow
from traceformer.capture.edits.slopes import Climb, Read, estimates_at, values_at
from traceformer.capture.edits.started import Passes
from traceformer.errors import UsageError
from traceformer.models.load import load_model
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArrayKey

FAMILIES = mostly_slow(
    ["gpt2", "llama", "gpt_neox_parallel", "opt", "phi3", "gemma", "stablelm_parallel", "starcoder2"],
    ("gpt2", "llama", "opt"),
)
"""Those whose attention stays in float64: others take the softmax in float32, where differences show 1e-3 only."""
TOLERANCE = 1e-6  # central differences of float64 with a step of 1e-5


def _place(site: str, layer: int) -> tuple[ArrayKey, int]:
    return ArrayKey("dec", "self" if site in ("z", "v", "attn_out", "attn_pattern") else None, site), layer


def read(family: str, *ids: list[int], **changes: Any) -> Read:
    """Texts of a tiny model in float64; its RMSNorms, which compute in float32, too."""
    model = tiny_model(family, **changes).double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _rms_norm(module)
    return Read(Passes(load_model(model)), torch.tensor(ids), -1)


def _rms_norm(module: Any) -> Callable[[Tensor], Tensor]:
    weight = 1 + module.weight if "Gemma" in type(module).__name__ else module.weight
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return lambda x: weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1].logsumexp(-1)


OWN, OTHER = [5, 6, 7, 8, 9, 6, 7], [5, 6, 11, 8, 9, 6, 7]


def stepped(texts: Read, module: nn.Module, step: Tensor, *, into: bool = False) -> float:
    """The metric with a step added to what a module makes, or takes, by a hook of torch's own."""

    def added(tensor: Tensor) -> Tensor:
        return tensor + step.reshape(tensor.shape)

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        return (
            ((added(args[0]), *args[1:]), kwargs)
            if args
            else (args, kwargs | {"hidden_states": added(kwargs["hidden_states"])})
        )

    def after(_: Any, args: Any, output: Any) -> Any:
        return (added(output[0]), *output[1:]) if isinstance(output, tuple) else added(output)

    hook = module.register_forward_pre_hook(before, with_kwargs=True) if into else module.register_forward_hook(after)
    with torch.no_grad():
        made = float(metric(texts.logits({})).sum())
    hook.remove()
    return made


def modules_of(family: str, model: Any, layer: int) -> dict[str, tuple[nn.Module, bool]]:
    """Where a family has its sites, and whether these are what the module takes."""
    base = model.base_model
    if family == "gpt2":
        block = base.h[layer]
        attention, out_proj, mlp = block.attn, block.attn.c_proj, block.mlp
    elif family.startswith("gpt_neox"):
        block = base.layers[layer]
        attention, out_proj, mlp = block.attention, block.attention.dense, block.mlp
    elif family == "opt":
        block = base.decoder.layers[layer]
        attention, out_proj, mlp = block.self_attn, block.self_attn.out_proj, block.fc2
    else:
        block = base.layers[layer]
        attention, out_proj, mlp = block.self_attn, block.self_attn.o_proj, block.mlp
    return {
        "resid_pre": (block, True),
        "resid_post": (block, False),
        "z": (out_proj, True),
        "attn_out": (attention, False),
        "mlp_out": (mlp, False),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_slopes_are_finite_differences(family: str) -> None:
    texts = read(family, OWN)
    model: Any = texts.passes._model
    places = {_place(site, 1): where for site, where in modules_of(family, model, 1).items()}
    climb = Climb(texts, places)
    slopes = climb.slopes(metric(climb.logits), list(places), is_last=True)
    for number, ((module, into), slope) in enumerate(zip(places.values(), slopes, strict=True)):
        way = torch.randn(slope.shape, dtype=slope.dtype, generator=torch.Generator().manual_seed(number))
        step = 1e-5 * (way.transpose(1, 2) if way.dim() == 4 else way)
        expected = (stepped(texts, module, step, into=into) - stepped(texts, module, -step, into=into)) / 2e-5
        found = float((slope * way).sum())
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE), list(places)[number]


@contextmanager
def attention_with(model: Any, layer: int, added: Tensor) -> Iterator[None]:
    """Attention written down in float64, in one layer of which something is added to the pattern."""
    name = "plain_with_a_step"

    def plain(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ key.transpose(-2, -1) * (more.get("scaling") or query.shape[-1] ** -0.5)
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(ahead, -torch.inf).softmax(-1)
        number = getattr(module, "layer_idx", None)
        return ((pattern + added if number == layer else pattern) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, plain)
    AttentionMaskInterface.register(name, AttentionMaskInterface()["sdpa"])
    with ExitStack() as undo:
        before = model.config._attn_implementation
        undo.callback(setattr, model.config, "_attn_implementation_internal", before)
        model.config._attn_implementation_internal = name
        yield


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_slopes_of_patterns_are_finite_differences(family: str) -> None:
    texts = read(family, OWN)
    model: Any = texts.passes._model
    for layer in (0, 2):
        place = _place("attn_pattern", layer)
        pattern = values_at(texts, [place])[0][place].double()
        way = torch.randn(pattern.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tril()
        edges = estimates_at(texts, {place: pattern + way}, metric, [place])[place]
        ends: list[float] = []
        for sign in (1, -1):
            with attention_with(model, layer, sign * 1e-5 * way), torch.no_grad():
                ends.append(float(metric(texts.logits({})).sum()))
        assert float(edges.sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=TOLERANCE)


@pytest.mark.parametrize("steps", [1, 4])
def test_an_estimate_is_exact_where_the_metric_is_linear(steps: int) -> None:
    texts, other = read("gpt2", OWN), read("gpt2", OTHER)
    texts.passes._model.transformer.ln_f = nn.Identity()
    places = [_place("mlp_out", 2), _place("resid_post", 2)]
    theirs, _ = values_at(other, places)

    def difference(logits: Tensor) -> Tensor:
        return logits[:, -1, 3] - logits[:, -1, 4]

    found = estimates_at(texts, theirs, difference, places, steps=steps)
    own, before = values_at(texts, places)
    for place in places:
        for position in range(len(OWN)):
            changed = own[place].clone()
            changed[:, position] = theirs[place][:, position]
            _, after = values_at(texts, (), {place: lambda _, changed=changed: changed})
            expected = float(difference(after) - difference(before))
            assert float(found[place][0, position]) == pytest.approx(expected, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["resid_pre", "z", "attn_pattern"])
def test_the_parts_of_a_layer_add_up_to_all_of_it_over_many_steps(site: str) -> None:
    texts, other = read("gpt2", OWN), read("gpt2", OTHER)
    place, value, mixed = _place(site, 1), _place("v", 1), _place("z", 1)
    theirs = values_at(other, [place])[0][place]
    own, before = values_at(texts, [value])
    if site == "attn_pattern":  # all edges at once are another mix of the same values
        _, after = values_at(texts, (), {mixed: lambda _: theirs.double() @ own[value]})
    else:
        _, after = values_at(texts, (), {place: lambda _: theirs})
    whole = float(metric(after) - metric(before))
    coarse, fine = (
        float(estimates_at(texts, {place: theirs}, metric, [place], steps=n)[place].sum()) for n in (1, 100)
    )
    assert abs(fine - whole) < 0.02 * abs(whole) + 1e-5  # a sum over 100 points of the way; patterns are float32
    assert abs(fine - whole) < abs(coarse - whole)


def test_a_metric_without_a_gradient_is_refused() -> None:
    texts, other = read("gpt2", OWN), read("gpt2", OTHER)
    place = _place("resid_pre", 1)
    theirs, _ = values_at(other, [place])
    with pytest.raises(UsageError, match="no gradient"):
        estimates_at(texts, theirs, lambda logits: logits[:, -1, 3].detach(), [place])
    with pytest.raises(UsageError, match="steps=0"):
        estimates_at(texts, theirs, metric, [place], steps=0)
