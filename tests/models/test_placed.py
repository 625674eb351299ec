"""A model that is spread over devices, memory and disk is recorded as if it were in one place."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch

import traceformer as tf
from traceformer.errors import Unsupported, UsageError
from traceformer.models.loaded import LoadedModel, weights_digest
from traceformer.models.placed import Weights, devices_of, elsewhere, input_device
from traceformer.models.tiny import tiny_model

Folder = Callable[..., Path]
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [7, 8], [12, 13, 14, 15, 16]]
SECOND_LAYER = {
    **{"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "cpu"},
    **{"transformer.h.1": "disk", "transformer.h.2": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"},
}
ALL = {"": "disk"}


@pytest.fixture(params=["second layer", "all"])
def on_disk(request: Any, tiny_folder: Folder, tmp_path: Path) -> LoadedModel:
    """A model a part of which, or all, is on disk until it is used."""
    device_map = SECOND_LAYER if request.param == "second layer" else ALL
    return tf.load_model(tiny_folder("gpt2"), device_map=device_map, offload_folder=tmp_path / "offloaded")


def whole(tiny_folder: Folder) -> LoadedModel:
    return tf.load_model(tiny_folder("gpt2"), device="cpu")


def numbers_of(run: tf.Run) -> Mapping[tuple[str, int], np.ndarray]:
    return {
        (str(spec.key), row): run.get(row, str(spec.key)) for spec in run.layout.arrays for row in range(len(run.ids))
    }


def assert_equal_runs(found: tf.Run, expected: tf.Run) -> None:
    numbers = numbers_of(expected)
    assert numbers_of(found).keys() == numbers.keys()
    for place, values in numbers_of(found).items():
        np.testing.assert_array_equal(values, numbers[place], err_msg=str(place))


def test_a_model_on_disk_is_recorded_as_if_it_were_in_memory(on_disk: LoadedModel, tiny_folder: Folder) -> None:
    expected = whole(tiny_folder)
    assert on_disk.digest == expected.digest
    assert elsewhere(on_disk.model)
    assert input_device(on_disk.model) == torch.device("cpu")
    capture = "attn qkv hidden resid mlp logits"
    assert_equal_runs(tf.record(on_disk, TEXTS, capture), tf.record(expected, TEXTS, capture))
    assert repr(on_disk).endswith("on cpu and kept elsewhere until used)")
    assert elsewhere(on_disk.model)  # as it was


def test_its_answers_and_what_is_asked_of_its_weights_are_the_same(on_disk: LoadedModel, tiny_folder: Folder) -> None:
    expected = whole(tiny_folder)
    answers = [tf.generate(model, "a name", "attn resid", max_tokens=4, temperature=0) for model in (on_disk, expected)]
    assert_equal_runs(*answers)
    likeliest = [tf.record(model, TEXTS, "resid", lens_top_k=3) for model in (on_disk, expected)]
    assert_equal_runs(*likeliest)
    frames = [tf.lens(tf.record(model, TEXTS, "resid"), 0, model=model).to_frame() for model in (on_disk, expected)]
    assert frames[0].equals(frames[1])


def test_edits_work_layer_by_layer(on_disk: LoadedModel, tiny_folder: Folder) -> None:
    runs = []
    for model in (on_disk, whole(tiny_folder)):
        with tf.edit(model, tf.edits.zero("z", layer=1, head=2)):
            runs.append(tf.record(model, TEXTS, "z logits"))
    assert_equal_runs(*runs)
    assert not runs[0].get(0, "z", 1)[2].any()


@pytest.mark.slow
def test_every_fact_is_proved_of_it(on_disk: LoadedModel) -> None:
    assert tf.check(on_disk).ok


def test_a_held_model_that_accelerate_keeps_in_memory_is_recorded() -> None:
    model, expected = tiny_model("llama"), tiny_model("llama")
    digest = weights_digest(model)
    offloaded = tf.load_model(accelerate.cpu_offload(model, torch.device("cpu")))
    assert offloaded.digest == digest
    runs = [tf.record(model, TEXTS, "attn resid") for model in (offloaded, tf.load_model(expected))]
    assert_equal_runs(*runs)


def test_weights_are_read_one_by_one_wherever_they_are() -> None:
    model, expected = tiny_model("gpt2"), dict(tiny_model("gpt2").state_dict())
    accelerate.cpu_offload(model, torch.device("cpu"))
    weights = Weights(model)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor)
    assert devices_of(tiny_model("gpt2")) == [torch.device("cpu")]


def test_slopes_of_a_model_that_is_partly_elsewhere_are_refused(on_disk: LoadedModel) -> None:
    with pytest.raises(Unsupported, match="partly kept elsewhere"):
        tf.patch(on_disk, [5, 6, 7, 8], [5, 6, 9, 8], answer=7, wrong=9, estimate=True)


def test_on_a_machine_without_a_gpu_auto_is_the_processor(tiny_folder: Folder) -> None:
    if torch.cuda.is_available():
        return
    model = tf.load_model(tiny_folder("gpt2"), device_map="auto")
    assert devices_of(model.model) == [torch.device("cpu")]
    assert not elsewhere(model.model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device_map": "everywhere"}, "everywhere"),
        ({"device_map": "auto", "device": "cpu"}, "`device` and `device_map`"),
        ({"device_map": "auto", "adapter": "somebody/lora"}, "`adapter` and `device_map`"),
        ({"device_map": {}}, "no module has a place"),
        ({"device_map": {"": "cuda:99"}}, 'no device \'cuda:99\' here; "cpu", "disk", or'),
        ({"offload_folder": "x"}, "`offload_folder` without `device_map`"),
    ],
)
def test_what_a_map_cannot_be_given_with_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tf.load_model("byte", **given)


def test_the_files_of_a_checkpoint_are_where_it_is_kept(tiny_folder: Folder) -> None:
    model = tf.load_model(tiny_folder("gpt2"), device_map=ALL)
    assert elsewhere(model.model)
    assert model.digest == whole(tiny_folder).digest
