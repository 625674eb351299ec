"""The page of what is supported is in step with the proofs."""

import re
from collections.abc import Iterator

from tests.capture.proofs.proved import PAGE, column_of, proved, support_page
from tests.families import KEPT
from traceformer.models.families import FAMILIES


def _without_errors(page: str) -> str:
    return re.sub(r"\b(?:1e-?\d+|0)\b", "#", page)


def _errors(page: str) -> Iterator[float]:
    table = page.split("## Sites")[0]
    return (float(number) for number in re.findall(r"\b1e-?\d+\b", table))


def test_the_support_table_is_in_step_with_the_proofs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    # Rounding differs from machine to machine: the largest errors may, what they are errors of may not.
    assert _without_errors(page) == _without_errors(support_page()), "run: python -m tests.capture.proofs.proved"
    assert max(_errors(page)) <= 1e-5


def test_every_family_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [family for family in FAMILIES if not re.search(rf"\b{family}\b", page)] == []


def test_every_fact_has_a_column_in_the_support_table() -> None:
    assert {column_of(proof) for family in KEPT for proof in proved(family).proofs} >= {"MLP", "padded = alone"}
