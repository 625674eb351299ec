"""Which families tests run over, decided here: a new row costs some seconds of slow tests, and none of the others.

`KEPT` are proved in every run of the tests, and tests that run over families run over them: one family of each kind of
block, and those that were there first. What holds of a row at once is asked of all of them, slowly.
"""

from collections.abc import Collection, Iterable
from typing import Any

from tests.marks import slow
from traceformer.models.families import FAMILIES
from traceformer.models.tiny import TINY

__all__ = ["ALL", "FAST", "KEPT", "MATRIX", "PREDICTING", "ROWS", "mostly_slow"]

FAST = (
    *("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2"),
    *("gpt_neox", "gpt_neox_parallel", "opt", "opt_post_norm", "mixtral", "gpt_oss", "nanochat"),
    *("bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert"),
    *("t5", "t5_gated", "mt5", "bart", "gptj", "bloom", "mpt", "byte_sparse"),
)
KEPT = (
    *FAST,
    "granite",
    "deepseek_v3_latent_queries",
    "stablelm_parallel",
    "glm4",
    "qwen3_moe",
    "gpt_neo",
    "falcon_new",
    "deberta-v2",
    "mbart",
    "xglm",
    "qwen3_next",
)
PREDICTING = tuple(
    name for family, row in FAMILIES.items() if row.readout is not None for name in row.tiny.builds(family)
)
"""All that predict next tokens with a norm and a matrix."""


def mostly_slow(families: Iterable[str], fast: Collection[str] = FAST) -> list[Any]:
    """Returns parameters of which those that are not fast run in the slow set only."""
    return [each if each in fast else slow(each) for each in families]


MATRIX = mostly_slow(KEPT)
ALL = mostly_slow(TINY)
ROWS = mostly_slow(FAMILIES)
