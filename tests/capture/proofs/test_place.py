"""How far apart two arrays are, and how far apart they may be."""

import math

import pytest
import torch

from traceformer.capture.proofs.place import Rounding, error_between
from traceformer.capture.proofs.tested import tolerance_of


def test_errors_are_relative_to_the_largest_expected_value_but_at_least_to_one() -> None:
    assert error_between(torch.tensor([0.5]), torch.tensor([0.25])) == 0.25
    assert error_between(torch.tensor([101.0, 1.0]), torch.tensor([100.0, 1.0])) == pytest.approx(0.01)


def test_errors_of_other_shapes_and_of_nan_are_infinite() -> None:
    assert error_between(torch.zeros(2, 3), torch.zeros(3, 2)) == math.inf
    assert error_between(torch.tensor([math.nan]), torch.tensor([0.0])) == math.inf
    assert error_between(torch.tensor([0.0]), torch.tensor([math.nan])) == math.inf
    assert error_between(torch.tensor([math.inf]), torch.tensor([math.inf])) == math.inf


def test_tolerances_grow_with_rounding_and_with_scores_only() -> None:
    assert tolerance_of(Rounding.NONE, torch.bfloat16, 100.0) == 0
    assert tolerance_of(Rounding.SOFTMAX, torch.float32, 1.0) == 5e-6
    assert tolerance_of(Rounding.SOFTMAX, torch.float32, 1000.0) == pytest.approx(1.2e-4, rel=0.01)
    assert tolerance_of(Rounding.MODEL, torch.float32, 1000.0) == 1e-5
    assert tolerance_of(Rounding.MODEL, torch.bfloat16, 1.0) == pytest.approx(4 / 128)
    assert tolerance_of(Rounding.FLOAT32, torch.bfloat16, 1.0) == 1e-5
