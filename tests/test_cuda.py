"""An NVIDIA GPU as a device: what is recorded on it is what the model computes there, bit for bit, and nothing waits.

    make test PYTEST_ARGS="tests/test_cuda.py"

Everything here needs such a GPU, and is skipped without one. What crosses from it is played by the processor in
`tests/capture/test_crossing.py`.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import traceformer as tf
from tests.test_mps import ASKED
from traceformer.capture import crossing
from traceformer.capture.batches import BatchInputs, run_batches
from traceformer.capture.crossing import Crossing
from traceformer.capture.encoding import Encoded
from traceformer.capture.packing import Batching, batches_by_length
from traceformer.capture.plan import plan_arrays
from traceformer.capture.scores import Span
from traceformer.cli.failures import explain
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArrayKey, ArraySpec, Selection
from traceformer.store.run import Run


@pytest.fixture(autouse=True)
def gpu(skip_for: Callable[[str], None]) -> None:
    if not torch.cuda.is_available():
        skip_for("cuda")


TEXTS = [[5, 6, 7, 8, 9, 10, 11], [7, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20], [3], [9, 8, 7, 6]]
EVERYTHING = "attn qkv hidden resid logits"
FAMILIES = ("gpt2", "llama", "gemma2", "qwen3", "gpt_oss")


def on_gpu(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> LoadedModel:
    return load_model(tiny_model(family, **changes).to("cuda", dtype))


def plain_logits(model: LoadedModel, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The model's own logits of a batch as it is recorded, without anything of ours."""
    inputs, spans = BatchInputs(model).to_run([Encoded({"dec": list(row)}, {}, None) for row in rows])
    with torch.inference_mode():
        logits = model.model(**inputs).logits
    return [own[span.start : span.stop].float().cpu().numpy() for own, span in zip(logits, spans["dec"], strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_recording_changes_no_bit_of_the_logits(family: str, dtype: torch.dtype) -> None:
    model = on_gpu(family, dtype)
    expected = plain_logits(model, TEXTS)
    run = tf.record(model, TEXTS, EVERYTHING, dtype="float32", batch_size=len(TEXTS))
    assert run.about.device == torch.cuda.get_device_name()
    again = plain_logits(model, TEXTS)
    for row in range(len(TEXTS)):
        np.testing.assert_array_equal(run.get(row, "logits"), expected[row])
        np.testing.assert_array_equal(again[row], expected[row])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_recorded_is_what_the_model_returns_there(family: str) -> None:
    model = on_gpu(family)
    run = tf.record(model, TEXTS, "attn hidden", dtype="float32", batch_size=1)
    own: Any = model.model
    for row, ids in enumerate(TEXTS):
        given = {"input_ids": torch.tensor([ids], device="cuda"), "use_cache": False}
        with torch.inference_mode():
            plain = own(**given, output_hidden_states=True)
        for layer, expected in enumerate(plain.hidden_states):
            np.testing.assert_array_equal(run.get(row, "hidden", layer), expected[0].cpu().numpy())
    own.set_attn_implementation("eager")
    for row, ids in enumerate(TEXTS):
        with torch.inference_mode():
            eager = own(torch.tensor([ids], device="cuda"), use_cache=False, output_attentions=True)
        for layer, expected in enumerate(eager.attentions):
            np.testing.assert_allclose(run.attn(row, layer), expected[0].cpu().numpy(), atol=1e-5)


class Naive:
    """A sink that takes each tensor to the processor at once, and casts it there."""

    def __init__(self, dtype: type) -> None:
        self.dtype = dtype
        self.kept: dict[tuple[ArrayKey, int | None, int], list[np.ndarray]] = {}

    def begin(self, rows: Sequence[int], spans: Any) -> None:
        self.batch, self.spans = rows, spans

    def end(self) -> None:
        pass

    def keep(self, spec: ArraySpec, layer: int | None, row: int, values: torch.Tensor) -> None:
        place = (spec.key, layer, self.batch[row])
        self.kept.setdefault(place, []).append(values.float().cpu().numpy().astype(self.dtype))

    def rows(self, spec: ArraySpec, layer: int | None, rows: torch.Tensor) -> None:
        for row, span in enumerate(self.spans[spec.key.token_stack]):
            self.keep(spec, layer, row, rows[row].narrow(-2, span.start, span.length))

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: torch.Tensor) -> None:
        wide = torch.nn.functional.pad(block, (keys.start, self.spans[spec.key.key_stack][example].length - keys.stop))
        self.keep(spec, layer, example, wide)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "bert"])
