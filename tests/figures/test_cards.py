"""What a notebook shows of nouns: the numbers are theirs, text is text, and it is light."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.analysis.test_head_metrics import BOTH
from tests.figures.test_lens_traits_paths import RESIDUAL, lens_of
from tests.store import runs
from tests.viewer.small_runs import HOSTILE, PATTERNS, Writing, pattern, write_run
from traceformer import presentation
from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured
from traceformer.analysis.projection import ProjectedRows, Projections, TextCurves
from traceformer.analysis.run_statistics import AttentionStatistics, LayerStatistics, RunStatistics
from traceformer.analysis.statistics import AttentionTally, ValueTally
from traceformer.analysis.visibility import Visibility
from traceformer.figures.cards.look import spread
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.memory import MemoryWriter
from traceformer.store.run import Run
from traceformer.units import amount_of_bytes

MOST = 60_000  # bytes
EVIL = "<b>bold</b>"


class Read(HTMLParser):
    """The tables of a card: rows of cells, each row with its style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, list[str]]] = []
        self.tags: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append((dict(attrs).get("style") or "", []))
        self.inside = tag in ("td", "th", "label", "input") and bool(self.rows)
        if tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][1][-1] += data


def light(shown: str) -> str:
    """Returns the card, once it is seen to be small, without a script, and to ask for nothing."""
    assert len(shown.encode()) <= MOST
    assert "<script" not in shown
    assert "http" not in shown
    assert "url(" not in shown
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', shown))
    return shown


def kept(layout: RunLayout, **meta: object) -> Run:
    """Returns a run in memory, of the numbers that tests of the store have."""
    with MemoryWriter(layout, {**runs.META, **meta}, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            writer.commit(shard, buffer, runs.fill(layout, shard, buffer))
        return writer.finish()


def pictures(shown: str) -> list[np.ndarray]:
    """Returns the opacities of the pixels of all pictures."""
    sources = re.findall(r"base64,([^\"]*)", shown)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGBA"))[..., 3] for one in sources]


def test_a_run_tells_its_arrays_with_their_sizes() -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=3)
    run = kept(layout)
    shown = light(run._repr_html_())
    rows = {cells[0]: cells[1:] for _, cells in Read(shown).rows}
    assert rows["dec.self.attn_pattern"][0] == "layer 2, head 3, query, key"
    assert rows["dec.self.k"][0] == "layer 2, kv_head 2, position, d_head 8"
    for array in layout.arrays:
        numbers = sum(runs.truth(layout, array, example).size for example in range(3))
        assert rows[str(array.key)][1] == amount_of_bytes(2 * numbers)  # float16
    assert run.lengths().tolist() == [runs.lengths(layout, example)["dec"] for example in range(3)]
    assert "3 examples" in shown


def test_a_run_shows_its_heads_in_small(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "run", [list("abcde")]))
    [sheet] = pictures(light(run._repr_html_()))
    assert sheet.shape == (2 * 7, 2 * 7)  # five tokens and a gap
    for row, layer in enumerate(PATTERNS.layers):
        for column, head in enumerate(PATTERNS.heads):
            tile = sheet[7 * row :, 7 * column :][:5, :5] / 255
            # 14 steps of opacity from 0.1 on, for the square roots of the weights.
            np.testing.assert_allclose((tile - 0.1) / 0.9, np.sqrt(pattern(0, layer, head, 5)), atol=0.08)
    assert (sheet[5:7] == 0).all()
    assert [cells[0] for _, cells in Read(run._repr_html_()).rows[-2:]] == ["L1", "L3"]


@pytest.mark.parametrize("arch", ["enc", "encdec"])
def test_a_run_of_every_kind_has_its_card(arch: str) -> None:
    shown = light(kept(runs.plan(arch, n_examples=2))._repr_html_())
    assert len(pictures(shown)) == {"enc": 1, "encdec": 3}[arch]
    assert ("encoder 6 layers" in shown) == (arch == "encdec")


def test_a_run_without_attention_without_tokens_or_unfinished_has_its_card(tmp_path: Path) -> None:
    shown = light(kept(runs.plan(arrays=[runs.spec("dec.embed")], n_examples=2))._repr_html_())
    assert "No attention patterns are recorded." in shown
    assert not pictures(shown)
    assert "unfinished" in light(Run(runs.begin(tmp_path / "one", 1))._repr_html_())
    assert "0 examples" in light(Run(runs.begin(tmp_path / "none", 0))._repr_html_())


