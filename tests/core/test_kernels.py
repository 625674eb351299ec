"""The compiled kernels, in every variant that this processor runs, against torch, numpy and other libraries."""

import ctypes

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.switched import VARIANTS, needs_core, switched
from traceformer.analysis.conventions import CONVENTIONS, ConventionName
from traceformer.analysis.heads import BlockSums, Geometry, block_sums
from traceformer.analysis.visibility import Visibility
from traceformer.capture.compiled import cast, compiled_patterns
from traceformer.capture.scores import AttentionCall, Span
from traceformer.core import kernels
from traceformer.core.library import Core, core
from traceformer.store.triangles import fold, n_cells, unfold

pytestmark = needs_core

FUSED = [name for name in VARIANTS if name != "plain"]


def cored(variant: str) -> Core:
    with switched(variant):
        there = core()
    assert there is not None
    return there


def made(
    variant: str, call: AttentionCall, heads: range, rows: Span, keys: Span, *, ahead: bool, cuts: tuple[int, ...] = ()
) -> tuple[np.ndarray, bool]:
    """Returns the patterns of example 1 as squares, some queries after the other, and whether all are numbers."""
    with switched(variant):
        there, compiled = core(), compiled_patterns(call, heads, ahead=ahead)
    assert there is not None
    assert compiled is not None
    own = compiled.of(1, rows, keys)
    memory = np.empty(kernels.patterns_memory(there, own.call), np.float32)
    pitch = keys.length if ahead else 0
    fine, parts = True, []
    for first, stop in zip((0, *cuts), (*cuts, rows.length), strict=True):
        count = (stop - first) * pitch or n_cells(stop) - n_cells(first)
        cells = np.full((len(heads), count), np.nan, np.float16)
        fine &= kernels.patterns(there, own.call, own.heads, first, stop, memory, cells, pitch)
        parts.append(cells)
    cells = np.concatenate(parts, axis=1)
    if ahead:
        return cells.reshape(len(heads), rows.length, keys.length), fine
    with switched("off"):
        return unfold(cells, 0, rows.length, rows.length), fine


def exact(call: AttentionCall, heads: range, rows: Span, keys: Span) -> np.ndarray:
    """Returns the same in float64, rounded to float16 last."""
    wide = AttentionCall(
        call.query.double(), call.key.double(), call.value, call.mask, None, None, call.scaling, None,
        call.is_causal, call.window,
    )  # fmt: skip
    group = call.query.shape[1] // call.key.shape[1]
    scores = torch.stack(
        [
            wide.query[1, head, rows.start : rows.stop] @ wide.key[1, head // group, keys.start : keys.stop].T
            for head in heads
        ]
    )
    return wide.pattern(scores * call.scaling, 1, torch.tensor(list(heads)), rows, keys).half().numpy()


def steps_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns how many float16 lie between two numbers that are not negative."""
    return np.abs(one.view(np.int16).astype(int) - other.view(np.int16).astype(int))


@st.composite
def calls(draw: st.DrawFn) -> tuple[AttentionCall, range, Span, Span, bool]:
    """A call with strided tensors, its wanted heads, an example's spans, and whether queries look ahead."""
    length, d = draw(st.integers(1, 70)), draw(st.sampled_from((1, 3, 8, 16, 40)))
    group, kv_heads = draw(st.sampled_from((1, 2, 3))), draw(st.integers(1, 3))
    ahead = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    n_heads, scale = group * kv_heads, draw(st.sampled_from((0.1, 1.0)))

    def tensor(heads: int) -> torch.Tensor:
        fused = torch.randn(2, length, heads * 2 * d, generator=generator) * 2
        return fused.unflatten(-1, (heads, 2 * d)).transpose(1, 2)[..., d:]

    start = draw(st.integers(0, length - 1))
    rows = Span(start, draw(st.integers(start + 1, length)))
    kind = draw(st.sampled_from(("none", "boolean", "added")))
    window = draw(st.none() | st.integers(1, 20)) if kind == "none" and not ahead else None
    mask = None
    if kind != "none":
        allowed = torch.rand(draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, n_heads))), length, length) < 0.7
        allowed |= torch.eye(length, dtype=torch.bool)
        if not ahead:
            allowed = allowed.tril()
        mask = allowed if kind == "boolean" else torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    query, key = tensor(n_heads), tensor(kv_heads)
    first = draw(st.integers(0, n_heads - 1))
    heads = range(first, draw(st.integers(first + 1, n_heads)))
    is_causal = kind == "none" and not ahead
    if mask is not None and mask.shape[0] == 1:
        mask = mask.expand(2, -1, -1, -1)
    return AttentionCall(query, key, key, mask, None, None, scale, None, is_causal, window), heads, rows, rows, ahead


