"""What an edge does to a metric: what one part adds to the stream, changed in what one other part reads.

1. What each sender adds differs between two texts by a contribution: of the embedding and of an MLP as it is recorded,
   of a head its z through the output projection, all other heads zero. All of them together are how the stream
   differs, or the model is refused: it norms or scales what its parts add.
2. Estimated (edge attribution patching: Syed et al., 2023), an edge is the contribution times the slope of the metric
   with regard to the stream as the receiver reads it: the metric's slope at the receiver's queries, taken back through
   the norm before them to the stream, and nowhere else.
3. With several steps it is the mean of the slopes at the points k / steps, k = 0 .. steps - 1, of the straight way from
   what enters the first block to what enters it in the other text, all else following from that (Hanna et al., "Have
   Faith in Faithfulness", 2024).
4. Measured, it takes two passes. In the first the contribution is added to the stream before the receiver's block, and
   the receiver's queries are kept; in the second, of the text itself, they take the place of its own.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from traceformer.analysis.edges import Part, is_edge, parts_of
from traceformer.capture.edits.slopes import Climb, OfLogits, Read, values_at
from traceformer.capture.edits.touching import Place, Touch
from traceformer.capture.spots import scale_of
from traceformer.errors import Unsupported
from traceformer.models.block_weights import why_no_output
from traceformer.models.loaded import LoadedModel
from traceformer.models.part import text_part
from traceformer.models.precision import wide
from traceformer.shapes import Float64
from traceformer.sites import ArrayKey

__all__ = ["Stream"]

_ROUNDINGS = 64
"""How many roundings of the stream's norm its difference and the sum of contributions may be apart."""


