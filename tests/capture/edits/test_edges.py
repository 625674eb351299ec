"""Effects of edges against passes that are written down with plain hooks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from traceformer.analysis.edges import Part, is_edge, parts_of
from traceformer.capture.edits.edges import Stream
from traceformer.capture.edits.slopes import Read
from traceformer.capture.edits.started import Passes
from traceformer.errors import Unsupported
from traceformer.models.load import load_model
from traceformer.models.tiny import tiny_model

OWN, OTHER = torch.tensor([[5, 6, 7, 8, 9, 6, 7]]), torch.tensor([[5, 6, 11, 8, 9, 6, 7]])


def stream_of(family: str, **changes: Any) -> tuple[Any, Stream]:
    model = tiny_model(family, **changes).double()
    passes = Passes(load_model(model))
    return model, Stream(load_model(model), Read(passes, OWN, -1), Read(passes, OTHER, -1))


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1].logsumexp(-1)


class PlainGpt2:
    """GPT-2 written down, block by block, so that one part alone can be given another stream."""

    def __init__(self, model: Any) -> None:
        self.model, self.base = model, model.transformer
        self.n_heads = model.config.n_head

    def run(
        self,
        ids: Tensor,
        receiver: Part | None = None,
        added: Tensor | None = None,
        moved: Tensor | float = 0.0,
    ) -> tuple[Tensor, dict[Part, Tensor]]:
        """The metric, and what each part adds; what is `added` the receiver alone reads, what is `moved` all."""
        at = torch.arange(ids.shape[1])
        stream = self.base.wte(ids) + self.base.wpe(at) + moved
        adds = {Part("embed"): stream}
        for layer, block in enumerate(self.base.h):

            def read(kind: str, head: int | None, layer: int = layer, stream: Tensor = stream) -> Tensor:
                return stream + added if receiver == Part(kind, layer, head) else stream  # pyright: ignore

            for head in range(self.n_heads):
                query, key, value = (
                    self._third(block, n, head, read(kind, head)) for n, kind in enumerate(("q", "k", "v"))
                )
                scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
                pattern = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
                width = value.shape[-1]
                w_o = block.attn.c_proj.weight[head * width : (head + 1) * width]
                adds[Part("head", layer, head)] = pattern @ value @ w_o
            stream = (
                stream + sum(adds[Part("head", layer, head)] for head in range(self.n_heads)) + block.attn.c_proj.bias
            )
            given = stream + added if receiver == Part("mlp", layer) else stream
            adds[Part("mlp", layer)] = block.mlp(block.ln_2(given))
            stream = stream + adds[Part("mlp", layer)]
        if receiver == Part("logits"):
            stream = stream + added
        return metric(self.model.lm_head(self.base.ln_f(stream))), adds

    def _third(self, block: Any, number: int, head: int, stream: Tensor) -> Tensor:
        third = block.attn.c_attn(block.ln_1(stream)).chunk(3, dim=-1)[number]
        return third.chunk(self.n_heads, dim=-1)[head]


def test_every_edge_is_measured_and_estimated_as_in_passes_written_down() -> None:
    model, stream = stream_of("gpt2")
    plain = PlainGpt2(model)
    with torch.no_grad():
        base, own = plain.run(OWN)
        _, other = plain.run(OTHER)
    edges = [(s, r) for s in stream.senders for r in stream.receivers if stream.is_edge(s, r)]
    estimates = stream.estimates(metric)
    chosen = edges[::7] + edges[-3:]
    measured = stream.measure(metric, chosen)
    for (sender, receiver), found in zip(chosen, measured, strict=True):
        change = other[sender] - own[sender]
        with torch.no_grad():
            expected = float(plain.run(OWN, receiver, change)[0])
            ends = [float(plain.run(OWN, receiver, sign * 1e-5 * change)[0]) for sign in (1, -1)]
        assert found == pytest.approx(expected, abs=1e-10), (str(sender), str(receiver))
        estimate = estimates[stream.senders.index(sender), stream.receivers.index(receiver)]
        assert estimate == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-8), (str(sender), str(receiver))
    assert float(base) == pytest.approx(float(metric(model(OWN).logits).detach()))


def test_several_steps_are_the_mean_of_slopes_on_the_way_between_the_embeddings() -> None:
    model, stream = stream_of("gpt2")
    plain = PlainGpt2(model)
    with torch.no_grad():
        (_, own), (_, other) = plain.run(OWN), plain.run(OTHER)
    estimates = stream.estimates(metric, steps=2)
    way = other[Part("embed")] - own[Part("embed")]
    for sender, receiver in ((Part("embed"), Part("q", 1, 2)), (Part("head", 0, 1), Part("mlp", 1))):
        change = 1e-5 * (other[sender] - own[sender])
        slopes: list[float] = []
        for moved in (0 * way, 0.5 * way):
            with torch.no_grad():
                ends = [float(plain.run(OWN, receiver, sign * change, moved)[0]) for sign in (1, -1)]
            slopes.append((ends[0] - ends[1]) / 2e-5)
        estimate = estimates[stream.senders.index(sender), stream.receivers.index(receiver)]
        assert estimate == pytest.approx(np.mean(slopes), rel=1e-6, abs=1e-8), (str(sender), str(receiver))


@pytest.mark.parametrize("family", ["llama", "gpt_neox_parallel"])
def test_all_that_enters_the_logits_together_is_the_other_text(family: str) -> None:
    model, stream = stream_of(family)
    everything = torch.stack([stream._added[i] for i in range(len(stream.senders))]).sum(0)
    norm = model.base_model.norm if family == "llama" else model.base_model.final_layer_norm
    norm.register_forward_pre_hook(lambda _, args: (args[0] + everything,))
    with torch.no_grad():
        after = float(metric(model(OWN).logits))
        norm._forward_pre_hooks.clear()
        assert after == pytest.approx(float(metric(model(OTHER).logits)), abs=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "opt_post_norm"])
def test_a_stream_that_is_no_sum_of_parts_is_refused(family: str) -> None:
    with pytest.raises(Unsupported, match="not the sum"):
        stream_of(family)


def test_parts_read_what_comes_before_them() -> None:
    senders, receivers = parts_of(2, 4, 2)
    assert list(map(str, senders))[:6] == ["embed", "L0H0", "L0H1", "L0H2", "L0H3", "L0.mlp"]
    assert list(map(str, receivers))[:10] == [
        *("L0H0.q", "L0H1.q", "L0H2.q", "L0H3.q", "L0KV0.k", "L0KV1.k", "L0KV0.v", "L0KV1.v", "L0.mlp", "L1H0.q")
    ]
    head, mlp = Part("head", 0, 1), Part("mlp", 0)
    assert is_edge(head, Part("mlp", 0), parallel=False)
    assert not is_edge(head, Part("mlp", 0), parallel=True)
    assert not is_edge(head, Part("q", 0, 0), parallel=False)
    assert not is_edge(mlp, Part("mlp", 0), parallel=False)
    assert is_edge(mlp, Part("v", 1, 0), parallel=False)
    assert is_edge(mlp, Part("logits"), parallel=False)
    assert is_edge(Part("embed"), Part("q", 0, 0), parallel=True)
