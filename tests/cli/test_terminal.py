"""Patterns, text and tables as a terminal shows them: they fit, and hold no control character."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from traceformer.cli.matrix import SHADES, draw_matrix
from traceformer.cli.terminal import table
from traceformer.texts.shown import printable

TOKENS = ["[CLS]", "the", "sat"]
PATTERN = np.array([[0.8, 0.1, 0.1], [0.05, 0.55, 0.4], [0.25, 0.0, 0.75]], dtype=np.float32)


def test_a_known_pattern_is_drawn_exactly() -> None:
    # Largest value 0.8: shades begin at 0.05, 0.1, 0.2 and 0.4.
    assert draw_matrix(PATTERN, TOKENS, TOKENS, width=80).split("\n") == [
        "         0",
        "0 [CLS]  ██▒▒▒▒ → [CLS] 0.80",
        "1 the    ░░████ → the 0.55",
        "2 sat    ▓▓  ██ → sat 0.75",
        "",
        "         █ ≥ 0.4   ▓ ≥ 0.2   ▒ ≥ 0.1   ░ ≥ 0.05",
    ]


def test_a_matrix_that_does_not_fit_in_double_cells_has_single_ones() -> None:
    pattern = np.eye(30, dtype=np.float32)
    lines = draw_matrix(pattern, ["a"] * 30, ["a"] * 30, width=60).split("\n")
    assert lines[0] == "      0         10        20"
    assert lines[8] == " 7 a  " + " " * 7 + "█" + " " * 22 + " → a 1.00"


def test_a_matrix_that_does_not_fit_is_drawn_in_blocks_of_the_largest_value_and_says_so() -> None:
    pattern = np.zeros((50, 50), dtype=np.float32)
    pattern[17, 3] = 1
    lines = draw_matrix(pattern, ["a"] * 50, ["b"] * 50, width=40).split("\n")
    assert lines[-1].strip() == "each cell is the largest of 2 x 2 values: 50 keys are too wide"
    drawn = [line for line in lines[1:-3] if "█" in line]
    assert drawn == ["16 a   █" + " " * 23 + " → b 1.00"]


def test_scores_with_negative_values_are_shaded_in_equal_steps() -> None:
    scores = np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]], dtype=np.float32)
    lines = draw_matrix(scores, ["q"], list("abcde"), width=80).split("\n")
    assert lines[1] == "0 q    ░░▒▒▓▓██ → e 2.00"
    assert lines[-1].strip() == "█ ≥ 1.2   ▓ ≥ 0.4   ▒ ≥ -0.4   ░ ≥ -1.2"


def test_a_pattern_of_nothing_is_blank() -> None:
    lines = draw_matrix(np.zeros((2, 2), dtype=np.float32), ["a", "b"], ["a", "b"], width=80).split("\n")
    assert lines[1] == "0 a       → a 0.00"


@given(
    queries=st.integers(1, 40),
    keys=st.integers(1, 90),
    width=st.integers(60, 140),
    token=st.text(min_size=1, max_size=30),
)
def test_no_line_is_wider_than_the_terminal(queries: int, keys: int, width: int, token: str) -> None:
    pattern = np.random.default_rng(0).random((queries, keys), dtype=np.float32)
    lines = draw_matrix(pattern, [token] * queries, [token] * keys, width=width).split("\n")
    assert max(map(cell_len, lines[:-1])) <= width


@given(st.text())
def test_printable_text_holds_no_control_character_and_no_line_break(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"), [("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"), ("Ġthe", "Ġthe"), ("猫", "猫")]
)
def test_printable_text_keeps_letters_and_escapes_the_rest(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_table_aligns_words_left_and_numbers_right_by_their_width_on_screen() -> None:
    assert table(("name", "n"), [("猫", "10"), ("abcdef", "5")], numeric=(1,)).split("\n") == [
        "name     n",
        "猫      10",
        "abcdef   5",
    ]


def test_there_is_one_shade_for_nothing_and_four_for_something() -> None:
    assert SHADES[0] == " "
    assert len(set(SHADES)) == 5