def test_what_has_crossed_is_what_a_plain_copy_gives(family: str, dtype: Any, tmp_path: Path) -> None:
    model, texts = on_gpu(family), [*TEXTS, [1 + number % 50 for number in range(40)]]
    capture = "attn qkv resid mlp"
    tf.record(model, texts, capture, dtype=dtype, batch_size=3, shard_examples=3, out=tmp_path / "run")
    run = tf.open_run(tmp_path / "run")
    [stack] = run.layout.stacks
    naive = Naive({"float16": np.float16, "float32": np.float32}[dtype])
    plan = plan_arrays(Selection(tuple(capture.split())), model.model)
    rows = [Encoded({stack: ids}, {}, None) for ids in texts]
    for part in (range(3), range(3, 6)):
        batching = Batching.of(3, None, model, 40)
        batches = batches_by_length([rows[row].lengths for row in part], batching)
        run_batches(model, plan, rows, [[part[row] for row in batch] for batch in batches], naive)
    assert naive.kept
    for (key, layer, row), parts in naive.kept.items():
        stored = run.get(row, str(key)) if layer is None else run.get(row, str(key), layer)
        whole = np.concatenate(parts, axis=-2)
        np.testing.assert_array_equal(stored, whole.astype(np.float32), err_msg=f"{key} {layer} {row}")


def numbers_of(run: Run) -> dict[tuple[str, int], np.ndarray]:
    return {
        (str(spec.key), row): run.get(row, str(spec.key)) for spec in run.layout.arrays for row in range(len(run.ids))
    }


def assert_equal_runs(one: Run, other: Run) -> None:
    found, expected = numbers_of(one), numbers_of(other)
    assert found.keys() == expected.keys()
    for place, values in expected.items():
        np.testing.assert_array_equal(found[place], values, err_msg=str(place))


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("c.*")) if path.is_file()}


@pytest.mark.parametrize("how", [{}, {"attn_codec": "sqrt8"}, {"dtype": "bfloat16", "codec": "zstd"}])
def test_many_batches_in_flight_give_the_bytes_of_one_at_a_time(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = on_gpu("gpt2", n_positions=256, n_layer=4)
    texts = [[1 + (7 * row + number) % 90 for number in range(20 + 9 * row)] for row in range(24)]
    record = partial(tf.record, model, texts, EVERYTHING, batch_size=4, shard_examples=8, **how)
    record(out=tmp_path / "many")
    monkeypatch.setattr(crossing, "Crossing", partial(Crossing, 128 << 10, 1))
    record(out=tmp_path / "one")
    many, one = files_of(tmp_path / "many"), files_of(tmp_path / "one")
    assert many.keys() == one.keys()
    assert [name for name in many if many[name] != one[name]] == []


def test_a_run_is_that_of_the_processor_but_for_rounding() -> None:
    found, expected = (
        tf.record(tf.load_model("byte", device=device), ["The function returns the name."], "attn qkv resid logits")
        for device in ("cuda", "cpu")
    )
    numbers = numbers_of(expected)
    for place, values in numbers_of(found).items():
        np.testing.assert_allclose(values, numbers[place], atol=2e-2, rtol=1e-2, err_msg=str(place))


@pytest.fixture
def syncs() -> Callable[[Callable[[], object]], int]:
    """Counts how often something waits for the device."""

    def count(work: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(each.message) for each in told)

    return count


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_batch_waits_for_the_device_no_more_often_with_more_layers(
    family: str, syncs: Callable[[Callable[[], object]], int]
) -> None:
    rows = [Encoded({"dec": [1 + number % 50 for number in range(30 + row)]}, {}, None) for row in range(6)]
    waits: list[int] = []
    for n_layers in (2, 6):
        model = on_gpu(family, **{{"gpt2": "n_layer", "llama": "num_hidden_layers"}[family]: n_layers})
        plan = plan_arrays(Selection(("attn", "qkv", "resid"), heads={"dec": (0, 2)}), model.model)
        several = [range(6)] * 3
        waits.append(syncs(partial(run_batches, model, plan, rows, several, Nothing())))
    assert waits[0] == waits[1]


class Nothing:
    """A sink that keeps nothing."""

    def begin(self, rows: Sequence[int], spans: Any) -> None:
        pass

    def end(self) -> None:
        pass

    def rows(self, *_: Any) -> None:
        pass

    def square(self, *_: Any) -> None:
        pass


def test_a_crossing_never_waits(syncs: Callable[[Callable[[], object]], int]) -> None:
    crossing, taken = Crossing(1 << 20, 4), []
    rows = torch.randn(64, 300, device="cuda")

    def cross() -> None:
        for _ in range(20):
            crossing.put(rows.T, torch.float16, lambda host, finite: taken.append((host.clone(), finite)))
            crossing.ask((rows > 100).any(), taken.append)
        crossing.send()

    assert syncs(cross) == 0
    for future in crossing.underway():
        future.result()
    crossing.close()
    assert [each for each in taken if isinstance(each, bool)] == [False] * 20
    for host, finite in (each for each in taken if isinstance(each, tuple)):
        assert finite
        assert torch.equal(host, rows.T.half().cpu())


# Edits, generations and questions


def as_numbers(found: Any) -> np.ndarray:
    if isinstance(found, pd.DataFrame):
        return found.select_dtypes("number").to_numpy(float, na_value=np.nan)
    return np.asarray(found, float)


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_of_a_model_on_it_is_answered_as_on_the_processor(asked: str) -> None:
    found, expected = (as_numbers(ASKED[asked](tf.load_model("byte", device=device))) for device in ("cuda", "cpu"))
    assert found.shape == expected.shape
    if asked != "sampled":  # which draws other numbers
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("replay", [False, True])
def test_a_recorded_generation_chooses_the_tokens_that_the_model_chooses(dtype: str, replay: bool) -> None:
    model = tf.load_model("byte", device="cuda", dtype=dtype)
    run = tf.generate(model, "The function returns", "attn resid", max_tokens=12, temperature=0, replay=replay)
    own: Any = model.model
    ids = torch.tensor([model.tokenizer("The function returns")["input_ids"]], device="cuda")
    with torch.inference_mode():
        plain = own.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    tokens = list(run.tokens.input_ids[0])
    assert len(tokens) > ids.shape[1]
    assert tokens == plain[0].tolist()[: len(tokens)]
    pattern = run.attn(0, layer=1)
    assert pattern.shape[-2:] == (len(tokens), len(tokens))
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=5e-3)


