"""Pictures of attention."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from traceformer.figures.attention import atlas_figure, head_figure, tile
from traceformer.figures.style import save


@given(queries=st.integers(1, 50), keys=st.integers(1, 50), pixels=st.integers(1, 20), seed=st.integers(0, 9))
def test_a_tile_keeps_the_largest_value_and_scales_it_to_one(queries: int, keys: int, pixels: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).random((queries, keys), dtype=np.float32)
    image = tile(matrix, pixels=pixels)
    assert image.shape == (pixels, pixels)
    if pixels >= max(queries, keys) or pixels <= min(queries, keys):
        assert image.max() == 1
    assert image.min() >= 0


def test_a_tile_of_the_same_size_is_the_matrix_itself() -> None:
    matrix = np.array([[0.5, 0.25], [0.0, 0.125]], dtype=np.float32)
    assert np.array_equal(tile(matrix, pixels=2), matrix * 2)


def test_a_small_matrix_is_enlarged_without_new_values() -> None:
    matrix = np.array([[1.0, 0.25], [0.5, 0.0]], dtype=np.float32)
    assert np.array_equal(tile(matrix, pixels=4), np.kron(matrix, np.ones((2, 2), dtype=np.float32)))


def test_one_strong_cell_stays_visible_when_a_matrix_shrinks() -> None:
    matrix = np.zeros((1000, 1000), dtype=np.float32)
    matrix[501, 37] = 1
    assert np.argwhere(tile(matrix, pixels=10) > 0).tolist() == [[5, 0]]


@pytest.mark.parametrize("size", [5, 8, 31])
def test_what_no_query_sees_is_left_blank(size: int) -> None:
    causal = np.tril(np.ones((size, size), np.float32)) / np.arange(1, size + 1, dtype=np.float32)[:, None]
    image = tile(causal, pixels=8)
    edges = [(i * size / 8, (i + 1) * size / 8) for i in range(8)]
    spans = [range(int(low), max(int(np.ceil(high)), int(low) + 1)) for low, high in edges]
    unseen = [[keys[0] > queries[-1] for keys in spans] for queries in spans]
    assert np.array_equal(np.isnan(image), unseen)
    assert not np.isnan(tile(causal + causal.T, pixels=8)).any()


def test_a_large_head_is_drawn_from_as_many_cells_as_a_picture_has_pixels() -> None:
    causal = np.tril(np.random.default_rng(0).random((4000, 4000), dtype=np.float32))
    figure = head_figure(causal, ["a"] * 4000, ["a"] * 4000, title="")
    shown = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert shown.shape == (1536, 1536)
    starts = np.arange(1536) * 4000 // 1536
    whole = np.maximum.reduceat(np.maximum.reduceat(causal, starts, axis=0), starts, axis=1)
    assert np.array_equal(np.nan_to_num(shown), whole)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_head_is_saved_in_the_format_that_the_ending_names(tmp_path: Path, ending: str) -> None:
    tokens = ["$x$", "猫\n", "the"]
    figure = head_figure(np.eye(3, dtype=np.float32), tokens, tokens, title="L0H0")
    save(figure, tmp_path / f"new/head.{ending}")
    start = (tmp_path / f"new/head.{ending}").read_bytes()[:5]
    assert start == {"png": b"\x89PNG\r", "svg": b"<?xml", "pdf": b"%PDF-"}[ending]


def test_an_atlas_shows_every_head_in_its_row_and_column(tmp_path: Path) -> None:
    tiles = np.zeros((2, 3, 8, 8), dtype=np.float32)
    tiles[1, 2] = 1  # the brightest square lies at the lower right
    figure = atlas_figure(tiles, layers=(4, 7), heads=(0, 2, 9), title="all")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["L4", "L7"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["H0", "H2", "H9"]
    save(figure, tmp_path / "atlas")
    with Image.open(tmp_path / "atlas") as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    brightest = colormaps["magma"](1.0, bytes=True)[:3]
    rows, columns = np.argwhere((pixels == brightest).all(axis=-1)).mean(axis=0) / pixels.shape[:2]
    assert rows > 0.5
    assert columns > 0.6