def test_of_many_heads_some_are_shown_and_the_card_says_so() -> None:
    array = ArraySpec(ArrayKey.parse("dec.self.attn_pattern"), tuple(range(32)), tuple(range(32)))
    layout = RunLayout.plan(arch="dec", arrays=[array], n_examples=1, longest={"dec": 64}, shard_examples=1)
    shown = light(kept(layout)._repr_html_())
    assert re.search(r"shown are \d+ of 32 layers, \d+ of 32 heads", shown)
    assert "L31" in shown
    assert spread(32, 3) == [0, 16, 31]


def test_a_table_of_heads_knows_its_order_by_every_metric() -> None:
    shown = light(BOTH._repr_html_())
    rows = Read(shown).rows
    assert rows[0][1] == ["head", "entropy", "sparsity (< 0.01)"]  # a distance that no head has is left out
    assert [cells[0] for _, cells in rows[1:]] == list(BOTH.names)
    order = sorted(range(len(BOTH.rows)), key=lambda row: int(re.findall(r"--0:(\d+)", rows[1 + row][0])[0]))
    assert BOTH.values["entropy"][order].tolist() == sorted(BOTH.values["entropy"], reverse=True)
    assert shown.count("order:var(--0,9999)") == 1


def heads_of(n_layers: int, n_heads: int) -> HeadMetrics:
    draw = np.random.default_rng(0)
    rows = tuple(HeadName("dec.self", layer, head) for layer in range(n_layers) for head in range(n_heads))
    names = (
        "entropy",
        "sparsity_0.0001",
        "distance",
        "induction",
        "self",
        "previous_token",
        "first_token",
        "retrieval",
    )
    values = {name: draw.random(len(rows)) for name in names}
    values["induction"][::2] = np.nan
    return HeadMetrics(rows, values, Measured("run", EVIL, "exact", 8))


def test_of_a_large_table_the_largest_heads_of_every_metric_are_shown() -> None:
    metrics = heads_of(25, 24)
    shown = light(metrics._repr_html_())
    assert "<b>bold" not in shown
    names = [cells[0] for _, cells in Read(shown).rows[1:]]
    assert f"the {len(names)} of 600 heads" in shown
    for column in metrics.values.values():
        assert {metrics.names[row] for row in np.argsort(-column)[:5]} <= set(names)
    assert "--3:" not in Read(shown).rows[1 + names.index(next(name for name in names if name.endswith("H0")))][0]


def test_a_lens_has_the_likeliest_token_of_every_layer_framed_where_it_came() -> None:
    value = replace(lens_of(3), tokens=("a", EVIL, " "))
    shown = light(value._repr_html_())
    assert [cells for _, cells in Read(shown).rows] == [
        ["L5", "a", "a", "a"],
        ["L0", "$", "$", "$"],
        ["0–2", "a", "<b>bold<…", "·"],
    ]
    assert shown.count("class=came") == 3
    assert "<b>bold" not in shown
    long = light(lens_of(2000)._repr_html_())
    assert "the first 600 of 2000 positions" in long


def statistics_of(name: str) -> RunStatistics:
    tally = AttentionTally(2, CONVENTIONS["exact"], Visibility(causal=True))
    tally.add(np.stack([np.eye(3), np.tri(3) / np.arange(1, 4)[:, None]]).astype(np.float32))
    own = AttentionStatistics(ArrayKey.parse("dec.self.attn_pattern"), (5,), (0, 3), (tally.result(),))
    numbers = ValueTally(CONVENTIONS["exact"])
    numbers.add(np.array([[1.0, 2.0], [3.0, 6.0]], np.float32))
    layers = LayerStatistics(RESIDUAL, (4,), (numbers.result(),))
    return RunStatistics(name, "exact", ("a",), (own,), (layers,), ())