def test_bfloat16_is_recorded_and_kept() -> None:
    model = on_gpu("llama", torch.bfloat16)
    run = tf.record(model, TEXTS, "resid logits", dtype="bfloat16")
    assert run.about.model_dtype == "bfloat16"
    for row, expected in enumerate(plain_logits(model, TEXTS)):
        np.testing.assert_array_equal(run.get(row, "logits"), expected)


def test_an_edit_on_the_device_changes_what_it_says_and_is_gone_after() -> None:
    model = on_gpu("gpt2")
    before = plain_logits(model, TEXTS)
    with tf.edit(model, tf.edits.zero("z", layer=1, head=2)):
        edited = tf.record(model, TEXTS, "z logits", dtype="float32")
    assert not edited.get(0, "z", 1)[2].any()
    assert np.abs(edited.get(2, "logits") - before[2]).max() > 1e-3
    for one, other in zip(plain_logits(model, TEXTS), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("family", ["gpt2", "t5", "gemma2", "gpt_oss"])
def test_a_family_is_proved_on_it(family: str) -> None:
    assert tf.check(family, device="cuda").ok


def test_long_texts_and_few_heads() -> None:
    model = on_gpu("gpt2", torch.bfloat16, n_positions=3000)
    text = [1 + number % 90 for number in range(2900)]
    run = tf.record(model, [text, text[:700]], "attn", layers=[1], heads=[0, 3])
    for row, length in enumerate((2900, 700)):
        pattern = run.attn(row, layer=1)
        assert pattern.shape == (2, length, length)
        np.testing.assert_allclose(pattern.sum(-1), 1, atol=2e-2)
        assert not np.triu(pattern, 1).any()


def test_too_little_memory_is_told_of_in_one_line() -> None:
    model = on_gpu("gpt2", n_positions=4096)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (300 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError) as refused:
            tf.record(model, [[1 + number % 90 for number in range(4096)]] * 64, "attn logits", batch_size=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    told = explain(refused.value)
    assert told is not None
    assert (told.code, told.error) == (5, "out of memory")
    assert "--batch_size" in told.hint