@given(calls(), st.sampled_from(VARIANTS), st.data())
@settings(max_examples=60)
def test_patterns_are_the_softmax_to_one_step_of_float16(
    drawn: tuple[AttentionCall, range, Span, Span, bool], variant: str, data: st.DataObject
) -> None:
    call, heads, rows, keys, ahead = drawn
    cuts = (
        tuple(sorted(data.draw(st.sets(st.integers(1, max(1, rows.length - 1)), max_size=2))))
        if rows.length > 1
        else ()
    )
    found, fine = made(variant, call, heads, rows, keys, ahead=ahead, cuts=cuts)
    expected = exact(call, heads, rows, keys)
    assert fine
    assert steps_apart(found, expected).max() <= 1
    if not ahead:
        assert not np.triu(found, 1).any()


@given(calls())
@settings(max_examples=20)
def test_variants_with_a_fused_multiply_add_give_equal_bits(
    drawn: tuple[AttentionCall, range, Span, Span, bool],
) -> None:
    call, heads, rows, keys, ahead = drawn
    found = [made(variant, call, heads, rows, keys, ahead=ahead)[0].tobytes() for variant in FUSED]
    assert len(set(found)) <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_ten_thousand_cells_three_or_fewer_differ_from_torch_s(variant: str) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 4, 256, 64)
    call = AttentionCall(query, key, key, None, None, None, 0.125, None, True, None)
    rows, heads = Span(0, 256), torch.arange(4)
    found, _ = made(variant, call, range(4), rows, rows, ahead=False)
    torchs = call.pattern(call.scores(1, heads, rows, rows), 1, heads, rows, rows).half().numpy()
    apart = steps_apart(found, torchs)
    assert apart.max() <= 1
    assert apart.sum() <= 3e-4 * 4 * n_cells(256)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_without_numbers_is_told(variant: str, bad: float) -> None:
    query = torch.randn(2, 1, 20, 8)
    query[1, 0, 7, 3] = bad
    call = AttentionCall(query, torch.rand(2, 1, 20, 8), query, None, None, None, 1.0, None, True, None)
    found, fine = made(variant, call, range(1), Span(0, 20), Span(0, 20), ahead=False)
    assert not fine
    assert np.isnan(found[0, 7, :8]).all()
    assert np.isfinite(np.delete(found, 7, axis=1)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_query_that_may_look_nowhere_is_nan_as_torch_has_it(variant: str) -> None:
    query = torch.randn(2, 1, 6, 8)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    mask[1, 0, 2] = False
    call = AttentionCall(query, query, query, mask, None, None, 1.0, None, False, None)
    found, fine = made(variant, call, range(1), Span(0, 6), Span(0, 6), ahead=True)
    assert not fine
    assert np.isnan(found[0, 2]).all()


# Rows


@given(st.data(), st.sampled_from(VARIANTS), st.sampled_from((torch.float16, torch.bfloat16, torch.float32)))
@settings(max_examples=60)
def test_casts_give_torch_s_bytes_and_tell_what_is_not_finite(
    data: st.DataObject, variant: str, dtype: torch.dtype
) -> None:
    shape = [*data.draw(st.lists(st.integers(1, 5), min_size=0, max_size=3)), data.draw(st.integers(1, 40))]
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    bits = random.integers(0, 1 << 32, shape, dtype=np.uint32)
    source = torch.from_numpy(bits.view(np.float32))
    if data.draw(st.booleans()):  # where most of float16 lies
        source = torch.from_numpy((random.standard_normal(shape) * 2.0 ** random.integers(-26, 15, shape)).astype("f4"))
    axes = data.draw(st.permutations(range(len(shape) - 1)))
    source = source.permute(*axes, len(shape) - 1)
    target = torch.zeros([2 * size for size in source.shape], dtype=dtype)
    target = target[tuple(slice(0, size) for size in source.shape)]
    expected = source.to(dtype)
    with switched(variant):
        done = cast(target, source)
    assert done == bool(torch.isfinite(expected).all())
    numbers = torch.isfinite(expected)
    bits_of = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(target.view(bits_of)[numbers], expected.view(bits_of)[numbers])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_float16_is_read_and_written_as_numpy_does(variant: str) -> None:
    there, halves = cored(variant), np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    numbers = halves[np.isfinite(halves)].astype(np.float32)
    between = np.concatenate([numbers, np.nextafter(numbers, np.inf), np.nextafter(numbers, -np.inf), numbers * 1.0004])
    between = between[np.abs(between) < 65500]
    target = torch.empty(len(between), dtype=torch.float16)
    with switched(variant):
        assert cast(target, torch.from_numpy(between))
    assert np.array_equal(target.numpy().view(np.uint16), between.astype(np.float16).view(np.uint16))
    rows = halves[np.isfinite(halves)][:, None]
    products, norms = kernels.project(there, np.ascontiguousarray(rows), np.ones((1, 1), np.float32))
    assert np.array_equal(products[:, 0], numbers)
    assert np.allclose(norms, np.abs(numbers), rtol=1e-6)


@given(st.data(), st.sampled_from(VARIANTS))
@settings(max_examples=40)
def test_projections_are_products_in_float64(data: st.DataObject, variant: str) -> None:
    tokens, width, directions = (data.draw(st.integers(low, high)) for low, high in ((0, 9), (1, 70), (1, 25)))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from((np.float16, np.float32)))
    rows = random.standard_normal((2 * tokens, width + 3)).astype(dtype)[::2, :width]
    units = random.standard_normal((directions, width)).astype(np.float32)
    products, norms = kernels.project(cored(variant), rows, units)
    wide = rows.astype(np.float64)
    bound = 1e-6 * (np.abs(wide) @ np.abs(units.T.astype(np.float64)) + 1e-30)
    assert (np.abs(products - wide @ units.T.astype(np.float64)) <= bound).all()
    assert np.allclose(norms, np.linalg.norm(wide, axis=1), rtol=1e-6)


