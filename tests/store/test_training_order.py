"""An epoch's order has each item once, in windows that are known by themselves; its shares are whole and disjoint."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traceformer.store.training_order import TrainingOrder, left_after, shared


def order_of(order: TrainingOrder) -> list[tuple[int, int]]:
    """Returns all items in order, as (piece, place in it), by walking through every window."""
    found: list[tuple[int, int]] = []
    for window in range(-(-order.n // order.window)):
        inside = [(piece, at) for piece, first, stop in order.parts(window) for at in range(first, stop)]
        found += [inside[place] for place in order.places(window)]
    return found


counts = st.lists(st.integers(0, 9), min_size=1, max_size=12).map(lambda own: np.array(own, np.int64))


@given(counts=counts, window=st.integers(1, 20), seed=st.none() | st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_item_comes_once(counts: np.ndarray, window: int, seed: int | None, epoch: int) -> None:
    seen = order_of(TrainingOrder(counts, window, seed, epoch))
    everything = [(piece, at) for piece, count in enumerate(counts) for at in range(count)]
    assert sorted(seen) == everything
    if seed is None:
        assert seen == everything


def test_seed_and_epoch_make_the_order_and_the_same_ones_the_same() -> None:
    made = {
        (seed, epoch): order_of(TrainingOrder(np.full(9, 20), 50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len({tuple(order) for order in made.values()}) == 4
    assert made[1, 1] == order_of(TrainingOrder(np.full(9, 20), 50, 1, 1))


def test_a_hash_tells_orders_apart() -> None:
    orders = [
        *(TrainingOrder(np.full(9, 20), 50, seed, epoch) for seed, epoch in ((None, 0), (0, 0), (1, 0), (1, 1))),
        *(TrainingOrder(np.full(18, 10), 50, 0), TrainingOrder(np.full(9, 20), 60, 0), TrainingOrder(np.full(0, 1), 9)),
    ]
    assert len({order.beginning() for order in orders}) == len(orders)
    assert TrainingOrder(np.full(9, 20), 50, 1, 1).beginning() == orders[3].beginning()


def test_a_window_has_whole_pieces_from_all_over_the_run_in_no_order() -> None:
    order = TrainingOrder(np.full(4000, 512), 1 << 16, seed=3)
    parts = order.parts(5)
    places = np.concatenate([512 * piece + np.arange(first, stop) for piece, first, stop in parts])[order.places(5)]
    assert len(parts) == 128
    assert np.ptp([part.piece for part in parts]) > 3500
    # 65,535 pairs of neighbours: by chance the correlation is within 4 / sqrt(65535) and 1 of 128 are of one piece.
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 4 / 256
    assert np.mean(places[:-1] // 512 == places[1:] // 512) == pytest.approx(1 / 128, rel=0.2)


stretches = st.lists(st.integers(0, 40), min_size=2, max_size=8, unique=True).map(
    lambda cuts: [*zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)]
)


@given(left=stretches, parts=st.integers(1, 5))
def test_shares_are_disjoint_whole_and_even(left: list[tuple[int, int]], parts: int) -> None:
    whole = [number for start, stop in left for number in range(start, stop)]
    own = [[number for each in share for number in each] for share in shared(left, parts, in_turns=False)]
    assert [number for share in own for number in share] == whole  # stretches, one behind the other
    assert max(map(len, own)) - min(map(len, own)) <= 1
    assert sorted(map(len, own), reverse=True) == [*map(len, own)]


@given(start=st.integers(0, 5), count=st.integers(0, 20), parts=st.integers(1, 5))
def test_shares_in_turns_keep_the_order(start: int, count: int, parts: int) -> None:
    own = [[*share[0]] for share in shared([(start, start + count)], parts, in_turns=True)]
    assert in_turn(own) == [*range(start, start + count)]


def in_turn(shares: list[list[int]]) -> list[int]:
    """Returns what a loader gives of its workers' shares: one of each in turn; who has none left is passed over."""
    return [share[step] for step in range(max(map(len, shares))) for share in shares if step < len(share)]


@given(left=stretches, parts=st.integers(1, 5), taken=st.integers(0, 50), in_turns=st.booleans())
def test_what_is_left_is_what_a_loader_has_not_given(
    left: list[tuple[int, int]], parts: int, taken: int, in_turns: bool
) -> None:
    left = left[:1] if in_turns else left
    shares = [[number for each in share for number in each] for share in shared(left, parts, in_turns=in_turns)]
    given = in_turn(shares)
    rest = left_after(left, parts, min(taken, len(given)), in_turns=in_turns)
    assert [number for start, stop in rest for number in range(start, stop)] == sorted(given[taken:])
