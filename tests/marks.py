"""Parameters of tests that only the slow set has: of a matrix, the fast set runs one of each kind."""

from typing import Any

import pytest

__all__ = ["slow"]


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)
