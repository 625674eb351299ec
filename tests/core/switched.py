"""The compiled core, switched for a while."""

import os
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from tests.conftest import SKIPS
from traceformer.core.library import SWITCH, variants

VARIANTS = variants() or ("none",)

needs_core = pytest.mark.skipif(not variants(), reason=SKIPS["core"])


@contextmanager
def switched(to: str) -> Generator[None]:
    """While it lasts the core is this variant of it, or off."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = to
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before
