"""Sparse attention against scaled_dot_product_attention under a mask that is made cell by cell."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from traceformer.bytelm.flex import flex_sparse_attention
from traceformer.bytelm.patterns import HeadPattern, thesis_patterns
from traceformer.bytelm.sparse_attention import sparse_attention
from traceformer.bytelm.sparse_mask import sparse_mask


def cell(pattern: HeadPattern, query: int, key: int, start: int = 0) -> bool:
    """Whether a query sees a key, by their indices, in a row whose text begins at `start`."""
    if key > query or (key < start and key != query):
        return False
    return query - key <= pattern.window or key - start in pattern.columns


def full_mask(patterns: Sequence[HeadPattern], n_queries: int, n_keys: int, starts: Sequence[int] = (0,)) -> Tensor:
    queries = range(n_keys - n_queries, n_keys)
    rows = [[[[cell(p, i, j, start) for j in range(n_keys)] for i in queries] for p in patterns] for start in starts]
    return torch.tensor(rows)


class Case(NamedTuple):
    patterns: tuple[HeadPattern, ...]
    n_queries: int
    n_keys: int
    starts: tuple[int, ...] | None
    batch: int
    d_head: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    columns = st.lists(st.integers(0, 120), max_size=6).map(lambda found: tuple(sorted(set(found))))
    pool = draw(st.lists(st.builds(HeadPattern, st.integers(0, 70), columns), min_size=1, max_size=3))
    patterns = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=5).map(tuple))
    n_keys = draw(st.integers(1, 120))
    n_queries = draw(st.one_of(st.just(n_keys), st.just(1), st.integers(1, n_keys)))
    batch = draw(st.integers(1, 3))
    starts = draw(st.none() | st.tuples(*[st.integers(0, n_keys - 1)] * batch))
    return Case(patterns, n_queries, n_keys, starts, batch, draw(st.sampled_from((1, 4, 8))))


def tensors(case: Case, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key, value and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (case.n_queries, case.n_keys, case.n_keys, case.n_queries)
    shapes = [(case.batch, len(case.patterns), length, case.d_head) for length in lengths]
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [*(each.requires_grad_() for each in made[:3]), made[3]]


def both_ways(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of sparse attention, and of dense attention under the same mask."""
    starts = None if case.starts is None else torch.tensor(case.starts)
    mask = sparse_mask(case.patterns, case.n_queries, case.n_keys, starts)
    dense = full_mask(case.patterns, case.n_queries, case.n_keys, case.starts or (0,))
    scaling = case.d_head**-0.5
    results: list[list[Tensor]] = []
    for sparse in (True, False):
        query, key, value, grad = tensors(case)
        if sparse:
            output = sparse_attention(query, key, value, mask, scaling)
        else:
            output = scaled_dot_product_attention(query, key, value, attn_mask=dense, scale=scaling)
        output.backward(grad)
        results.append([output.detach(), *(x.grad for x in (query, key, value) if x.grad is not None)])
    return results[0], results[1]


@settings(max_examples=30, deadline=None)
@given(cases())
def test_equals_dense_attention_under_the_same_mask_forward_and_backward(case: Case) -> None:
    # Including heads in any order, windows longer than a block or the text, keys from a cache, padding on the left.
    for sparse, dense in zip(*both_ways(case), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=30, deadline=None)
@given(cases())
def test_flex_attention_under_the_mask_in_blocks_is_the_same(case: Case) -> None:
    # PyTorch's reference for it: the compiled kernel, and any gradient, are CUDA's.
    starts = None if case.starts is None else torch.tensor(case.starts)
    mask = sparse_mask(case.patterns, case.n_queries, case.n_keys, starts)
    dense = full_mask(case.patterns, case.n_queries, case.n_keys, case.starts or (0,))
    query, key, value, _ = (each.detach() for each in tensors(case))
    flex = flex_sparse_attention(query, key, value, mask, 0.3)
    torch.testing.assert_close(
        flex, scaled_dot_product_attention(query, key, value, attn_mask=dense, scale=0.3), rtol=1e-5, atol=1e-5
    )


def test_compiled_flex_attention_is_the_same_on_cuda(skip_for: Callable[[str], None]) -> None:
    if not torch.cuda.is_available():
        skip_for("cuda")
    case = Case(thesis_patterns(8, 1024), 1024, 1024, (0, 100), 2, 64)
    query, key, value, grad = (each.detach().cuda().requires_grad_() for each in tensors(case))
    mask = sparse_mask(case.patterns, 1024, 1024, torch.tensor(case.starts).cuda(), "cuda")
    found: list[list[Tensor]] = []
    for attention in (sparse_attention, flex_sparse_attention):
        output = attention(query, key, value, mask, 0.125)
        found.append([output, *torch.autograd.grad(output, (query, key, value), grad)])
    for sparse, flex in zip(*found, strict=True):
        torch.testing.assert_close(sparse, flex, rtol=1e-3, atol=1e-3)