def test_statistics_have_the_entropy_of_every_head_and_the_numbers_of_every_layer() -> None:
    shown = light(statistics_of(EVIL)._repr_html_())
    rows = [cells for _, cells in Read(shown).rows]
    assert rows[:2] == [["", "H0", "H3"], ["L5", "0", f"{(np.log(2) + np.log(3)) / 3:.3g}"]]
    assert rows[3] == ["dec.resid_post", "L4", "4", "3", f"{np.std([1, 2, 3, 6]):.3g}", "1", "6", "0"]
    assert "<b>bold" not in shown


def curves_of(*numbers: float, tokens: list[str] | None = None) -> TextCurves:
    rows = ProjectedRows(np.array(numbers, np.float32)[:, None], np.ones(len(numbers), np.float32))
    return TextCurves("ex0", tokens or ["a"] * len(numbers), 1, ("joy",), {4: rows})


def projections_of(*examples: TextCurves) -> Projections:
    vector = {"name": "joy", "thresholds": {4: 1.0}}
    return Projections("traces/run", RESIDUAL, "dec.resid_post", ("joy",), (4,), examples, (vector,))


def test_projections_are_a_curve_with_gaps_and_colours_on_the_text() -> None:
    value = projections_of(curves_of(0, 4, np.nan, 2, -4, tokens=["a", EVIL, "b", "\n", "d"]))
    shown = light(value._repr_html_())
    lines = [[tuple(map(float, point.split(","))) for point in line.split()] for line in
             re.findall(r'points="([^"]*)', shown)]  # fmt: skip
    assert [len(line) for line in lines] == [2, 2]
    heights = [y for line in lines for _, y in line]
    # From 4 at the top to -4 at the bottom, in proportion.
    top, bottom = heights[1], heights[3]
    np.testing.assert_allclose([(y - top) / (bottom - top) * 8 for y in heights], [4, 0, 2, 8], atol=0.02)
    across = np.array([x for line in lines for x, _ in line])
    np.testing.assert_allclose(np.diff(across) / (across[-1] - across[0]), [0.25, 0.5, 0.25], atol=0.001)
    assert "<b>bold" not in shown
    colours = re.findall(r"background:(rgba\([^)]*\)|transparent)\"", shown.partition("<div class=text>")[2])
    assert [colour.startswith("rgba(214") for colour in colours] == [False, True, False, True, False]
    assert colours[2] == "transparent"


def test_long_and_many_projections_stay_light() -> None:
    random = np.random.default_rng(0).normal(size=20_000)
    shown = light(projections_of(*[curves_of(*random) for _ in range(20)])._repr_html_())
    assert "6 of 20 curves" in shown
    assert "its first 400 of 20000 tokens" in shown
    light(projections_of()._repr_html_())


def test_text_from_anywhere_is_text(tmp_path: Path) -> None:
    run = Run(Writing(tmp_path / "run", [["a"]], ids=[HOSTILE[0]], model=HOSTILE[1], dataset=HOSTILE[9]).finish())
    shown = light(run._repr_html_())
    assert set(Read(shown).tags) <= {
        "div",
        "style",
        "p",
        "b",
        "span",
        "table",
        "thead",
        "tbody",
        "tr",
        "td",
        "th",
        "img",
        "code",
    }
    assert "&lt;img src=x" in shown


def test_a_card_that_cannot_be_made_is_a_line_and_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presentation._HOMES, ("HeadMetrics", "html"), ("tests.figures.test_cards", "failing"))
    shown = heads_of(1, 1)._repr_html_()
    assert shown.startswith("<pre>HeadMetrics(&lt;b&gt;")
    assert shown.endswith("\nOSError: gone &lt;i&gt;</pre>")


def failing(_: object) -> str:
    raise OSError("gone <i>")


@pytest.mark.slow
def test_the_cards_of_the_demo_are_light(byte: Any) -> None:
    import traceformer as tf

    with pytest.warns(UserWarning, match="cut to 512 tokens"):
        run = tf.record(byte, "demo", "attn qkv hidden resid logits")
    direction = tf.fit_direction(["raise an error", "it raises"], ["return it", "a list"], model=byte)
    shown: list[Any] = [run, tf.heads(run), tf.statistics(run), tf.project(run, direction)]
    shown += [tf.lens(run, example) for example in range(run.n)]
    for value in shown:
        assert "tf-card" in light(value._repr_html_())
        print(type(value).__name__, len(value._repr_html_().encode()))
