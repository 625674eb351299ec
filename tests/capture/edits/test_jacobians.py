"""Mean Jacobians against all derivatives of the model's own blocks, taken one by one by torch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.capture.edits.test_slopes import read
from tests.families import mostly_slow
from traceformer.capture.edits.jacobians import jacobians
from traceformer.models.families import architecture_of
from traceformer.models.part import text_part

IDS = [5, 6, 7, 8, 9, 6, 7]
FAMILIES = mostly_slow(["gpt2", "llama", "gpt_neox_parallel", "opt", "phi3", "gemma"], ("gpt2", "llama"))
LAST = 2  # of three layers


def blocks_of(model: Any) -> Any:
    return text_part(model).get_submodule(architecture_of(model.config).stacks["dec"].blocks)


def every_derivative(model: Any, layer: int, ids: list[int]) -> Tensor:
    """What the last block leaves by what block `layer` leaves: (position, d, position, d), by hooks of torch's own."""
    blocks, seen = blocks_of(model), {}

    def whole(output: Any) -> Tensor:
        return output[0] if isinstance(output, tuple) else output

    def kept(_: Any, __: Any, output: Any) -> None:
        seen["last"] = whole(output)

    def own(_: Any, __: Any, output: Any) -> None:
        seen["own"] = whole(output).detach()

    hooks = [blocks[layer].register_forward_hook(own), blocks[LAST].register_forward_hook(kept)]
    model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()

    def following(rows: Tensor) -> Tensor:
        def put(_: Any, __: Any, output: Any) -> Any:
            return (rows[None], *output[1:]) if isinstance(output, tuple) else rows[None]

        hooks = [blocks[layer].register_forward_hook(put), blocks[LAST].register_forward_hook(kept)]
        model(torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return seen["last"][0]

    found = torch.autograd.functional.jacobian(following, seen["own"][0], vectorize=True)
    assert isinstance(found, Tensor)
    return found


def mean_of(every: Tensor, counted: range) -> Tensor:
    """The sum over later positions, and the mean over earlier ones."""
    return torch.stack([torch.stack([every[later, :, at] for later in counted]).sum(0) for at in counted]).mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_sums_over_later_positions_and_means_over_earlier_ones(family: str) -> None:
    text = read(family, IDS)
    model: Any = text.passes._model  # pyright: ignore[reportPrivateUsage]
    found = jacobians(text, [0, 1], LAST, skip=2, at_once=5)
    counted = range(2, len(IDS) - 1)
    for layer in (0, 1):
        expected = mean_of(every_derivative(model, layer, IDS), counted)
        torch.testing.assert_close(found[layer].double(), expected, rtol=1e-5, atol=1e-6)
    assert (found[0] - torch.eye(found.shape[1])).abs().max() > 0.01  # so that there is something to be wrong


def test_how_many_rows_are_made_at_once_makes_no_difference() -> None:
    text = read("gpt2", IDS)
    told: list[tuple[int, int]] = []
    one = jacobians(text, [1], LAST, skip=0, at_once=1)
    many = jacobians(text, [1], LAST, skip=0, at_once=1000, told=lambda done, of: told.append((done, of)))
    torch.testing.assert_close(one, many)
    assert told == [(one.shape[1], one.shape[1])]


def test_the_models_weights_take_no_part() -> None:
    text = read("gpt2", IDS)
    model: Any = text.passes._model  # pyright: ignore[reportPrivateUsage]
    jacobians(text, [0], LAST, skip=0, at_once=8)
    assert all(weight.grad is None for weight in model.parameters())