def test_equals_dense_attention_over_several_pieces() -> None:
    case = Case(thesis_patterns(8, 300), 300, 300, None, 1, 64)
    for sparse, dense in zip(*both_ways(case), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(cases())
def test_the_mask_written_out_is_that_of_the_definition(case: Case) -> None:
    starts = None if case.starts is None else torch.tensor(case.starts)
    mask = sparse_mask(case.patterns, case.n_queries, case.n_keys, starts)
    expected = full_mask(case.patterns, case.n_queries, case.n_keys, case.starts or (0,))
    heads, queries, keys = (torch.arange(size) for size in expected.shape[1:])
    assert torch.equal(mask.allowed(None, heads, queries, keys), expected)
    heads, queries, keys = heads.flip(0)[:2], queries[1::2], keys[2:]
    one = expected[0 if case.starts is None else case.batch - 1]
    assert torch.equal(mask.allowed(case.batch - 1, heads, queries, keys), one[heads][:, queries][..., keys])


@pytest.mark.parametrize("n_queries", [60, 13])
def test_no_output_depends_on_a_key_that_its_head_may_not_see(n_queries: int) -> None:
    case = Case((HeadPattern(5), HeadPattern(0, (0, 20)), HeadPattern(3, (7,))), n_queries, 60, (0, 9), 2, 4)
    mask = sparse_mask(case.patterns, case.n_queries, case.n_keys, torch.tensor(case.starts))
    allowed = full_mask(case.patterns, case.n_queries, case.n_keys, case.starts or ())
    query, key, value, _ = (each.detach() for each in tensors(case))
    before = sparse_attention(query, key, value, mask, 0.5)
    for changed in range(0, 60, 4):
        other_key, other_value = key.clone(), value.clone()
        other_key[:, :, changed] += 100
        other_value[:, :, changed] -= 100
        moved = (sparse_attention(query, other_key, other_value, mask, 0.5) != before).any(-1)
        assert torch.equal(moved, allowed[..., changed])


def added_in_place(_: object, left: torch.Size, right: torch.Size, **__: object) -> int:
    """The operations of a product that the counter knows nothing of."""
    return 2 * left.numel() * right[-1]


def work(pattern: HeadPattern, length: int) -> int:
    """The products of one head, forward and backward, in floating-point operations per feature."""
    case = Case((pattern,), length, length, None, 1, 8)
    query, key, value, grad = tensors(case)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: added_in_place}) as counter:
        sparse_attention(query, key, value, sparse_mask(case.patterns, length, length), 1.0).backward(grad)
    return counter.get_total_flops() // 8


@pytest.mark.parametrize("window", [0, 8, 16, 32, 100])
def test_the_work_of_a_local_head_grows_with_its_length_alone(window: int) -> None:
    pattern = HeadPattern(window)
    assert work(pattern, 4096) == 2 * work(pattern, 2048)
    # Six products: scores and mixing, and two for each of them backward, of 2 operations per cell.
    assert work(pattern, 2048) <= 12 * 2048 * (2 * window + 64)


def test_the_work_of_columns_is_that_of_the_columns() -> None:
    pattern = HeadPattern(32, tuple(range(0, 2048, 8)))
    near, far = work(HeadPattern(32), 2048), 12 * 2048 * 256
    assert near + far / 2 < work(pattern, 2048) < near + far * 0.6  # half of the columns lie ahead, on the average


def test_what_is_kept_for_backward_grows_with_the_length_alone() -> None:
    kept = []
    for length in (1024, 2048):
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        case = Case((HeadPattern(8), HeadPattern(32, (0, 100, 200))), length, length, None, 1, 16)
        query, key, value, _ = tensors(case)
        mask = sparse_mask(case.patterns, length, length)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sparse_attention(query, key, value, mask, 1.0)
        kept.append(sum(sizes.values()))
    assert kept[1] < 2.01 * kept[0]
    assert kept[1] < 2048 * 2048  # bytes, for two heads: an eighth of one dense matrix of float32 each


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_about_as_exact_as_that_of_eager_attention(dtype: torch.dtype) -> None:
    case = Case((HeadPattern(8), HeadPattern(32, (0, 40, 80))), 150, 150, None, 2, 32)
    mask, dense = sparse_mask(case.patterns, 150, 150), full_mask(case.patterns, 150, 150)

    def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query @ key.mT * 32**-0.5).masked_fill(~dense, -torch.inf)
        return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value

    def found(attention: Callable[..., Tensor], given: torch.dtype) -> list[Tensor]:
        query, key, value, grad = (each.detach().to(dtype).to(given) for each in tensors(case))
        inputs = [each.requires_grad_() for each in (query, key, value)]
        output = attention(*inputs)
        output.backward(grad)
        assert output.dtype == given
        return [output.detach().float(), *(each.grad.float() for each in inputs if each.grad is not None)]

    exact = found(eager, torch.float32)
    mine, theirs = found(lambda *x: sparse_attention(*x, mask, 32**-0.5), dtype), found(eager, dtype)
    for sparse, other, right in zip(mine, theirs, exact, strict=True):
        # A gradient is added up from a few parts, each rounded.
        assert (sparse - right).abs().max() < 4 * (other - right).abs().max()


def test_under_autocast_all_inputs_take_its_precision() -> None:
    case = Case((HeadPattern(4),), 20, 20, None, 1, 8)
    query, key, value, grad = tensors(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = sparse_attention(query, key, value.bfloat16(), sparse_mask(case.patterns, 20, 20), 8**-0.5)
    assert output.dtype == torch.bfloat16
    output.backward(grad.bfloat16())
    assert query.grad is not None
    assert query.grad.dtype == torch.float32
    exact, _ = both_ways(case)
    torch.testing.assert_close(output.float(), exact[0], rtol=0.02, atol=0.02)


def test_tensors_need_not_be_contiguous() -> None:
    # As models hand them over: (batch, position, head, d_head), transposed.
    case = Case((HeadPattern(3), HeadPattern(0, (0, 5))), 30, 30, None, 2, 4)
    mask = sparse_mask(case.patterns, 30, 30)
    expected, _ = both_ways(case)
    query, key, value, grad = tensors(case)
    inputs: list[Any] = [
        x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (query, key, value)
    ]
    output = sparse_attention(*inputs, mask, case.d_head**-0.5)
    output.backward(grad.transpose(1, 2).contiguous().transpose(1, 2))
    for found, right in zip((output, *(x.grad for x in inputs)), expected, strict=True):
        torch.testing.assert_close(found, right)
