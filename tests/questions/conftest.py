from collections.abc import Callable
from typing import Any

import pytest

from tests.capture.conftest import tiny_folder
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.store.run import Run

__all__ = ["tiny_folder"]  # a fixture


@pytest.fixture
def load(tiny_folder: Callable[..., Any]) -> Callable[..., LoadedModel]:
    """Loads a family's tiny model, as a user would."""
    return lambda family, **options: load_model(str(tiny_folder(family)), device="cpu", **options)


@pytest.fixture(scope="module")
def byte() -> LoadedModel:
    """The built-in model of bytes."""
    return load_model("byte", device="cpu")


@pytest.fixture(scope="module")
def run(byte: LoadedModel) -> Run:
    """Two texts that it read, in memory: residual stream, patterns, queries, keys, values and logits."""
    from traceformer.capture.extract import record

    texts = ["return the name of the na", "if it is not, raise"]
    return record(byte, texts, "attn qkv resid logits", dtype="float32")
