"""What a run lacks is said in words."""

from pathlib import Path
from typing import Any

import pytest

from tests.viewer.small_runs import DIMS
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter
from traceformer.viewer.notices import notices_of

ALL, HEADS = (0, 1, 2, 3), (0, 1)


def pattern(layers: tuple[int, ...] = ALL, heads: tuple[int, ...] = HEADS, of: str = "dec.self") -> ArraySpec:
    return ArraySpec(ArrayKey.parse(f"{of}.attn_pattern"), layers, heads)


def rows(site: str, layers: tuple[int, ...] = ALL) -> ArraySpec:
    return ArraySpec(ArrayKey.parse(f"dec.{site}"), layers, width=8)


def begun(folder: Path, *arrays: ArraySpec, arch: Any = "dec", attn_codec: Any = "exact", **meta: Any) -> Run:
    layout = RunLayout.plan(arch=arch, arrays=arrays, n_examples=5, longest={"enc": 3, "dec": 3}, attn_codec=attn_codec)
    told = {"model": "tiny", "arch": arch, "dims": {"enc": DIMS, "dec": DIMS}, **meta}
    RunWriter.create(folder, layout, told, digest={}).close()
    return Run(folder.with_name(f"_tmp_{folder.name}"))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ([pattern(), rows("resid_post")], []),
        ([pattern((0, 2))], ["layers 0, 2 of 4 only"]),
        ([pattern((2,)), rows("resid_post", (2,))], ["layer 2 of 4 only"]),
        ([rows("resid_post"), pattern((0, 2))], ["attention of layers 0, 2 of 4 only"]),
        ([pattern((0, 2), (1,)), rows("resid_post", (3,))], [
            "attention of layers 0, 2 of 4 only",
            "head 1 of 2 only",
            "res_post_mlp of layer 3 of 4 only",
        ]),
        ([rows("hidden", (0, 4))], ["no attention was recorded, which capture=attn does", "entries 0, 4 of 5 only"]),
    ],
)  # fmt: skip
def test_layers_and_heads_that_are_left_out_are_named(tmp_path: Path, arrays: list[ArraySpec], said: list[str]) -> None:
    assert notices_of(begun(tmp_path / "mine", *arrays)) == ["being written: 0 of 5 examples so far", *said]


def test_attentions_of_two_stacks_are_told_apart(tmp_path: Path) -> None:
    arrays = [pattern(), pattern(of="enc.self"), pattern((1,), of="dec.cross")]
    [_, said] = notices_of(begun(tmp_path / "mine", *arrays, arch="encdec"))
    assert said == "cross-attention of layer 1 of 4 only"


def test_weights_that_are_rounded_and_models_that_were_edited_are_told(tmp_path: Path) -> None:
    edits = [{"kind": "zero", "site": "dec.self.z", "layer": 2, "heads": [1]}]
    said = notices_of(begun(tmp_path / "mine", pattern(), attn_codec="sqrt8", edits=edits))
    assert said[1:] == [
        "attention weights are stored in a byte each, off by up to 0.004",
        "recorded while the model was edited: zero dec.self.z layer=2 heads=[1]",
    ]
