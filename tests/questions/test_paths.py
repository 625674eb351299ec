"""Paths in a recorded run are those of the live model that it was recorded from."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest

from tests.capture.asked import Extraction, extracted
from traceformer import ReverseAttentionTracer, TraceStore, export, import_run, record, trace_stored
from traceformer.analysis.paths.trace import PathOptions
from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.questions.live_paths import output_weights
from traceformer.questions.paths import paths
from traceformer.sites import Selection
from traceformer.store.run import Run

TEXTS = ("The river froze over during the night.", "Seven ships left the harbour at dawn.")
TARGETS = ("It froze.", "Ships sailed off.")

Load = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def recorded(load: Load, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[TraceStore, LoadedModel]]:
    """Records two texts with a family's tiny model, in float32; asked alike, once."""

    @cache
    def make(
        family: str,
        *,
        layers: tuple[int, ...] | None = None,
        heads: tuple[int, ...] | None = None,
        targets: bool = False,
    ) -> tuple[TraceStore, LoadedModel]:
        loaded = load(family)
        place = tmp_path_factory.mktemp(family)
        texts, answers = place / "texts.txt", place / "targets.txt"
        texts.write_text("\n".join(TEXTS), encoding="utf-8")
        answers.write_text("\n".join(TARGETS), encoding="utf-8")
        stacks = loaded.dims.stacks
        request = Extraction(
            model=loaded.source,
            dataset=str(texts),
            selection=Selection(
                ("attn", "qkv"), layers=dict.fromkeys(stacks, layers), heads=dict.fromkeys(stacks, heads)
            ),
            dtype="float32",
            device="cpu",
            out_dir=place / "run",
            targets_file=answers if targets else None,
        )
        return TraceStore(extracted(request)), loaded

    return make


OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "max": {"agg_heads": "max", "length_norm": "sqrt"},
    "each head": {"agg_heads": "none", "top_beam": 3},
    "one head": {"agg_heads": 2},
    "without sinks": {"exclude_sink": True, "exclude_self": True},
    "value norms": {"weighting": "value-norm"},
    "value norms of a head": {"weighting": "value-norm", "agg_heads": 3},
    "exact": {"search": "exact"},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_run_gives_the_paths_of_its_model(
    family: str, name: str, recorded: Callable[..., tuple[TraceStore, LoadedModel]]
) -> None:
    store, loaded = recorded(family)
    tracer = ReverseAttentionTracer(loaded.model, loaded.tokenizer)
    for example_id, text in zip(store.ids, TEXTS, strict=True):
        live = tracer.trace_text(text, 6, layer=1, **OPTIONS[name])
        [stored] = trace_stored(
            store,
            example_id,
            [6],
            1,
            PathOptions(**OPTIONS[name]),
            output_weights=lambda stack, attention, layer: output_weights(loaded.model, stack, attention, layer, 4),
        )
        assert [path.positions for path in stored.beams] == [path.positions for path in live.beams]
        assert [path.score_raw for path in stored.beams] == pytest.approx([p.score_raw for p in live.beams], rel=1e-5)
        assert [path.heads for path in stored.beams] == [path.heads for path in live.beams]
        assert stored.beams[0].token_ids == live.beams[0].token_ids
        assert stored.settings["heads"] == live.settings["heads"]
        assert stored.settings["example_id"] == example_id


def test_across_layers_and_in_an_encoder_too(recorded: Callable[..., tuple[TraceStore, LoadedModel]]) -> None:
    for family, options in (("qwen2", {"weighting": "rollout"}), ("bert", {})):
        store, loaded = recorded(family)
        live = ReverseAttentionTracer(loaded.model, loaded.tokenizer).trace_text(TEXTS[0], layer="all", **options)
        [stored] = trace_stored(store, store.ids[0], [-1], "all", PathOptions(**options))
        assert [path.positions for path in stored.beams] == [path.positions for path in live.beams]
        assert stored.attribution["rollout"] == pytest.approx(live.attribution["rollout"], abs=1e-6)


