"""Probes whose numbers are known."""

from collections.abc import Sequence

import numpy as np

from traceformer.analysis.probes import Fitted, Probe, Probes, Scores

__all__ = ["probes_of"]


def probes_of(
    *, layers: Sequence[int | None] = (0, 1), heads: Sequence[int | None] = (None,), of: str = "token"
) -> Probes:
    """Returns probes of rows of width 3, each better by 0.1 than the one before."""
    random, token = np.random.default_rng(0), of == "token"
    probes: list[Probe] = []
    for number, (layer, head) in enumerate((layer, head) for layer in layers for head in heads):
        accuracy = round(min(0.8 + 0.1 * number, 1.0), 6)
        control = 0.6 if token else None
        scores = Scores(accuracy, accuracy - 0.05, accuracy, 0.5, control, round(accuracy - 0.6, 6), 0.1, 0.5)
        weights = np.stack([np.zeros(3), random.standard_normal(3)])
        bias, mean, scale = random.standard_normal(2), random.standard_normal(3), 1 + random.random(3)
        probes.append(Probe(layer, head, weights, bias, mean, scale, scores, 20, True))
    about = Fitted(
        label="upos", of="token" if token else "text", offset=0, run="tiny", model="tiny", model_weights="abc",
        site="dec.resid_post", position=None if token else "mean", train_rows=40, train_texts=4, rows=20, texts=2,
        majority=0.7, by_token=0.75 if token else None, random=0.65, penalty=1.0, held_out=0.25, draws=1, seed=0,
    )  # fmt: skip
    return Probes(("NOUN", "VERB"), (30, 10), tuple(probes), about)
