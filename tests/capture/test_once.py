"""Rows that are equal are stored once where that is known, and all numbers are what they are when each is stored."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.capture.recording import Kept
from tests.families import KEPT, mostly_slow
from tests.marks import slow
from traceformer.capture import pipeline
from traceformer.capture.extract import estimate, read_texts, record
from traceformer.capture.generation.generate import generate
from traceformer.capture.plan import plan_arrays
from traceformer.capture.proofs.handed_on import HandedOn
from traceformer.capture.recorder import Recorder, Span
from traceformer.errors import Unsupported
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.sites import Selection
from traceformer.store.place import Place, Storage
from traceformer.store.run import Run

TEXTS = [[5, 6, 7, 8], [20, 21, 22], [30, *range(5, 25)]]
STREAM = "resid hidden norms mlp attn_out"


def same_numbers(one: Run, other: Run) -> bool:
    return all(
        np.array_equal(one.get(example, spec.key), other.get(example, spec.key))
        for spec in other.layout.arrays
        for example in range(other.n)
    )


def aliases(run: Run) -> dict[str, str]:
    return {str(rows): str(kept) for rows, kept in run.layout.aliases.items()}


def deep(**changes: Any) -> LoadedModel:
    """A decoder of six blocks, of which the first proofs look at the first, the fourth and the last."""
    return load_model(tiny_model("gpt2", n_layer=6, **changes))


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("family", mostly_slow(KEPT, ("gpt2",)))
def test_what_is_stored_once_is_what_is_stored_twice(
    family: str, tiny_folder: Callable[..., Path], text_file: Path, target_file: Path
) -> None:
    model = load_model(str(tiny_folder(family)), device="cpu")
    targets = target_file if model.dims.arch == "encdec" else None
    once, twice = (
        record(model, text_file, STREAM, targets=targets, limit=3, batch_size=2, shard_examples=2, keep_duplicates=each)
        for each in (False, True)
    )
    assert twice.layout.aliases == {}
    assert same_numbers(once, twice)
    kept = {str(spec.key): spec.layers for spec in once.layout.kept}
    for stack, dims in model.dims.stacks.items():
        assert kept[f"{stack}.resid_pre"] == tuple(range(dims.n_layers))
        assert kept[f"{stack}.resid_post"] == (dims.n_layers - 1,)
        assert not {f"{stack}.hidden", f"{stack}.embed"} & kept.keys()


def test_selected_layers_keep_what_has_no_other_place() -> None:
    model = deep()
    run = record(model, TEXTS, STREAM, layers="0,2-3", hidden_layers=(1, 3, 6))
    assert aliases(run) == {
        "dec.embed": "dec.resid_pre[0]",
        "dec.resid_post[2]": "dec.resid_pre[3]",
        "dec.hidden[1]": "dec.resid_post[0]",
        "dec.hidden[3]": "dec.resid_pre[3]",
        "dec.hidden[6]": "dec.final_norm",
    }
    assert same_numbers(
        run, record(model, TEXTS, STREAM, layers="0,2-3", hidden_layers=(1, 3, 6), keep_duplicates=True)
    )


def test_what_the_mlp_adds_is_what_its_down_projection_makes_where_one_module_shows_both() -> None:
    rows = {spec.key.site: spec for spec in plan_arrays(Selection(("mlp",)), tiny_model("opt")).arrays}
    found = HandedOn(load_model(tiny_model("opt"))).aliases([rows["mlp_down"], rows["mlp_out"]])
    assert {str(alias): str(kept) for alias, kept in found.items()} == {
        f"dec.mlp_down[{layer}]": f"dec.mlp_out[{layer}]" for layer in rows["mlp_out"].layers
    }
    normed = plan_arrays(Selection(("mlp",)), tiny_model("gemma2")).arrays
    assert HandedOn(load_model(tiny_model("gemma2"))).aliases(normed) == {}


def test_a_generation_stores_each_row_once() -> None:
    model = load_model("byte")
    options: dict[str, Any] = {"max_tokens": 3, "temperature": 0}
    once, twice = (
        generate(model, ["The function", "A"], STREAM, keep_duplicates=each, **options) for each in (False, True)
    )
    assert len(once.layout.aliases) == 9
    assert same_numbers(once, twice)


@pytest.mark.slow
def test_a_replayed_generation_stores_each_row_once() -> None:
    model = load_model("byte")
    options: dict[str, Any] = {"max_tokens": 3, "temperature": 0}
    once = generate(model, ["The function", "A"], STREAM, **options)
    replayed = generate(model, ["The function", "A"], STREAM, replay=True, **options)
    assert replayed.layout.aliases == once.layout.aliases


def test_an_estimate_counts_what_is_stored() -> None:
    asked, selection = read_texts(TEXTS), Selection(("resid", "hidden"))
    once, twice = (
        estimate(deep(), asked, selection, Place(storage=Storage(keep_duplicates=each))).bytes for each in (False, True)
    )
    row = sum(map(len, TEXTS)) * 32 * 2
    assert (once, twice) == ((6 + 6 + 1 + 1) * row, (1 + 3 * 6 + 7) * row)


# What comes between blocks


def add(model: LoadedModel, block: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Puts something between a block and the one before it, as models do that steer or add what they have seen."""
    blocks: Any = model.model.base_model.h

    def between(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (change(args[0]), *args[1:]), kwargs

    return blocks[block].register_forward_pre_hook(between, with_kwargs=True)


def more(rows: Tensor) -> Tensor:
    return rows + 1


def more_in_place(rows: Tensor) -> Tensor:
    return rows.add_(1)


def more_of_the_long(rows: Tensor) -> Tensor:
    return rows + 1 if rows.shape[1] > 8 else rows


def more_of_the_long_in_place(rows: Tensor) -> Tensor:
    return rows.add_(1) if rows.shape[1] > 8 else rows


@pytest.mark.parametrize("change", [slow(more), more_in_place])
def test_a_block_that_takes_something_else_than_the_one_before_made_has_its_own_rows(
    change: Callable[[Tensor], Tensor],
) -> None:
    model = deep()
    add(model, 2, change)
    run = record(model, TEXTS, "resid hidden")
    found = aliases(run)
    assert found["dec.hidden[2]"] == "dec.resid_post[1]"
    assert found["dec.hidden[3]"] == found["dec.resid_post[2]"] == "dec.resid_pre[3]"
    assert "dec.resid_post[1]" not in found
    assert np.allclose(run.get(0, "resid_pre", 2), run.get(0, "resid_post", 1) + 1, atol=0.01)
    assert same_numbers(run, record(model, TEXTS, "resid hidden", keep_duplicates=True))


@pytest.mark.parametrize("change", [slow(more_of_the_long), more_of_the_long_in_place])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_change_between_blocks_that_comes_later_stops_the_recording(
    change: Callable[[Tensor], Tensor], on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep()
    add(model, 2, change)
    options: dict[str, Any] = {"batch_size": 2, "shard_examples": 2}
    if on_device:  # the way that the numbers of an accelerator go
        monkeypatch.setattr(pipeline, "_is_here", lambda _: False)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(Unsupported, match=r"dec\.resid_post\[1\] is not dec\.resid_pre\[2\].*`keep_duplicates=True`"):
        record(model, TEXTS, "resid", **options)


@pytest.mark.slow
def test_what_changes_later_between_blocks_is_recorded_where_all_rows_are_kept() -> None:
    model = deep()
    add(model, 2, more_of_the_long)
    run = record(model, TEXTS, "resid", batch_size=2, shard_examples=2, keep_duplicates=True)
    assert np.allclose(run.get(2, "resid_pre", 2), run.get(2, "resid_post", 1) + 1, atol=0.01)


@pytest.mark.slow
def test_what_comes_from_a_device_is_stored_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep()
    here = record(model, TEXTS, STREAM)
    monkeypatch.setattr(pipeline, "_is_here", lambda _: False)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    there = record(model, TEXTS, STREAM)
    assert there.layout.aliases == here.layout.aliases
    assert same_numbers(there, here)


def test_nothing_of_the_model_is_kept_when_a_pass_is_over() -> None:
    model = deep()
    alive: list[int] = []

    class Watching(pipeline.ShardSink):
        def end(self) -> None:
            alive.append(len(self._seen_once))
            super().end()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "ShardSink", Watching)
        record(model, TEXTS, STREAM, batch_size=1)
    assert alive == [0, 0, 0]


# What is known before the first batch


def run_once(model: LoadedModel, ids: Sequence[int], watching: HandedOn) -> None:
    specs = plan_arrays(Selection(("resid",)), model.model).arrays
    with watching, Recorder(model.model, specs, Kept()) as recorder:
        recorder.run({"dec": [Span(0, len(ids))]}, input_ids=torch.tensor([ids]))


def test_blocks_are_seen_to_take_what_the_one_before_made_in_every_pass() -> None:
    model = deep()
    watching = HandedOn(model)
    run_once(model, [5, 6, 7], watching)
    assert watching.seen == {("dec", layer): True for layer in range(1, 6)}
    handle = add(model, 3, more)
    run_once(model, [5, 6, 7], watching)
    handle.remove()
    run_once(model, [5, 6, 7], watching)
    assert [layer for (_, layer), always in watching.seen.items() if not always] == [3]


def test_without_a_pass_nothing_is_known_but_what_is_one_tensor() -> None:
    model = deep()
    arrays = plan_arrays(Selection(("resid", "hidden")), model.model).arrays
    found = {str(rows): str(kept) for rows, kept in HandedOn(model).aliases(arrays).items()}
    assert found == {
        "dec.embed": "dec.resid_pre[0]",
        "dec.hidden[0]": "dec.resid_pre[0]",
        **{f"dec.hidden[{layer}]": f"dec.resid_post[{layer - 1}]" for layer in range(1, 6)},
    }