def test_a_recorded_decoder_leads_into_its_source(recorded: Callable[..., tuple[TraceStore, LoadedModel]]) -> None:
    store, loaded = recorded("bart", targets=True)
    live = ReverseAttentionTracer(loaded.model, loaded.tokenizer).trace_text(TEXTS[1], target_text=TARGETS[1], layer=1)
    [stored] = trace_stored(store, store.ids[1], [-1], 1, PathOptions())
    assert [(p.positions, p.stacks) for p in stored.beams] == [(p.positions, p.stacks) for p in live.beams]
    [encoder] = trace_stored(store, store.ids[1], [-1], 1, PathOptions(), stack="enc")
    assert (encoder.settings["kind"], encoder.seq_len) == ("any", store.length(store.ids[1], "enc"))


def test_layers_are_the_models_own_and_the_last_one_recorded_by_default(
    recorded: Callable[..., tuple[TraceStore, LoadedModel]],
) -> None:
    store, _ = recorded("gpt2", layers=(0, 1), heads=(1, 3))
    eid = store.ids[0]
    [default] = trace_stored(store, eid, [-1], None, PathOptions())
    assert (default.layer, default.settings["heads"]) == (1, [1, 3])
    assert trace_stored(store, eid, [-1], -2, PathOptions())[0].layer == 1
    [one] = trace_stored(store, eid, [5], 0, PathOptions(agg_heads=3))
    pattern = np.asarray(store.attn(eid, 0, 3))
    assert one.beams[0].edge_attns[0] == pytest.approx(pattern[tuple(one.beams[0].positions[:2])])
    with pytest.raises(NotRecorded, match="stored: 0 1"):
        trace_stored(store, eid, [-1], 2, PathOptions())
    with pytest.raises(NotRecorded, match="all of them"):
        trace_stored(store, eid, [-1], "all", PathOptions())
    with pytest.raises(SelectionError, match="layers 0-2"):
        trace_stored(store, eid, [-1], 3, PathOptions())
    with pytest.raises(SelectionError, match="head"):
        trace_stored(store, eid, [-1], 1, PathOptions(agg_heads=0))
    with pytest.raises(UsageError, match="W_O"):
        trace_stored(store, eid, [-1], 1, PathOptions(weighting="value-norm"))


def test_a_run_in_memory_and_its_model_give_the_same_paths(run: Run, byte: LoadedModel) -> None:
    every: list[dict[str, Any]] = [
        {},
        {"weighting": "value-norm"},
        {"layer": 2, "agg_heads": 6},
        {"layer": None, "to": 9},
    ]
    for options in every:
        stored, live = paths(run, 0, **options), paths(byte, run.text(0), **options)
        assert [path.positions for path in stored.beams] == [path.positions for path in live.beams]
        assert stored.beams[0].score_norm == pytest.approx(live.beams[0].score_norm, abs=1e-5)
        assert stored.certificate is not None
    assert paths(run, run.ids[1], layer=3, search="exact").settings["example_id"] == run.ids[1]


def test_a_text_is_for_a_model_and_an_example_for_a_run(run: Run, byte: LoadedModel) -> None:
    with pytest.raises(UsageError, match="no text"):
        paths(byte, 0)
    with pytest.raises(UsageError, match="goes with a model"):
        paths(run, 0, target_text="Ja.")


@pytest.mark.parametrize("name", OPTIONS)
def test_patterns_by_recipe_lead_where_their_stored_copy_does(
    name: str, load: Load, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loaded, folder = load("qwen2"), tmp_path_factory.mktemp("copied")
    run = record(loaded, TEXTS, "attn qkv", patterns="recipe")
    export(run, "safetensors", folder / "files")
    copy = import_run(folder / "files", out=folder / "copy")
    assert run.layout.recipes
    assert not copy.layout.recipes
    one_layer = OPTIONS[name].get("agg_heads", "mean") not in ("mean", "max")
    layers: tuple[int | Literal["all"], ...] = (1,) if one_layer else (1, "all")

    def weights(stack: Any, attention: Any, layer: int) -> Any:
        return output_weights(loaded.model, stack, attention, layer, 4)

    for example_id, layer in product(run.ids, layers):
        found, expected = (
            trace_stored(each, example_id, [6], layer, PathOptions(**OPTIONS[name]), output_weights=weights)[0]
            for each in (run, copy)
        )
        assert found.beams
        assert found.beams == expected.beams
        assert found.attribution == expected.attribution


def test_needs_no_torch() -> None:
    code = "import sys; from traceformer import trace_stored; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
