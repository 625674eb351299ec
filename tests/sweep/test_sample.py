"""A sample of the sweep: no family of it may come to less than the last sweep of all of them found.

Twelve are tried briefly each time, the others wholly where tests are slow.
"""

from pathlib import Path

import pytest
import transformers

from tests.sweep.outcomes import OUTCOMES, WRONG, Result
from tests.sweep.page import PAGE, Kept, families_page, last_sweep
from tests.sweep.trial import try_family
from traceformer.models.shrunk import text_types

FAST = (
    *("arcee", "qwen3_moe", "camembert", "falcon", "mbart", "biogpt"),  # experts, an encoder, both, own attention
    *("gemma4_text", "gemma3", "mamba"),  # layers that differ, several models in one, no attention
    *("deepseek_v4", "canine"),  # refused, each by another mechanism
)
SLOW = (
    *(
        "gpt2",
        "glm4",
        "cohere",
        "cwm",
        "ernie4_5",
        "exaone4",
        "gemma2",
        "glm",
        "gpt_neox",
        "helium",
        "nemotron",
        "olmo3",
    ),
    *("phi", "phi3", "qwen2_vl_text", "qwen3", "smollm3", "stablelm", "starcoder2", "vaultgemma", "seed_oss"),
    *("dots1", "glm4_moe", "gpt_oss", "mixtral", "olmoe", "phimoe", "deepseek_v3", "glm4_moe_lite", "minimax_m2"),
    *("bloom", "codegen", "gpt_neo", "gptj", "mpt", "xglm", "gpt_bigcode", "opt"),
    *("bert", "deberta-v2", "electra", "eurobert", "mpnet", "modernbert", "nomic_bert", "data2vec-text", "xmod"),
    *("bart", "blenderbot", "m2m_100", "marian", "pegasus", "t5", "umt5", "bigbird_pegasus", "led"),
    *("qwen3_next", "jamba", "deepseek_v4", "llava", "falcon_mamba", "albert", "glm_moe_dsa"),
)
RANKS = ("TRACEBACK", "WRONG NUMBERS", "CANNOT BUILD", "REFUSED", "PARTLY", "PROVED")


def no_worse(now: Result, then: Kept) -> list[str]:
    """Returns what a family has lost since, in words."""
    lost: list[str] = []
    if RANKS.index(now.outcome) < RANKS.index(then.outcome):
        lost.append(f"it is {now.outcome}, and was {then.outcome}: {now.why}")
    if now.facts < then.facts:
        lost.append(f"{now.facts} facts hold, and {then.facts} did")
    if then.generated and not now.generated:
        lost.append("it does not generate any more")
    refused_before = {site for sites in then.left_out.values() for site in sites}
    refused = {site for sites in Kept.of(now).left_out.values() for site in sites}
    if then.row and refused - refused_before:
        lost.append(f"{' '.join(sorted(refused - refused_before))} are no longer recorded")
    return lost


@pytest.mark.parametrize("family", FAST)
def test_a_family_is_recorded_as_it_was(family: str, tmp_path: Path) -> None:
    then, now = last_sweep().families[family], try_family(family, tmp_path / f"tiny-{family}", briefly=True)
    assert (now.outcome, now.row) == (then.outcome, then.row)


@pytest.mark.slow
@pytest.mark.parametrize("family", SLOW)
def test_a_family_comes_to_no_less_than_it_did(family: str, tmp_path: Path) -> None:
    then = last_sweep().families[family]
    assert then.outcome not in WRONG
    assert no_worse(try_family(family, tmp_path / f"tiny-{family}"), then) == []


def test_what_a_family_has_lost_is_told() -> None:
    then = Kept(family="x", outcome="PROVED", row="own", facts=50, left_out={"no": ["q"]}, generated=True)
    now = Result(family="x", outcome="PARTLY", row="own", facts=49, recorded=("dec.k",), refused={"q": "", "z": ""})
    assert no_worse(now, then) == [
        "it is PARTLY, and was PROVED: ",
        "49 facts hold, and 50 did",
        "it does not generate any more",
        "z are no longer recorded",
    ]


def test_the_page_of_families_is_what_the_last_sweep_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == families_page()


def test_the_last_sweep_tried_every_text_model_type_and_nothing_in_it_is_wrong() -> None:
    families = last_sweep().families
    if last_sweep().transformers == transformers.__version__:
        assert set(families) == set(text_types())
    assert {each.outcome for each in families.values()} <= set(OUTCOMES)
    assert [each.family for each in families.values() if each.outcome in WRONG] == []
    assert sum(each.outcome == "PROVED" for each in families.values()) >= 150
