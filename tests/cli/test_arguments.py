"""How examples, heads and layers of the command line are read."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store import runs
from traceformer.cli.arguments import find_example, parse_head
from traceformer.errors import ExampleNotFound, SelectionError
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter


def run_of(folder: Path, *ids: str) -> Run:
    """Returns a run whose examples have these ids."""
    layout = runs.plan(arrays=runs.FEW[-1:], n_examples=len(ids))
    with RunWriter.create(folder / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        table = runs.fill(layout, 0, buffer)
        writer.commit(0, buffer, table.set_column(0, "example_id", pa.array(ids)))
        return Run(writer.finish())


@pytest.mark.parametrize(("name", "found"), [("cc", "cc"), ("1", "bb"), (None, "aa"), ("2", "2")])
def test_an_example_is_found_by_id_then_by_number_and_is_the_first_by_default(
    tmp_path: Path, name: str | None, found: str
) -> None:
    assert find_example(run_of(tmp_path, "aa", "bb", "2", "cc"), name) == found


def test_an_example_that_is_not_there_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(ExampleNotFound) as caught:
        find_example(run_of(tmp_path, "aa", "bb"), "7")
    assert (caught.value.why, caught.value.hint) == ("this run holds 2", "a number from 0 to 1, or an id")


@given(layer=st.integers(0, 200), head=st.integers(0, 200))
def test_a_head_is_read_however_it_is_written(layer: int, head: int) -> None:
    assert parse_head(None, f"L{layer}H{head}") == (layer, head)
    assert parse_head(layer, f"L{layer}H{head}") == (layer, head)
    assert parse_head(layer, str(head)) == parse_head(layer, f"h{head}") == (layer, head)
    assert parse_head(layer, None) == (layer, None)
    assert parse_head(None, str(head)) == (None, head)


@pytest.mark.parametrize("head", ["", "L5", "L53", "H", "5.3", "L5 H3", "-1", "L-1H2"])
def test_what_is_no_head_is_refused(head: str) -> None:
    with pytest.raises(SelectionError, match="--head L5H3"):
        parse_head(None, head)


def test_two_different_layers_are_refused() -> None:
    with pytest.raises(SelectionError, match="different layers"):
        parse_head(4, "L5H3")
