"""Sweeps that are estimated, beside sweeps that are measured."""

import pytest
import torch
from torch import nn

from traceformer.capture.edits.estimating import estimated
from traceformer.capture.edits.metrics import Goal, metric_named
from traceformer.capture.edits.slopes import Read, values_at
from traceformer.capture.edits.started import Passes
from traceformer.capture.edits.sweeping import Sweeper, Values, grid_of
from traceformer.errors import UsageError
from traceformer.models.load import load_model
from traceformer.models.tiny import tiny_model
from traceformer.sites import ArrayKey

OWN = torch.tensor([[5, 6, 7, 8, 9, 6, 7], [9, 9, 4, 8, 3, 6, 7]])
OTHER = torch.tensor([[5, 6, 11, 8, 9, 6, 7], [9, 9, 12, 8, 3, 6, 7]])
GOAL = Goal(answer=torch.tensor([3, 5]), wrong=torch.tensor([4, 7]))


def swept(site: str, over: tuple[str, ...], *, gentle: float = 1.0, linear: bool = False, steps: int = 1):
    """The same sweep estimated and measured; `gentle` shortens the way to the other text's values."""
    model = tiny_model("gpt2").double()
    if linear:
        model.transformer.ln_f = nn.Identity()
    passes, metric = Passes(load_model(model)), metric_named("logit_difference")
    key = ArrayKey("dec", "self" if site in ("z", "attn_pattern") else None, site)
    places = [(key, layer) for layer in range(passes.n_layers)]
    mine, _ = values_at(Read(passes, OWN, -1), places)
    theirs, _ = values_at(Read(passes, OTHER, -1), places)
    values = Values((key,), {place: mine[place] + gentle * (theirs[place] - mine[place]) for place in places})
    chosen = {
        "layer": range(passes.n_layers),
        "head": range(4),
        "position": range(7),
        "query": range(7),
        "key": range(7),
    }
    narrowed = {"layer": tuple(range(passes.n_layers))}
    grid = grid_of(over, {name: chosen[name] for name in over}, narrowed, range(7), causal=True)
    found = estimated(passes, OWN, grid, values, metric, GOAL, steps=steps)
    with passes.evaluating():
        measured = Sweeper(passes, metric, 8).sweep(OWN, grid, values, GOAL)
    return found, measured


@pytest.mark.parametrize(
    ("site", "over"), [("resid_post", ("layer", "position")), ("z", ("layer", "head")), ("z", ("head", "position"))]
)
def test_an_estimate_of_a_small_change_is_what_a_sweep_measures(site: str, over: tuple[str, ...]) -> None:
    if "layer" not in over:
        with pytest.raises(UsageError, match="several layers"):
            swept(site, over)
        return
    small = 1e-4
    found, measured = swept(site, over, gentle=small)
    assert torch.allclose(found.untouched, measured.untouched)
    error = (found.metric - measured.metric).abs().max()
    change = (measured.metric - measured.untouched.reshape(-1, 1, 1)).abs().max()
    assert found.metric.shape == measured.metric.shape
    assert 0 < error < 10 * small * change  # of second order


def test_an_estimate_is_what_a_sweep_measures_where_the_metric_is_linear() -> None:
    found, measured = swept("resid_post", ("layer", "position"), linear=True)
    last = found.metric[:, -1] - measured.metric[:, -1]
    assert last.abs().max() < 1e-10
    assert (found.metric - measured.metric).abs().max() > 1e-3


@pytest.mark.slow
def test_edges_of_attention_are_estimated_where_there_are_any() -> None:
    found, measured = swept("attn_pattern", ("layer", "head", "query", "key"), gentle=1e-2)
    assert (found.metric.isnan() == measured.metric.isnan()).all()
    there = ~found.metric.isnan()
    changes = [(each.metric - each.untouched.reshape(-1, 1, 1, 1, 1))[there] for each in (found, measured)]
    assert (changes[0] - changes[1]).abs().max() < 0.02 * changes[1].abs().max()


def test_what_was_made_in_inference_mode_is_estimated_from() -> None:
    passes, metric = Passes(load_model(tiny_model("gpt2"))), metric_named("logit_difference")
    key = ArrayKey("dec", None, "resid_pre")
    with passes.evaluating():
        ids, goal = OWN.clone(), GOAL.rows(torch.arange(2))
        values = Values((key,), values_at(Read(passes, OTHER.clone(), -1), [(key, 1)])[0])
        grid = grid_of(("position",), {"position": range(7)}, {"layer": (1,)}, range(7), causal=True)
        found = estimated(passes, ids, grid, values, metric, goal)
    assert found.metric.isfinite().all()
    assert found.metric.shape == (2, 7)