# Triangles


@given(st.data(), st.sampled_from(VARIANTS), st.sampled_from((np.uint8, np.float16, np.float32)))
@settings(max_examples=60)
def test_triangles_are_packed_and_unpacked_as_numpy_does(data: st.DataObject, variant: str, dtype: type) -> None:
    heads, first, rows = (data.draw(st.integers(low, 9)) for low in (1, 0, 1))
    keys = data.draw(st.integers(first + rows, first + rows + 9))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    block = (random.random((heads, 2 * rows, keys)) * 200).astype(dtype)[:, ::2]
    if data.draw(st.booleans()):
        block = np.tril(block, first)
    count = n_cells(first + rows) - n_cells(first)
    found = []
    for asked in ("off", variant):
        with switched(asked):
            cells = np.zeros((heads, count + 3), dtype)[:, :count]
            told = fold(block, first, cells)
            found.append((told, cells.tobytes(), unfold(cells, first, rows, keys).tobytes()))
    assert found[0] == found[1]
    assert found[0][0] == (not np.triu(block, first + 1).any())


# Checksums


@given(st.binary(max_size=9000), st.sampled_from(VARIANTS))
@settings(max_examples=40)
def test_crc32c_is_that_of_google(data: bytes, variant: str) -> None:
    found = kernels.crc32c(cored(variant), np.frombuffer(data, np.uint8))
    assert found == google_crc32c.value(data)


@given(st.data(), st.sampled_from(VARIANTS))
@settings(max_examples=40)
def test_gathered_chunks_are_each_followed_by_its_crc32c(data: st.DataObject, variant: str) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    sizes = data.draw(st.lists(st.sampled_from((0, 1, 5, 100, 3072, 40_000)), max_size=6))
    chunks = [random.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    addresses = np.array([chunk.ctypes.data for chunk in chunks], np.int64)
    gathered = kernels.Gathered(cored(variant), addresses, np.array(sizes, np.int64))
    room, found = (
        bytearray(data.draw(st.sampled_from((1, 3, 64, 30_000)) if sum(sizes) < 5000 else st.just(30_000))),
        b"",
    )
    while written := gathered.write(memoryview(room)):
        found += room[:written]
    crcs = [google_crc32c.value(chunk.tobytes()) for chunk in chunks]
    assert found == b"".join(
        chunk.tobytes() + crc.to_bytes(4, "little") for chunk, crc in zip(chunks, crcs, strict=True)
    )
    assert gathered.crcs.tolist() == crcs


# Heads


@given(st.data(), st.sampled_from(VARIANTS), st.sampled_from(sorted(CONVENTIONS)))
@settings(max_examples=60)
def test_sums_of_heads_are_numpy_s(data: st.DataObject, variant: str, convention: ConventionName) -> None:
    length, heads = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 3))
    causal, window = data.draw(st.booleans()), data.draw(st.none() | st.integers(1, 30))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    apart = np.arange(length)[:, None] - np.arange(length)
    reach = length if window is None else window - causal
    seen = (np.abs(apart) <= reach) & ((apart >= 0) | (not causal))
    weights = np.where(seen, random.random((heads, length, length)) ** 8, 0) + 1e-3 * np.eye(length)
    pattern = (weights / weights.sum(-1, keepdims=True)).astype(np.float16)
    tokens = random.integers(0, 6, length) if data.draw(st.booleans()) else None
    geometry = Geometry(length, length, Visibility(causal, window), tokens=tokens)
    cut = data.draw(st.integers(0, length - 1))
    found: list[BlockSums] = []
    for asked in ("off", variant):
        with switched(asked):
            blocks = [(0, cut), (cut, length)] if cut else [(0, length)]
            parts = [
                block_sums(pattern[:, a:b, : b if causal else length], geometry, a, convention=CONVENTIONS[convention])
                for a, b in blocks
            ]
            found.append(parts[0] if len(parts) == 1 else parts[0] + parts[1])
    numpys, ours = found
    np.testing.assert_allclose(ours.direct, numpys.direct, rtol=3e-6, atol=2e-6)
    np.testing.assert_allclose(ours.profile, numpys.profile, rtol=1e-6, atol=1e-7)
    assert np.array_equal(ours.direct[:, 1], numpys.direct[:, 1]), "cells are counted exactly"
    assert np.array_equal(ours.repeating, numpys.repeating)


def test_what_the_library_takes_is_as_large_as_what_python_gives() -> None:
    assert ctypes.sizeof(kernels.PatternCall) == 4 * 8 + 8 * 8 + 5 * 8 + 2 * 4
