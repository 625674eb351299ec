"""A run in memory that several questions are asked of."""

import pytest

from traceformer.models.loaded import LoadedModel
from traceformer.store.run import Run


@pytest.fixture(scope="module")
def run(byte: LoadedModel) -> Run:
    """Two texts that it read, in memory: residual stream, patterns, queries, keys, values and logits."""
    from traceformer.capture.extract import record

    texts = ["return the name of the na", "if it is not, raise"]
    return record(byte, texts, "attn qkv resid logits", dtype="float32")