class Stream:
    """The residual stream of one text, and what another text's parts would add to it.

    Args:
        model: A decoder.
        own: The text that is run: one.
        other: The other text, with as many positions.

    Attributes:
        senders, receivers: The parts of the model.

    Raises:
        Unsupported: the stream is not the sum of what its parts add, or queries, keys and values are seen by nobody.
    """

    def __init__(self, model: LoadedModel, own: Read, other: Read) -> None:
        dims, self._row = model.dims.stacks["dec"], model.built.stacks["dec"]
        dims.refuse_uneven("edges")
        self._model, self._own, self._n_layers = model, own, dims.n_layers
        self.senders, self.receivers = parts_of(dims.n_layers, dims.n_heads, dims.n_kv_heads)
        sites = ("resid_pre", "mlp_out", "z", *(() if self._row.parallel else ("resid_mid",)))
        places = [_place(site, layer) for site in sites for layer in range(dims.n_layers)]
        last = _place("resid_post", dims.n_layers - 1)
        mine, _ = values_at(own, [*places, last])
        theirs, _ = values_at(other, [*places, last])
        change = {place: theirs[place] - mine[place] for place in mine}
        parts: list[Tensor] = [change[_place("resid_pre", 0)][0]]
        for layer in range(dims.n_layers):
            parts += self._of_heads(layer, change[_place("z", layer)][0])
            if not self._row.parallel:
                self._check(parts, _place("resid_mid", layer), change, mine)
            parts.append(change[_place("mlp_out", layer)][0])
            self._check(parts, last if layer == dims.n_layers - 1 else _place("resid_pre", layer + 1), change, mine)
        self._added = torch.stack(parts)
        self._entering = mine[_place("resid_pre", 0)]

    def _of_heads(self, layer: int, change: Tensor) -> list[Tensor]:
        """What each head's change of z, (head, position, d_head), becomes in the stream."""
        path = self._row.attention.out_proj
        if path is None:
            raise Unsupported("edges of this model", why=why_no_output(self._row.attention))
        module: Any = text_part(self._model.model).get_submodule(f"{self._row.blocks}.{layer}.{path}")
        n_heads, n_positions, d_head = change.shape
        apart = change.new_zeros(n_heads + 1, n_positions, n_heads, d_head)
        for head in range(n_heads):
            apart[head, :, head] = change[head]
        with torch.no_grad():
            made = module(apart.flatten(-2))
        return list((made[:-1] - made[-1]) * scale_of(self._row))

    def _check(
        self, parts: Sequence[Tensor], place: Place, change: Mapping[Place, Tensor], mine: Mapping[Place, Tensor]
    ) -> None:
        """Makes sure that what the parts add is how the stream differs.

        Raises:
            Unsupported: it is not.
        """
        apart = (torch.stack(list(parts)).sum(0) - change[place][0]).norm()
        size = mine[place].norm() + change[place].norm()
        if not apart <= _ROUNDINGS * torch.finfo(size.dtype).eps * size:
            raise Unsupported(
                f"edges of {self._model.name}",
                why=f"{place[0].site} of layer {place[1]} is not the sum of what embedding, heads and MLPs add: its "
                "blocks norm or scale that",
                hint="patch sites of the stream instead",
            )

    def is_edge(self, sender: Part, receiver: Part) -> bool:
        return is_edge(sender, receiver, parallel=self._row.parallel)

    def estimates(self, metric: OfLogits, steps: int = 1) -> Float64[np.ndarray, "sender receiver"]:
        """Returns by how much each edge would change the metric, to first order; NaN where there is none.

        Args:
            metric: What is looked at.
            steps: At how many points of the way to the other text slopes are taken.
        """
        slopes = torch.stack([self._slopes(metric, step / steps) for step in range(steps)]).mean(0)
        effects = torch.einsum("spd,rpd->sr", wide(self._added), wide(slopes)).cpu().numpy()
        edges = [[self.is_edge(sender, receiver) for receiver in self.receivers] for sender in self.senders]
        return np.where(edges, effects, np.nan)

    def _slopes(self, metric: OfLogits, share: float) -> Tensor:
        """The metric's slope with regard to the stream as each receiver reads it: (receiver, position, d_model).

        What enters the first block is this share of the way to the other text.
        """
        put = {_place("resid_pre", 0): self._entering + share * self._added[0]} if share else None
        read = {receiver: self._reads(receiver) for receiver in self.receivers}
        climb = Climb(self._own, {place for places in read.values() for place in places}, put)
        seen = list(dict.fromkeys(shown for _, shown in read.values()))
        outer = dict(zip(seen, climb.slopes(metric(climb.logits), seen, is_last=False), strict=True))
        slopes: list[Tensor] = []
        for receiver, (stream, shown) in read.items():
            if receiver.kind == "logits":
                slopes.append(outer[shown][0])
                continue
            made, own = climb.values[shown], outer[shown]
            if receiver.head is not None:
                made, own = made[:, receiver.head], own[:, receiver.head]
            slopes.append(climb.slopes(made, [stream], own, is_last=False)[0][0])
        return torch.stack(slopes)

    def _reads(self, receiver: Part) -> tuple[Place, Place]:
        """Where a receiver reads the stream, and where it is seen what it makes of it."""
        if receiver.layer is None:
            last = _place("resid_post", self._n_layers - 1)
            return last, last
        if receiver.kind == "mlp":
            stream = "resid_pre" if self._row.parallel else "resid_mid"
            return _place(stream, receiver.layer), _place("mlp_out", receiver.layer)
        return _place("resid_pre", receiver.layer), _place(receiver.kind, receiver.layer)

    def measure(self, metric: OfLogits, edges: Sequence[tuple[Part, Part]]) -> Float64[np.ndarray, "edge"]:
        """Returns the metric with each of some edges changed, measured together: a row of a batch for each."""
        own = self._own.copies(len(edges))
        adding: dict[Place, list[tuple[int, Tensor]]] = defaultdict(list)
        placing: dict[Place, list[tuple[int, int | None]]] = defaultdict(list)
        for row, (sender, receiver) in enumerate(edges):
            stream, shown = self._reads(receiver)
            adding[stream].append((row, self._added[self.senders.index(sender)]))
            if receiver.kind != "logits":
                placing[shown].append((row, receiver.head))
        kept, _ = values_at(own, placing, {place: _adding(rows) for place, rows in adding.items()})
        last = _place("resid_post", self._n_layers - 1)
        touches = {place: _placing(rows, kept[place]) for place, rows in placing.items()}
        touches |= {place: _adding(rows) for place, rows in adding.items() if place == last}
        _, logits = values_at(own, (), touches)
        return metric(logits).cpu().double().numpy()


def _place(site: str, layer: int) -> Place:
    return ArrayKey("dec", "self" if site in ("q", "k", "v", "z") else None, site), layer


def _adding(rows: Sequence[tuple[int, Tensor]]) -> Touch:
    def touch(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        for row, added in rows:
            changed[row] += added
        return changed

    return touch


def _placing(rows: Sequence[tuple[int, int | None]], values: Tensor) -> Touch:
    def touch(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        for row, head in rows:
            where = row if head is None else (row, head)
            changed[where] = values[where]
        return changed

    return touch
