"""Which keys each query of each head may see, and the plan by which just those are computed.

For many queries heads with the same pattern form a group, whose queries are laid out in blocks (near keys) and pieces
(columns). For a single query beside a cache each head's keys are listed.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from traceformer.bytelm.patterns import HeadPattern
from traceformer.shapes import Bool, Int

__all__ = ["Group", "Piece", "SparseMask", "Step", "sparse_mask"]

_BLOCKS = (16, 32)  # queries: fewer make the products too small, more meet keys that none of them may see
_PIECE = 256  # queries: more meet columns that begin after most of them, fewer make the products too small


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a group, and how many columns begin before the last of them.

    `bias` is 0 where a query may look and -inf elsewhere, (batch or 1, 1, row, column), like a group's.
    """

    rows: slice
    n_columns: int
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """The heads of one pattern, side by side, laid out as `n_blocks` blocks of `block` rows.

    A row holds a query and the key at its position. The first `lead` rows hold only keys: those in a cache that the
    first query's window reaches. A block sees itself and the `reach` blocks before it. `columns` says which keys the
    columns are, (batch or 1, column).
    """

    heads: slice
    block: int
    n_blocks: int
    reach: int
    lead: int
    bias: Tensor
    columns: Tensor
    pieces: tuple[Piece, ...]

    @property
    def n_rows(self) -> int:
        return self.n_blocks * self.block

    @property
    def n_heads(self) -> int:
        return self.heads.stop - self.heads.start


@dataclass(frozen=True, slots=True)
class Step:
    """The keys that a single query's heads see, (batch or 1, head, key), each as many as the one with the most.

    `bias` is -inf where a head has no such key, (batch or 1, head, 1, key).
    """

    keys: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)  # found by identity
class SparseMask:
    """Which keys each query of each head may see, and how to compute just those. Made by `sparse_mask`.

    The queries are the last `n_queries` of `n_keys` tokens. `starts` says where each row's text begins after its
    padding on the left, None if all begin at 0; columns count from there. The plan is a `step` for a single query,
    else `groups`; `order` lists the heads group by group, None if that is their own order.
    """

    patterns: tuple[HeadPattern, ...]
    n_queries: int
    n_keys: int
    starts: Tensor | None
    step: Step | None = None
    groups: tuple[Group, ...] = ()
    order: list[int] | None = None

    @property
    def offset(self) -> int:
        """The index of the first query among the keys: how many keys come from a cache."""
        return self.n_keys - self.n_queries

    def allowed(
        self,
        example: int | None,
        heads: Int[Tensor, " head"],
        queries: Int[Tensor, " query"],
        keys: Int[Tensor, " key"],
    ) -> Bool[Tensor, "*batch head query key"]:
        """Returns a part of the mask written out, True where a query may look; for whoever needs whole patterns.

        One example's (head, query, key), or for None (batch or 1, head, query, key). `queries` and `keys` are indices.
        """
        if example is None:
            examples = range(1 if self.starts is None else len(self.starts))
            return torch.stack([self.allowed(each, heads, queries, keys) for each in examples])
        start = 0 if self.starts is None else int(self.starts[example])
        distance = (queries + self.offset)[:, None] - keys
        return torch.stack([_may_look(self.patterns[head], distance, keys - start) for head in heads.tolist()])


def _may_look(pattern: HeadPattern, distance: Tensor, position: Tensor) -> Tensor:
    """Padding on the left, at positions below 0, sees itself, lest it see nothing; nobody reads what comes of it."""
    columns = torch.tensor(pattern.columns, dtype=torch.long, device=distance.device)
    seen = (distance <= pattern.window) | torch.isin(position, columns)
    return (seen & (distance >= 0) & (position >= 0)) | (distance == 0)


def sparse_mask(
    patterns: Sequence[HeadPattern],
    n_queries: int,
    n_keys: int,
    starts: Int[Tensor, " batch"] | None = None,
    device: torch.device | str = "cpu",
) -> SparseMask:
    """Returns the mask for the last `n_queries` of `n_keys` tokens; the layers of a model share it.

    Args:
        patterns: what each head may see.
        n_queries: the number of queries.
        n_keys: the number of keys, those in a cache included.
        starts: the index of each row's first token that is not padding on the left; None if there is none.
        device: where the attention will be computed.
    """
    if starts is None:
        return _without_padding(tuple(patterns), n_queries, n_keys, torch.device(device))
    return _build(tuple(patterns), n_queries, n_keys, starts, torch.device(device))


