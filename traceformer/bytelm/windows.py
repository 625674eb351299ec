"""The windows in which a model reads a text, in training and when its bits per byte are measured.

Windows share one token with their neighbours, so that every token but the very first is predicted exactly once.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from traceformer.bytelm.corpus import SEPARATOR, Span
from traceformer.errors import UsageError

__all__ = ["Windows", "bits_and_bytes"]


class Windows(Dataset[Mapping[str, Tensor]]):
    """All windows of `length` tokens of a text, in order.

    `move_to` an epoch begins the first one elsewhere, so that no epoch cuts the text where another did.

    A share of `repeats` of them hold 4 to 32 different bytes of theirs, in random order, again and again: only who
    looks up what came after the same byte before predicts those. A small text alone teaches that late, if at all.
    Which windows do, and where the first begins, follows from seed and epoch.

    Raises:
        UsageError: the text is shorter than two windows.
    """

    def __init__(self, text: Span, length: int, *, repeats: float = 0.0, seed: int = 0) -> None:
        self._text = text
        self._length = length
        self._seed = seed
        self._repeats = repeats
        self.move_to(0)
        self._count = (len(text) - 1) // (length - 1) - 1
        if self._count < 1:
            raise UsageError(
                f"{len(text)} bytes to train on are less than two windows of {length}",
                hint="a smaller `seq_length`, or more text",
            )

    def move_to(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        self._first = int(torch.randint(self._length - 1, (), generator=generator))
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        start = self._first + index * (self._length - 1)
        tokens = self._text.tokens(start, start + self._length)
        if self._repeats:
            random = np.random.default_rng((self._seed, self._epoch, index))
            if random.random() < self._repeats:
                period = random.permutation(np.unique(tokens))[: random.integers(4, 33)]
                tokens = np.resize(period, self._length)
        ids = torch.from_numpy(tokens)
        return {"input_ids": ids, "labels": ids}


@torch.no_grad()
def bits_and_bytes(
    model: nn.Module, text: Span, *, length: int, batch_size: int, part: tuple[int, int] = (0, 1)
) -> tuple[float, int]:
    """Returns the bits that a model needs for a text, ends of documents included, and how many bytes of text that is.

    Bits per byte is the one over the other. A token is predicted from those before it in its window, `length` - 1 at
    most. `part` (k, n) takes every n-th batch from the k-th on: n processes add up what they find.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    starts = range(0, len(text) - 1, length - 1)
    n_full = max(0, (len(text) - 1) // (length - 1))
    batches = [starts[at : min(at + batch_size, n_full)] for at in range(0, n_full, batch_size)]
    if n_full < len(starts):
        batches.append(starts[n_full:])  # the last window is shorter, and goes alone
    nats, n_bytes = 0.0, 0
    for batch in batches[part[0] :: part[1]]:
        windows = [torch.from_numpy(text.tokens(start, start + length)) for start in batch]
        ids = torch.stack(windows).to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        nats += nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
        n_bytes += int((ids[:, 1:] != SEPARATOR).sum())
    model.train(was_training)
    return nats / math.log(2), n_bytes
