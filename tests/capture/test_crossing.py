"""What crosses from a device, played by the processor: gathered, in order, bounded, and bit for bit what it was."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from traceformer.capture import crossing as crossing_module
from traceformer.capture import pipeline
from traceformer.capture.crossing import Crossing, in_parts, looks_ahead, packed
from traceformer.errors import NumericError, Unsupported
from traceformer.models.load import load_model
from traceformer.models.tiny import tiny_model
from traceformer.store.matrices import WholeMatrices
from traceformer.store.run import Run

TEXTS = [[5, 6, 7, 8, 9, 10, 11], [7, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20], [3], [9, 8, 7, 6]]


# Lots


def test_what_is_put_in_is_taken_in_order_as_it_was_cast() -> None:
    copies, taken = Late(), []
    crossing = Crossing(4096, 2, copies)
    torch.manual_seed(0)
    tensors = [torch.randn(3, 5 + number).T for number in range(40)]
    for tensor in tensors:
        crossing.put(tensor, torch.float16, lambda host, finite: taken.append((host.clone(), finite)))
    crossing.send()
    crossing.close()
    assert len(taken) == 40
    assert 1 < copies.waited < 20  # once a lot, not once a tensor
    for tensor, (host, finite) in zip(tensors, taken, strict=True):
        assert finite
        np.testing.assert_array_equal(host.numpy(), tensor.numpy().astype(np.float16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_lot_says_whether_all_of_it_is_finite(dtype: torch.dtype, value: float) -> None:
    crossing, taken = Crossing(lot_bytes=1024), []

    def take(host: torch.Tensor, finite: bool) -> None:
        taken.append(finite)

    crossing.put(torch.ones(9), dtype, take)
    crossing.send()
    crossing.put(torch.ones(9), torch.int32, take)
    crossing.put(torch.tensor([1.0, value]), dtype, take)
    crossing.put(torch.ones(9), torch.uint8, take)
    crossing.close()
    assert taken == [True]
    crossing = Crossing(lot_bytes=1024)
    taken.clear()
    crossing.put(torch.tensor([1.0, 1e6 if dtype == torch.float16 else value]), dtype, take)
    crossing.put(torch.ones(9), torch.int32, take)
    crossing.send()
    crossing.close()
    assert taken == [False, False]


def test_questions_are_answered_beside_the_numbers() -> None:
    crossing, told = Crossing(lot_bytes=1024), []
    for number in range(5000):  # more than one lot has room for
        crossing.ask(torch.tensor(number % 3 == 0), told.append)
    crossing.send()
    crossing.close()
    assert told == [number % 3 == 0 for number in range(5000)]


def test_who_is_too_fast_waits_for_a_lot_to_come_back() -> None:
    crossing, go, taken = Crossing(lot_bytes=1024, lots=2), threading.Event(), []

    def take(host: torch.Tensor, finite: bool) -> None:
        assert go.wait(30)
        taken.append(host[0].item())

    def put_on_and_on() -> None:
        for number in range(6):
            crossing.put(torch.full((100,), number), torch.int64, take)
        crossing.send()

    thread = threading.Thread(target=put_on_and_on)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    go.set()
    thread.join(30)
    crossing.close()
    assert taken == [0, 1, 2, 3, 4, 5]


def test_an_error_in_taking_is_raised_and_ends_the_rest() -> None:
    crossing, taken = Crossing(lot_bytes=1024, lots=2), []

    def refuse(host: torch.Tensor, finite: bool) -> None:
        raise Unsupported("nothing like that")

    crossing.put(torch.ones(3), torch.float32, refuse)
    crossing.send()
    for _ in range(9):
        crossing.put(torch.ones(3), torch.float32, lambda host, finite: taken.append(host))
        crossing.send()
    failed = [future.exception() for future in crossing.underway()]
    crossing.close()
    assert len(failed) == 10
    assert all(isinstance(error, Unsupported) for error in failed)  # what comes after is not taken for whole
    assert not taken


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 7, 3), (1, 1, 4), (6, 1, 2)])
@pytest.mark.parametrize("most", [1, 7, 12, 1000])
def test_parts_are_all_of_it_and_no_larger_than_they_may_be(shape: tuple[int, ...], most: int) -> None:
    numbers, seen = torch.arange(torch.Size(shape).numel()).view(shape), []
    for part, same in in_parts((numbers, numbers), most):
        assert torch.equal(part, same)
        assert part.numel() <= max(most, shape[-1])
        seen += part.flatten().tolist()
    assert seen == list(range(numbers.numel()))


@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
def test_packed_rows_are_what_numpy_finds_below_the_diagonal(first: int, rows: int, dtype: torch.dtype) -> None:
    keys = first + rows
    block = (torch.rand(2, rows, keys) * 200).to(dtype)
    below = np.tri(rows, keys, first, dtype=bool)
    np.testing.assert_array_equal(packed(block, first).float().numpy(), block.float().numpy()[:, below])
    assert bool(looks_ahead(block, first)) == (rows > 1)
    block[:, torch.from_numpy(~below)] = 0
    assert not bool(looks_ahead(block, first))
    if rows > 2:
        block[1, 0, first + 1] = 1
        assert bool(looks_ahead(block, first))


# A recording


def deep(**changes: Any) -> Any:
    return load_model(tiny_model("gpt2", n_layer=3, **changes))


class Late:
    """Copies that are made when they are waited for, no sooner: whoever reads or writes before that is found out."""

    def __init__(self) -> None:
        self.waited = 0

    def start(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], object]:
        target.fill_(0x7F)

        def wait() -> None:
            self.waited += 1
            target.copy_(source)

        return wait


@pytest.fixture(autouse=True)
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns are torch's on both sides, as they are on a device."""
    monkeypatch.setenv("TRACEFORMER_CORE", "off")