@lru_cache(maxsize=4)
def _without_padding(
    patterns: tuple[HeadPattern, ...], n_queries: int, n_keys: int, device: torch.device
) -> SparseMask:
    return _build(patterns, n_queries, n_keys, None, device)


def _build(
    patterns: tuple[HeadPattern, ...], n_queries: int, n_keys: int, starts: Tensor | None, device: torch.device
) -> SparseMask:
    begins = torch.zeros(1, dtype=torch.long, device=device) if starts is None else starts.to(device)
    if n_queries == 1:
        return SparseMask(patterns, n_queries, n_keys, starts, step=_step(patterns, n_keys - 1, begins))
    heads_of: defaultdict[HeadPattern, list[int]] = defaultdict(list)
    for head, pattern in enumerate(patterns):
        heads_of[pattern].append(head)
    order = [head for heads in heads_of.values() for head in heads]
    groups: list[Group] = []
    for pattern, heads in heads_of.items():
        first = groups[-1].heads.stop if groups else 0
        groups.append(_group(pattern, slice(first, first + len(heads)), n_queries, n_keys, begins))
    in_order = order == sorted(order)
    return SparseMask(patterns, n_queries, n_keys, starts, None, tuple(groups), None if in_order else order)


def _step(patterns: tuple[HeadPattern, ...], query: int, starts: Tensor) -> Step:
    distances, columns, windows = _numbers(patterns, starts.device)
    begins = starts[:, None, None]
    near, far = query - distances, begins + columns
    seen_near = (distances <= windows) & ((near >= begins) | (distances == 0))
    seen_far = (columns >= 0) & (far < query - windows)
    keys = torch.cat([near.expand(len(starts), -1, -1), far], dim=-1).clamp(0, query)
    return Step(keys, _bias(torch.cat([seen_near, seen_far], dim=-1)).transpose(1, 2))


@lru_cache(maxsize=4)
def _numbers(patterns: tuple[HeadPattern, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The distances (1, near), columns (head, far; -1 where a head has fewer) and windows (head, 1) of all heads."""
    windows = torch.tensor([[pattern.window] for pattern in patterns], device=device)
    most = max(len(pattern.columns) for pattern in patterns)
    columns = [[*pattern.columns, *[-1] * (most - len(pattern.columns))] for pattern in patterns]
    distances = torch.arange(int(windows.max()) + 1, device=device)[None]
    return distances.expand(len(patterns), -1), torch.tensor(columns, device=device, dtype=torch.long), windows


def _group(pattern: HeadPattern, heads: slice, n_queries: int, n_keys: int, starts: Tensor) -> Group:
    window, offset, device = pattern.window, n_keys - n_queries, starts.device
    block = min(max(window, _BLOCKS[0]), _BLOCKS[1])
    reach = -(-window // block)
    lead = reach * block if offset else 0
    n_blocks = -(-(lead + n_queries) // block)
    queries = torch.arange(n_blocks * block, device=device).view(n_blocks, block, 1) + offset - lead
    keys = queries[:, :1] + torch.arange(-reach * block, block, device=device)
    begins = starts.clamp(min=offset - lead).view(-1, 1, 1, 1)
    near = (keys <= queries) & (keys >= queries - window) & (keys >= begins) | (keys == queries)
    columns = torch.tensor([each for each in pattern.columns if each < n_keys], dtype=torch.long, device=device)
    places = columns + starts[:, None]
    queries = queries.flatten()
    pieces: list[Piece] = []
    for start in range(0, lead + n_queries, _PIECE):
        rows = slice(start, min(start + _PIECE, lead + n_queries))
        before = queries[rows] - window
        n_columns = int((columns < before[-1]).sum())
        if n_columns:
            pieces.append(Piece(rows, n_columns, _bias(places[:, None, :n_columns] < before[:, None])))
    places = places.clamp(max=n_keys - 1)
    return Group(heads, block, n_blocks, reach, lead, _bias(near.flatten(1, 2)), places, tuple(pieces))


def _bias(allowed: Tensor) -> Tensor:
    """(batch or 1, row, key) to what is added to the scores of every head."""
    return torch.zeros((), device=allowed.device).where(allowed, -torch.inf)[:, None]
