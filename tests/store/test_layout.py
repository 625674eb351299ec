"""Sizes, chunks and dimension names."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.runs import ARRAYS, DEC, plan, spec
from traceformer.errors import UsageError
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.sizes import estimated_bytes

MIB = 1 << 20
PATTERN = ArrayKey.parse("dec.self.attn_pattern")
HIDDEN = ArrayKey.parse("dec.hidden")


def pattern_layout(layers: int, heads: int, longest: int, **options: Any) -> tuple[RunLayout, ArraySpec]:
    array = ArraySpec(PATTERN, tuple(range(layers)), tuple(range(heads)))
    return RunLayout.plan(arch="dec", arrays=[array], n_examples=10**6, longest={"dec": longest}, **options), array


@pytest.mark.parametrize(("longest", "on_disk"), [(0, 64), (1, 64), (64, 64), (65, 128), (1000, 1024)])
def test_t_is_the_longest_example_rounded_up_to_a_multiple_of_64(longest: int, on_disk: int) -> None:
    assert pattern_layout(1, 1, longest)[0].max_tokens == {"dec": on_disk}


@given(layers=st.integers(1, 48), heads=st.integers(1, 40), longest=st.integers(1, 4096))
def test_b_is_the_largest_power_of_two_whose_arrays_take_256_mib(layers: int, heads: int, longest: int) -> None:
    layout, _ = pattern_layout(layers, heads, longest)
    tokens = layout.max_tokens["dec"]
    fitting = [b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if b * layers * heads * tokens**2 * 2 <= 256 * MIB]
    assert layout.shard_examples == max(fitting, default=1)


@given(
    layers=st.integers(1, 48),
    heads=st.integers(1, 40),
    longest=st.integers(1, 4096),
    dtype=st.sampled_from(["float16", "float32", "bfloat16"]),
)
def test_shards_and_chunks_fit_together(layers: int, heads: int, longest: int, dtype: Any) -> None:
    matrix, array = pattern_layout(layers, heads, longest, dtype=dtype)
    rows = RunLayout.plan(arch="dec", arrays=[ArraySpec(HIDDEN, tuple(range(layers)), (), heads * 64)], n_examples=9,
                          longest={"dec": longest}, dtype=dtype)  # fmt: skip
    for layout, each in ((matrix, array), (rows, rows.arrays[0])):
        shard, chunk = layout.shard_shape(each), layout.chunk_shape(each)
        assert all(whole % part == 0 for whole, part in zip(shard, chunk, strict=True))
        assert chunk[-1] == shard[-1]
        assert set(chunk[:-2]) == {1}


@pytest.mark.parametrize(
    ("longest", "chunk"),
    [(128, (128, 128)), (320, (320, 320)), (384, (128, 384)), (1024, (128, 1024)), (1000, (128, 1024))],
)
def test_a_head_is_one_chunk_up_to_256_kib_then_blocks_of_rows(longest: int, chunk: tuple[int, int]) -> None:
    layout, array = pattern_layout(2, 2, longest)
    assert layout.chunk_shape(array)[-2:] == chunk


def test_matrix_shards_are_split_by_layers_when_one_example_passes_256_mib() -> None:
    layout, array = pattern_layout(12, 12, 2048)
    assert layout.shard_examples == 1
    shape = layout.shard_shape(array)
    assert shape[1] < 12
    assert math.prod(shape) * 2 <= 256 * MIB
    assert len(layout.shard_files(array, 0)) == math.ceil(12 / shape[1])


@pytest.mark.parametrize(("width", "slots"), [(64, 512), (4096, 512), (8192, 256), (50_257, 32)])
def test_token_chunks_hold_512_slots_or_at_most_4_mib(width: int, slots: int) -> None:
    array = ArraySpec(HIDDEN, (0,), (), width)
    layout = RunLayout.plan(arch="dec", arrays=[array], n_examples=100, longest={"dec": 512}, shard_examples=16)
    assert layout.chunk_shape(array) == (1, slots, width)


def test_token_chunks_divide_the_slots_of_a_shard() -> None:
    layout = plan(arrays=[spec("dec.hidden")], longest={"dec": 190}, shard_examples=5)
    assert layout.shard_slots("dec") == 5 * 192
    assert layout.chunk_shape(layout.arrays[0])[1] == 64


@given(mean=st.floats(2, 512), examples=st.sampled_from([1, 2, 8, 64, 256]), n_examples=st.integers(1, 500))
def test_the_part_filled_last_chunk_of_a_shard_is_a_tenth_of_it_or_16_slots(
    mean: float, examples: int, n_examples: int
) -> None:
    array = ArraySpec(HIDDEN, (0,), (), 64)
    layout = RunLayout.plan(arch="dec", arrays=[array], n_examples=n_examples, longest={"dec": 512},
                            mean={"dec": mean}, shard_examples=examples)  # fmt: skip
    used = int(mean * min(examples, n_examples))
    assert layout.written_slots(array, used) <= max(1.1 * used, used + 16)


def test_last_shard_may_be_shorter() -> None:
    layout = plan(n_examples=11, shard_examples=4)
    assert [layout.shard_range(k) for k in range(layout.n_shards)] == [range(4), range(4, 8), range(8, 11)]


@pytest.mark.parametrize("arch", ["enc", "dec", "encdec"])
def test_layout_survives_json(arch: str) -> None:
    layout = plan(arch, dtype="bfloat16", attn_codec="sqrt8", codec="lz4")
    assert RunLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize("arch", ["enc", "dec", "encdec"])
def test_a_dimension_name_has_one_size_within_a_group(arch: str) -> None:
    layout = plan(arch)
    sizes: dict[tuple[str, str], int] = {}
    for array in layout.arrays:
        group = layout.array_path(array.key).split("/")[0]
        for axis, size in zip(layout.axes(array), layout.array_shape(array), strict=True):
            assert sizes.setdefault((group, axis), size) == size


def test_axes_of_each_kind() -> None:
    layout = plan("encdec")
    axes = {str(array.key): layout.axes(array) for array in layout.arrays}
    assert axes["enc.self.attn_pattern"] == ("example", "layer", "head", "query", "key")
    assert axes["dec.cross.k"] == ("layer", "kv_head", "enc_token", "d_head")
    assert axes["dec.cross.q"] == ("layer", "head", "dec_token", "d_head")
    assert axes["dec.hidden"] == ("hidden_layer", "dec_token", "d_model")
    assert axes["dec.logits"] == ("dec_token", "d_vocab")


def test_arrays_of_different_layers_in_one_group_have_their_own_axis() -> None:
    up, down = spec("dec.mlp_up"), spec("dec.mlp_down")
    layout = plan(arrays=[up, ArraySpec(down.key, (4,), (), down.width)])
    assert [layout.axes(array)[0] for array in layout.arrays] == ["up_layer", "down_layer"]


def test_estimate_of_token_arrays_is_their_size() -> None:
    layout = plan(arrays=[spec("dec.resid_mid")])
    assert estimated_bytes(layout, {"dec": [5, 60]}) == 65 * 2 * 24 * 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_examples": 0}, "nothing to store"),
        ({"longest": {"enc": 5}}, "no length for dec"),
        ({"arrays": [DEC[0], DEC[0]]}, "listed twice"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(wrong: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = {"arch": "dec", "arrays": ARRAYS["dec"], "n_examples": 3, "longest": {"dec": 9}, **wrong}
    with pytest.raises(UsageError, match=said):
        RunLayout.plan(**options)
