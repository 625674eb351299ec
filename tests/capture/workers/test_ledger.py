"""Every shard waits, is at one worker, or is committed, whatever happens in whatever order."""

from hypothesis import given
from hypothesis import strategies as st

from traceformer.capture.workers.ledger import Ledger

EVENTS = st.lists(st.tuples(st.sampled_from(["give", "commit", "lose"]), st.integers(0, 3)), max_size=80)


@given(st.integers(0, 12), EVENTS)
def test_no_shard_is_lost_or_given_to_two(count: int, events: list[tuple[str, int]]) -> None:
    ledger = Ledger(range(count))
    held: dict[int, list[int]] = {worker: [] for worker in range(4)}
    committed: list[int] = []
    for event, worker in events:
        if event == "give":
            shard = ledger.give(worker)
            if shard is not None:
                assert shard not in committed
                assert all(shard not in own for own in held.values())
                held[worker].append(shard)
        elif event == "commit" and held[worker]:
            committed.append(held[worker].pop(0))
            ledger.commit(worker, committed[-1])
        elif event == "lose":
            assert ledger.lose(worker) == held[worker]
            held[worker] = []
        at_work = sum(map(len, held.values()))
        assert (ledger.committed, ledger.waiting) == (len(committed), count - len(committed) - at_work)
        assert ledger.is_done == (len(committed) == count)


def test_what_a_dead_worker_had_is_given_out_first_and_in_order() -> None:
    ledger = Ledger(range(6))
    assert [ledger.give(0), ledger.give(0), ledger.give(1)] == [0, 1, 2]
    assert ledger.lose(0) == [0, 1]
    assert [ledger.give(2) for _ in range(5)] == [0, 1, 3, 4, 5]
    assert ledger.give(2) is None
