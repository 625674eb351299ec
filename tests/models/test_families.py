"""The table of families, against what their own classes do; `tests/capture/proofs/test_check.py` proves the sites."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
import transformers

from tests.families import ROWS, mostly_slow
from traceformer.capture.plan import plan_arrays
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.errors import Unsupported
from traceformer.models.dims import ModelDims, has_experts
from traceformer.models.families import FAMILIES, architecture_of, family_of, with_scales
from traceformer.models.family import Architecture, ByFlag, builds
from traceformer.models.part import text_config, text_part
from traceformer.models.table.hybrids import HYBRIDS
from traceformer.models.tiny import TINY, tiny_model
from traceformer.sites import ArraySpec, Selection, Stack

IDS = torch.tensor([[5, 17, 42, 8, 93]])


def modules(model: Any, *words: str) -> list[str]:
    """The modules that are called so or of such a class, but for those of encoders of sound and sight."""
    return [
        path
        for path, module in model.named_modules()
        if "embed_tokens_extend" not in path
        if any(word in f"{path.rpartition('.')[2]} {type(module).__name__}".lower() for word in words)
    ]


# Whose layers are not alike: tests/capture/test_hybrids.py has what they show.
UNLIKE = tuple(name for name in TINY if name.startswith(tuple(HYBRIDS)))


@pytest.mark.parametrize("family", mostly_slow(name for name in FAMILIES if name not in HYBRIDS))
def test_positions_are_what_the_model_makes_of_them(family: str) -> None:
    model: Any = text_part(tiny_model(family))
    base, sinusoidal = model, modules(model, "sinusoidal")
    source = {
        "rotary": modules(model, "rotary") + [p for p, _ in model.named_buffers() if p.endswith("embed_positions")],
        "learned": set(modules(model, "wpe", "position_embeddings", "embed_positions")) - set(sinusoidal),
        "sinusoidal": sinusoidal,
        "relative bias": modules(model, "relative_attention_bias"),
        "relative": modules(model, "rel_embeddings"),
        "alibi": [name for name in dir(base) if "alibi" in name and getattr(base, name)],
    }
    assert ", ".join(kind for kind, found in source.items() if found) == FAMILIES[family].positions.kind
    # What a run says of its attention.
    architecture = architecture_of(model.config)
    if architecture.has_attention_function and not architecture.own_attention:
        rotary = bool(getattr(model.config, "rope_parameters", None))
        assert rotary == (FAMILIES[family].positions.kind == "rotary")


@pytest.mark.parametrize("family", ROWS)
def test_only_families_with_sinks_have_them(family: str) -> None:
    sinks = [name for name, _ in tiny_model(family).named_parameters() if "sink" in name]
    assert bool(sinks) == FAMILIES[family].sinks


@pytest.mark.parametrize("family", ROWS)
def test_token_embeddings_are_scaled_where_the_row_says_so(family: str) -> None:
    model: Any = tiny_model(family)
    seen: dict[str, torch.Tensor] = {}
    row = architecture_of(model.config).stacks[FAMILIES[family].stacks[0]]
    embedding, blocks = (text_part(model).get_submodule(path) for path in (row.token_embed, row.blocks))

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["embed"] = args[0] if args else kwargs["hidden_states"]

    blocks[0].register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(IDS, **({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}))
        weights = embedding.weight[IDS]
    # A scale may be applied in the embedding or behind it.
    alike = weights.shape == seen["embed"].shape and bool(weights.all())
    scale = float((seen["embed"] / weights).median()) if alike else 1.0
    is_scaled = abs(scale - 1) > 1e-3 and torch.allclose(seen["embed"], weights * scale, rtol=1e-4)
    assert is_scaled == FAMILIES[family].scaled_embedding


class Kept:
    """A sink that keeps what the first layer showed."""

    def __init__(self) -> None:
        self.rows_of: dict[str, torch.Tensor] = {}

    def rows(self, spec: ArraySpec, layer: int | None, rows: torch.Tensor) -> None:
        self.rows_of.setdefault(f"{spec.key.stack}.{spec.key.site}", rows.clone())

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: torch.Tensor) -> None:
        raise AssertionError("no pattern is asked for")


@pytest.mark.parametrize("family", mostly_slow(name for name in TINY if name not in UNLIKE))
def test_the_kind_of_mlp_is_what_its_hidden_layer_shows(family: str) -> None:
    model: Any = tiny_model(family)
    architecture = architecture_of(model.config)
    plan = plan_arrays(Selection(("mlp",)), model)
    kept, both = Kept(), len(architecture.stacks) == 2
    with Recorder(model, plan.arrays, kept) as recorder:
        spans: dict[Stack, list[Span]] = {stack: [Span(0, IDS.shape[1])] for stack in architecture.stacks}
        recorder.run(spans, input_ids=IDS, **({"decoder_input_ids": IDS} if both else {}))
    for stack, row in architecture.stacks.items():
        up, act, mid = (kept.rows_of.get(f"{stack}.mlp_{name}") for name in ("up", "act", "mid"))
        if mid is None or act is None or up is None:
            kind = "experts"
        else:
            kind = "plain" if torch.equal(mid, act) else "gated" if torch.allclose(mid, act * up) else "neither"
        assert row.mlp_kind == kind
    config = text_config(model.config)
    assert has_experts(config) == (FAMILIES[config.model_type].mlp_kind == "experts")


def flags_of(blocks: Any) -> Iterator[ByFlag]:
    if isinstance(blocks, ByFlag):
        yield blocks
        yield from flags_of(blocks.when_true)
        yield from flags_of(blocks.when_false)


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if isinstance(row.blocks, ByFlag)])
def test_a_flag_that_a_config_leaves_out_is_what_transformers_takes(family: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    for each in flags_of(FAMILIES[family].blocks):
        assert getattr(config, each.flag) == each.default
    assert architecture_of({"model_type": family}) == architecture_of(config)


def test_flags_choose_between_all_builds_of_a_family() -> None:
    def falcon(**stated: Any) -> Architecture:
        return architecture_of({"model_type": "falcon", **stated})

    new = {"new_decoder_architecture": True}
    chosen = [
        falcon(**new, num_ln_in_parallel_attn=1),
        falcon(**new),
        falcon(),
        falcon(parallel_attn=False),
    ]
    assert [id(each) for each in chosen] == [id(each) for each in FAMILIES["falcon"].architectures]
    assert [flags for flags, _ in builds(FAMILIES["falcon"].blocks)] == [
        "new_decoder_architecture, num_ln_in_parallel_attn",
        "new_decoder_architecture, not num_ln_in_parallel_attn",
        "not new_decoder_architecture, parallel_attn",
        "not new_decoder_architecture, not parallel_attn",
    ]


@pytest.mark.slow
def test_every_build_has_a_tiny_model_and_every_tiny_model_a_family() -> None:
    built: dict[str, set[int]] = {}
    for name in TINY:
        config = text_config(tiny_model(name).config)
        rows = FAMILIES[config.model_type].architectures
        own = next(row for row in rows if with_scales(row, config) == architecture_of(config))
        built.setdefault(config.model_type, set()).add(id(own))
    # mT5 has no models with plain MLPs, and T5 has both; DeepSeek's have queries of both kinds, and GLM's one.
    apart = ("mt5", "glm4_moe_lite")
    expected = {name: {id(each) for each in row.architectures} for name, row in FAMILIES.items() if name not in apart}
    assert {name: builds for name, builds in built.items() if name not in apart} == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma4_text", "use_double_wide_mlp": True}, "use_double_wide_mlp True"),
        ({"model_type": "minimax_m3_vl_text", "layer_types": ["full_attention", "minimax_m3_sparse"]}, "layer_types"),
        ({"model_type": "deberta-v2", "conv_kernel_size": 3}, "conv_kernel_size 3"),
        ({"model_type": "falcon", "alibi": True}, "alibi True"),
        ({"model_type": "whisper", "is_encoder_decoder": True}, "is_encoder_decoder True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_for_which_a_row_is_not_right_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    assert architecture_of({"model_type": config["model_type"]}) is not None
    with pytest.raises(Unsupported, match=f"of type '{config['model_type']}' whose config says {said}") as caught:
        architecture_of(config)
    assert caught.value.why
    assert "supported where it is" in (caught.value.hint or "")


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.readout is not None])
def test_what_a_readout_takes_from_a_config_that_leaves_it_out_is_what_transformers_takes(family: str) -> None:
    readout = FAMILIES[family].readout
    assert readout is not None
    import_module(FAMILIES[family].module)
    config = transformers.AutoConfig.for_model(family)
    for name, default in (readout.epsilon, readout.softcap, readout.logit_scale, readout.logit_divisor):
        stated = getattr(config, name, default)
        assert (default if stated is None else stated) == default


@pytest.mark.parametrize("family", ROWS)
def test_a_model_has_as_many_positions_as_its_row_says(family: str) -> None:
    model, positions = tiny_model(family), FAMILIES[family].positions
    for stack, dims in ModelDims.from_config(model.config).stacks.items():
        longest = dims.n_ctx or 200

        def run(length: int, stack: Stack = stack) -> None:
            ids = {"input_ids": IDS, **({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})}
            name = "decoder_input_ids" if len(ids) == 2 and stack == "dec" else "input_ids"
            with torch.no_grad():
                model(**{**ids, name: torch.full((1, length), 5)})

        run(longest)
        if positions.limit != "none" and positions.kind.startswith("learned"):
            with pytest.raises((IndexError, RuntimeError)):
                run(longest + 1)


def test_what_depends_on_a_flag_is_not_said_of_the_family() -> None:
    assert (FAMILIES["t5"].mlp_kind, FAMILIES["llama"].mlp_kind, FAMILIES["gpt_oss"].mlp_kind) == (
        None,
        "gated",
        "experts",
    )
    post_norm = {name for name, row in FAMILIES.items() if row.is_post_norm}
    assert post_norm >= {"bert", "roberta", "distilbert", "bart", "marian", "gte", "deberta-v2"}
    assert not post_norm & {"opt", "t5", "mbart", "xlm-roberta-xl", "modernbert", "olmo2"}


def test_a_family_without_a_row_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="no architecture row for model type 'rwkv'; `traceformer check`"):
        family_of({"model_type": "rwkv"})
