"""`traceformer.compat` is where the names of the older systems are; the package's top knows them too."""

import pytest

import traceformer
from traceformer import compat

OTHER_THERE = {"load_model"}  # nanochat's; at the top the name is any model's


@pytest.mark.parametrize("name", [name for name in compat.__all__ if name not in OTHER_THERE])
def test_a_name_is_the_same_at_the_top(name: str) -> None:
    assert getattr(traceformer, name) is getattr(compat, name)


def test_nanochats_load_model_is_nanochats() -> None:
    assert compat.load_model.__module__ == "traceformer.models.nanochat"


def test_a_name_that_is_not_there_is_no_attribute() -> None:
    assert dir(compat) == compat.__all__
    with pytest.raises(AttributeError, match="no attribute 'Sankey'"):
        _ = compat.Sankey
