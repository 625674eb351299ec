"""Around `generate`: recording changes no token and no logit, and sees every step in its true place."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.families import mostly_slow
from traceformer.capture.generation.grow import BatchMemory
from traceformer.capture.plan import plan_arrays
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.errors import Unsupported
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArrayKey, ArraySpec, Selection, Stack

FAMILIES = ("gpt2", "llama", "qwen2", "gemma2", "gemma3_text", "gpt_oss", "nanochat", "t5")
"""Those of the promise; gemma2, gemma3_text and gpt_oss have windows of 6 positions, shorter than every text here."""
OWN = mostly_slow(("gptj", "codegen", "gpt_neo", "bloom", "falcon", "falcon_new"), ())
"""Those that compute attention in code of their own."""
SITES = ("attn", "qkv", "hidden", "resid", "mlp_out", "logits")
PROMPT, NEW = 9, 8


class Everything:
    """A growing sink that puts columns side by side, and knows nothing of layouts."""

    def __init__(self) -> None:
        self.columns: dict[Stack, Span] = {}
        self.rows_of: dict[tuple[str, int | None], list[tuple[Span, Tensor]]] = {}
        self.patterns: dict[tuple[str, int | None], list[tuple[Span, Span, Tensor]]] = {}

    def begin(self, stack: Stack, columns: Span) -> None:
        self.columns[stack] = columns

    def rows(self, spec: ArraySpec, layer: int | None, rows: Tensor) -> None:
        place = self.columns[spec.key.token_stack]
        self.rows_of.setdefault((str(spec.key), layer), []).append((place, rows.clone()))

    def squares(self, spec: ArraySpec, layer: int, queries: Span, keys: Span, block: Tensor) -> None:
        self.patterns.setdefault((str(spec.key), layer), []).append((queries, keys, block.clone()))


def arrays_of(model: PreTrainedModel, *sites: str, **chosen: Any) -> tuple[ArraySpec, ...]:
    selection = Selection(sites or SITES, **chosen)
    return plan_arrays(selection, model).arrays


def prompt(seed: int = 0) -> Tensor:
    return torch.randint(3, 99, (2, PROMPT), generator=torch.Generator().manual_seed(seed))


def settings(**more: Any) -> dict[str, Any]:
    fixed = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True}
    return {**fixed, "eos_token_id": None, "pad_token_id": 0, "do_sample": False, **more}


def generated(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None, seed: int = 5, **more: Any) -> Any:
    mask = torch.ones_like(ids) if mask is None else mask
    torch.manual_seed(seed)
    with torch.inference_mode():
        return model.generate(ids, attention_mask=mask, **settings(**more))


SETTINGS: Mapping[str, dict[str, Any]] = {
    "sampled": {"do_sample": True, "top_k": 20, "temperature": 0.8},
    "greedy, with a processor": {"repetition_penalty": 1.3},
    "several end tokens": {"eos_token_id": list(range(40))},
    "static cache": {"cache_implementation": "static"},
}
OTHERS = tuple(how for how in SETTINGS if how != "sampled")


@pytest.mark.parametrize(
    ("family", "how"),
    [*((family, "sampled") for family in FAMILIES), *((family, how) for family in ("gemma2", "t5") for how in OTHERS)],
)
def test_tokens_and_logits_are_bit_equal_to_those_of_generate_alone(family: str, how: str) -> None:
    model = tiny_model(family)
    alone = generated(model, prompt(), **SETTINGS[how])
    with Recorder(model, arrays_of(model)) as recorder, recorder.growing(Everything()):
        observed = generated(model, prompt(), **SETTINGS[how])
    assert torch.equal(observed.sequences, alone.sequences)
    assert len(observed.logits) == len(alone.logits)
    assert all(torch.equal(one, other) for one, other in zip(observed.logits, alone.logits, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "t5", *OWN])
def test_padded_prompts_are_generated_from_as_they_are_without_recording(family: str) -> None:
    model = tiny_model(family)
    mask = torch.ones(2, PROMPT, dtype=torch.long)
    mask[1, slice(5, None) if family == "t5" else slice(0, 4)] = 0
    alone = generated(model, prompt(), mask)
    with Recorder(model, arrays_of(model)) as recorder, recorder.growing(Everything()):
        observed = generated(model, prompt(), mask)
    assert torch.equal(observed.sequences, alone.sequences)
    assert all(torch.equal(one, other) for one, other in zip(observed.logits, alone.logits, strict=True))


def test_each_pass_adds_the_columns_of_its_own_tokens() -> None:
    model, seen = tiny_model("gemma2"), Everything()
    with Recorder(model, arrays_of(model)) as recorder, recorder.growing(seen) as growth:
        generated(model, prompt())
        assert growth.seen == {"dec": PROMPT + NEW - 1}  # the last token is not run by `generate`
    columns = [place for place, _ in seen.rows_of["dec.resid_post", 1]]
    assert columns == [Span(0, PROMPT), *(Span(at, at + 1) for at in range(PROMPT, PROMPT + NEW - 1))]
    # Layer 0 looks at the last six positions, layer 1 at all.
    windowed = [(queries, keys, block.shape) for queries, keys, block in seen.patterns["dec.self.attn_pattern", 0]]
    assert windowed[0] == (Span(0, 9), Span(0, 9), (2, 4, 9, 9))
    assert windowed[1:] == [(Span(at, at + 1), Span(at - 5, at + 1), (2, 4, 1, 6)) for at in range(9, 16)]
    whole = [(queries, keys) for queries, keys, _ in seen.patterns["dec.self.attn_pattern", 1]]
    assert whole[1:] == [(Span(at, at + 1), Span(0, at + 1)) for at in range(9, 16)]


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "t5"])
def test_steps_show_the_attentions_that_generate_itself_returns(family: str, cache: str | None) -> None:
    model, seen = tiny_model(family), Everything()
    with Recorder(model, arrays_of(model, "attn")) as recorder, recorder.growing(seen):
        generated(model, prompt(), cache_implementation=cache)
    model.set_attn_implementation("eager")
    out = generated(model, prompt(), output_attentions=True)  # its default cache: what it holds lies side by side
    key = {"t5": "decoder_attentions"}.get(family, "attentions")
    for layer in range(3):
        for (_, keys, block), of_step in zip(seen.patterns["dec.self.attn_pattern", layer], out[key], strict=True):
            expected = of_step[layer]
            torch.testing.assert_close(block, expected[..., -keys.length :], rtol=0, atol=1e-5)
    if family == "t5":
        crossed = [block for _, _, block in seen.patterns["dec.cross.attn_pattern", 2]]
        for block, of_step in zip(crossed, out.cross_attentions, strict=True):
            torch.testing.assert_close(block, of_step[2], rtol=0, atol=1e-5)


def test_keys_and_values_of_cross_attention_are_handed_over_once() -> None:
    model, seen = tiny_model("t5"), Everything()
    with Recorder(model, arrays_of(model, "qkv")) as recorder, recorder.growing(seen):
        generated(model, prompt())
    assert [place for place, _ in seen.rows_of["dec.cross.k", 1]] == [Span(0, PROMPT)]
    assert len(seen.rows_of["dec.cross.q", 1]) == len(seen.rows_of["dec.self.k", 1]) == NEW


def test_keys_of_a_static_cache_are_those_of_the_step() -> None:
    found: list[Tensor] = []
    for cache in (None, "static"):
        model, seen = tiny_model("gemma2"), Everything()
        with Recorder(model, arrays_of(model, "qkv")) as recorder, recorder.growing(seen):
            generated(model, prompt(), cache_implementation=cache)
        for layer in (0, 1):
            found.append(torch.cat([rows for _, rows in seen.rows_of["dec.self.k", layer]], dim=2))
    for dynamic, static in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(static, dynamic, rtol=0, atol=1e-5)


def test_some_layers_and_heads_are_that_part_of_everything() -> None:
    model = tiny_model("qwen2")
    whole, part = Everything(), Everything()
    with Recorder(model, arrays_of(model, "attn", "qkv")) as recorder, recorder.growing(whole):
        generated(model, prompt())
    chosen = arrays_of(model, "attn", "qkv", layers={"dec": (2,)}, heads={"dec": (0, 3)})
    with Recorder(model, chosen) as recorder, recorder.growing(part):
        generated(model, prompt())
    assert {layer for _, layer in [*part.rows_of, *part.patterns]} == {2}
    for key, steps in part.patterns.items():
        for (_, _, block), (_, _, every) in zip(steps, whole.patterns[key], strict=True):
            torch.testing.assert_close(block, every[:, [0, 3]], rtol=0, atol=1e-6)
    for (_, rows), (_, every) in zip(part.rows_of["dec.self.q", 2], whole.rows_of["dec.self.q", 2], strict=True):
        assert torch.equal(rows, every[:, [0, 3]])


def test_a_model_that_runs_its_context_again_is_refused() -> None:
    model = tiny_model("gpt2")
    with (
        Recorder(model, arrays_of(model)) as recorder,
        recorder.growing(Everything()),
        pytest.raises(Unsupported, match="whole context again") as caught,
    ):
        generated(model, prompt(), use_cache=False)
    assert "`replay=True`" in caught.value.hint


def test_a_recorder_still_runs_passes_of_its_own_after_a_growth_that_failed() -> None:
    class Kept:
        def __init__(self) -> None:
            self.n = 0

        def rows(self, *_: Any) -> None:
            self.n += 1

        square = rows

    model, kept = tiny_model("gpt2"), Kept()
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())  # noqa: E731
    with Recorder(model, arrays_of(model, "resid"), kept) as recorder:
        before = hooks()
        with pytest.raises(IndexError), recorder.growing(Everything()):
            model(prompt() + 99)  # ids that the model has no embedding for
        assert hooks() == before
        recorder.run({"dec": [Span(0, PROMPT)] * 2}, input_ids=prompt())
    assert kept.n == 1 + 3 * 3
    assert hooks() == 0


def test_scores_of_keys_to_come_have_no_place_in_a_growing_memory() -> None:
    spec = ArraySpec(ArrayKey("dec", "self", "attn_scores"), (0,), (0,))
    with pytest.raises(Unsupported, match="token by token"):
        BatchMemory([spec], batch=1, columns={"dec": 4}, dtype=torch.float32, device="cpu")
