"""Tiny random models with the small tokenizer of the capture tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.capture.conftest import tiny_folder
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel

__all__ = ["tiny_folder"]  # a fixture


@pytest.fixture
def load(tiny_folder: Callable[..., Any]) -> Callable[..., LoadedModel]:
    """Loads a family's tiny model, as a user would."""

    def loaded(family: str, **options: Any) -> LoadedModel:
        torch.set_num_threads(2)
        return load_model(str(tiny_folder(family)), device="cpu", **options)

    return loaded
