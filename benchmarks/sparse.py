"""Measures sparse attention against dense attention: under the same mask, and causal without one.

    python benchmarks/sparse.py [--json FILE] [--quick] [--threads N]

Eight heads with the patterns of the byte-transformer thesis, d_head 64, forward and backward on the CPU. Dense
attention is torch's scaled_dot_product_attention with whichever form of the mask, boolean or added, is the faster. The
ways are timed turn by turn, and each figure is the median of the turns' ratios. Memory is the peak of a process of its
own, above what it had before. Making the mask is not timed: the layers of a model share it, and so do the steps of
training.

With one thread the processor's time is taken, not the clock's: on a machine that is busy with something else, threads
that wait for each other say nothing.
"""

import time
from collections.abc import Callable, Iterator

import torch
from table import Row, in_process, main, memory, row, seconds
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from traceformer.bytelm.patterns import HeadPattern, thesis_patterns
from traceformer.bytelm.sparse_attention import sparse_attention
from traceformer.bytelm.sparse_mask import SparseMask, sparse_mask

D_HEAD = 64
LOCAL = (HeadPattern(8), *(HeadPattern(16),) * 2, *(HeadPattern(32),) * 5)
TARGETS = {1024: 3.0, 4096: 6.0}


class Bench:
    """One length: forward and backward of each way, as callables."""

    def __init__(self, patterns: tuple[HeadPattern, ...], length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (1, len(patterns), length, D_HEAD)
        self.inputs = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]
        self.grad = torch.randn(shape, generator=generator)
        self.mask = sparse_mask(patterns, length, length)

    def both_ways(self, attention: Callable[..., Tensor]) -> Callable[[], None]:
        def run() -> None:
            for each in self.inputs:
                each.grad = None
            attention(*self.inputs).backward(self.grad)

        return run

    def sparse(self) -> Callable[[], None]:
        return self.both_ways(lambda q, k, v: sparse_attention(q, k, v, self.mask, D_HEAD**-0.5))

    def masked(self, *, added: bool) -> Callable[[], None]:
        mask = written_out(self.mask)
        if added:
            mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        return self.both_ways(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def causal(self) -> Callable[[], None]:
        return self.both_ways(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True))


def written_out(mask: SparseMask) -> Tensor:
    """(1, head, query, key), head by head."""
    positions = torch.arange(mask.n_keys)
    heads = torch.arange(len(mask.patterns)).split(1)
    return torch.cat([mask.allowed(0, head, positions, positions) for head in heads])[None]


def timed(ways: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            found[name].append(seconds(way) if torch.get_num_threads() > 1 else processor_seconds(way))
    return found


def processor_seconds(way: Callable[[], None]) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


def peak_of(way: str, length: int) -> float:
    """The MB that one forward and backward pass needs, in a process of its own."""
    return in_process(f"import sparse; sparse.print_peak({way!r}, {length})") / 1e6


def print_peak(way: str, length: int) -> None:
    torch.set_num_threads(2)
    bench = Bench(thesis_patterns(8, length), length)
    small = Bench(LOCAL, 64)
    run = {"sparse": bench.sparse, "masked": lambda: bench.masked(added=False), "causal": bench.causal}[way]()
    small.causal()(), small.sparse()()  # the libraries' own memory
    before = memory("VmRSS")
    run()
    print(memory("VmHWM") - before)


def measure(quick: bool, threads: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    turns = 3 if quick else 11
    for length, target in TARGETS.items():
        bench = Bench(thesis_patterns(8, length), length)
        ways = {
            "sparse": bench.sparse(),
            "boolean": bench.masked(added=False),
            "added": bench.masked(added=True),
            "causal": bench.causal(),
        }
        found = timed(ways, turns)
        faster = [
            min(boolean, added) / sparse
            for boolean, added, sparse in zip(found["boolean"], found["added"], found["sparse"], strict=True)
        ]
        causal = [dense / sparse for dense, sparse in zip(found["causal"], found["sparse"], strict=True)]
        note = f"{sorted(found['sparse'])[turns // 2] * 1e3:.0f} ms"
        yield row(f"T = {length}: time of SDPA, same mask, over sparse", faster, target, at_least=True, note=note)
        yield row(f"T = {length}: time of SDPA, causal without mask, over sparse", causal, 1.0, at_least=True)
    for length in TARGETS:
        peaks = {way: peak_of(way, length) for way in ("sparse", "masked", "causal")}
        note = ", ".join(f"{way} {peak:.0f} MB" for way, peak in peaks.items())
        share = [peaks["sparse"] / peaks["masked"]]
        yield row(f"T = {length}: memory over that of SDPA, same mask", share, 1 / 3, note=note)
    local = timed({str(length): Bench(LOCAL, length).sparse() for length in (2048, 8192)}, turns)
    growth = [long / short / 4 for short, long in zip(local["2048"], local["8192"], strict=True)]
    yield row("local heads: time per position at T = 8192 over 2048", growth, 1.25)


if __name__ == "__main__":
    main(__doc__, measure)