@pytest.fixture
def crossed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has everything cross from here on, in lots of 64 KiB of which there are two, and late."""

    def begin() -> None:
        monkeypatch.setattr(pipeline, "_is_here", lambda _: False)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        monkeypatch.setattr(crossing_module, "Crossing", partial(Crossing, 64 << 10, 2, Late()))

    return begin


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("c.*")) if path.is_file()}


@pytest.mark.parametrize(
    "how",
    [
        {"capture": "attn qkv hidden resid"},
        {"capture": "attn_scores attn_pattern resid", "dtype": "float32"},
        {"capture": "attn resid logits", "dtype": "bfloat16", "keep_duplicates": True},
        {"capture": "attn resid", "attn_codec": "sqrt8", "codec": "zstd", "heads": [1, 3], "layers": [2]},
        {"capture": "attn", "attn_codec": "small", "lens_top_k": 3},
    ],
)
def test_the_files_of_what_has_crossed_are_those_of_what_was_here(
    how: dict[str, Any], crossed: Callable[[], None], tmp_path: Path
) -> None:
    model = deep()
    tf.record(model, TEXTS, **how, batch_size=2, shard_examples=2, out=tmp_path / "here")
    crossed()
    tf.record(model, TEXTS, **how, batch_size=2, shard_examples=2, out=tmp_path / "crossed")
    here, there = files_of(tmp_path / "here"), files_of(tmp_path / "crossed")
    assert here
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []


def test_long_texts_cross_in_parts(crossed: Callable[[], None], tmp_path: Path) -> None:
    model = deep(n_positions=512)
    text = [[1 + number % 50 for number in range(300)], [1 + number % 40 for number in range(200)]]
    tf.record(model, text, "attn resid logits", out=tmp_path / "here")
    crossed()
    tf.record(model, text, "attn resid logits", out=tmp_path / "crossed")
    assert files_of(tmp_path / "here") == files_of(tmp_path / "crossed")


def test_an_encoder_s_squares_cross(crossed: Callable[[], None]) -> None:
    model = load_model(tiny_model("bert"))
    here = tf.record(model, TEXTS, "attn resid")
    crossed()
    assert same_numbers(here, tf.record(model, TEXTS, "attn resid"))


def test_a_generation_crosses(crossed: Callable[[], None]) -> None:
    model = load_model("byte", device="cpu")
    here = tf.generate(model, "The", "attn resid", max_tokens=4, temperature=0)
    crossed()
    assert same_numbers(here, tf.generate(model, "The", "attn resid", max_tokens=4, temperature=0))


def same_numbers(one: Run, other: Run) -> bool:
    return all(
        np.array_equal(one.get(row, str(spec.key)), other.get(row, str(spec.key)), equal_nan=True)
        for spec in one.layout.arrays
        for row in range(len(one.ids))
    )


def test_what_does_not_fit_is_told_of_as_on_the_processor(crossed: Callable[[], None], tmp_path: Path) -> None:
    model = deep()
    with torch.no_grad():
        model.model.transformer.h[1].mlp.c_proj.bias[3] = 1e6
    told = []
    for out in ("here", "crossed"):
        with pytest.raises(NumericError) as refused:
            tf.record(model, TEXTS, "resid", out=tmp_path / out)
        told.append((refused.value.message, refused.value.why, refused.value.hint))
        crossed()
    assert told[0] == told[1]
    assert "does not fit into float16" in told[0][0]


def test_nan_is_told_of_as_on_the_processor(crossed: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def nan_in_one_row(block: torch.Tensor, first: int) -> torch.Tensor:
        cells = packed(block, first).clone()
        cells[0, -1] = torch.nan
        return cells

    crossed()
    monkeypatch.setattr(pipeline, "packed", nan_in_one_row)
    with pytest.raises(NumericError, match=r"layer 0 of dec\.self\.attn_pattern is NaN in example 0"):
        tf.record(deep(), TEXTS, "attn")


def test_the_memory_of_a_shard_is_looked_through_only_where_the_device_has_not(
    crossed: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    crossed()
    looked: list[object] = []
    monkeypatch.setattr("traceformer.store.filled.first_nonfinite", lambda *given: looked.append(given))
    monkeypatch.setattr(WholeMatrices, "nonfinite", lambda self, slot: None)  # pyright: ignore[reportUnknownLambdaType]
    tf.record(deep(), TEXTS, "attn qkv resid")
    assert not looked
