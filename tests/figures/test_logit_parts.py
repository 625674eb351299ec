"""The picture of an attribution: bars add up, every head and MLP has its place, tokens are written."""

import numpy as np

from traceformer.analysis.attribution import Attribution, NamedToken
from traceformer.analysis.logit_split import Part
from traceformer.figures.logit_parts import attribution_figure
from traceformer.sites import Attention


def attribution(*, n_heads: int = 3, cross: bool = False, split: bool = False) -> Attribution:
    draw = np.random.default_rng(0)
    attentions: tuple[Attention, ...] = ("self", "cross") if cross else ("self",)
    parts = [Part("embed")]
    for layer in range(2):
        parts += [Part("head", layer, head, attention) for attention in attentions for head in range(n_heads)]
        parts.append(Part("mlp", layer))
    return Attribution(
        "ex$1",
        4,
        "\n",
        NamedToken(7, " a"),
        NamedToken(8, "$b"),
        False,
        tuple(parts),
        draw.normal(size=len(parts)),
        1.0,
        0.1,
        None,
        {Part("head", 1, 2, "self"): draw.normal(size=5)} if split else {},
        {"self": tuple("a$c\nd")} if split else {},
    )


def test_bars_are_the_largest_parts_and_one_of_all_others() -> None:
    value = attribution(n_heads=12)
    figure = attribution_figure(value)
    bars = figure.axes[0]
    sizes = [bar.get_width() for bar in bars.patches]  # pyright: ignore
    assert len(sizes) == 21
    assert np.abs(sizes[:20]).tolist() == sorted(np.abs(value.contributions), reverse=True)[:20]
    assert abs(sum(sizes) - value.contributions.sum()) < 1e-9
    assert bars.get_yticklabels()[-1].get_text() == "7 others"


def test_the_map_has_heads_of_both_attentions_and_mlps() -> None:
    value = attribution(cross=True)
    figure = attribution_figure(value, title="run")
    grid = np.asarray(figure.axes[1].images[0].get_array())
    assert grid.shape == (2, 7)
    np.testing.assert_array_equal(grid[:, :3], value.grid("self"))
    np.testing.assert_array_equal(grid[:, 3:6], value.grid("cross"))
    assert grid[1, 6] == value.contributions[-1]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == [
        *("H0", "H1", "H2", "×H0", "×H1", "×H2", "MLP")
    ]


def test_heads_that_were_split_are_rows_over_tokens() -> None:
    value = attribution(split=True)
    html = value._repr_html_()
    figure = attribution_figure(value)
    (lower,) = (axes for axes in figure.axes if axes.get_xlabel() == "by way of the source token")
    np.testing.assert_array_equal(np.asarray(lower.images[0].get_array())[0], value.sources[Part("head", 1, 2, "self")])
    assert [label.get_text() for label in lower.get_xticklabels()] == ["a", r"\$", "c", "↵", "d"]
    assert html.startswith('<img alt="Attribution(')
