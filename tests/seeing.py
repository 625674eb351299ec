"""Tiny random models that see, and batches for them as their processors make these, of random images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from traceformer.models.tiny import tiny_model

__all__ = ["SEEING", "Seeing", "seeing"]

IMAGE = 90  # the token that stands for a part of an image
PER_IMAGE = 4
_SIGLIP = {"image_size": 28, "patch_size": 14}


def _pixels(images: Sequence[int], *shape: int) -> torch.Tensor:
    made = [np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in images]
    return torch.from_numpy(np.stack(made))


def _plain(size: int) -> Callable[[Sequence[int]], dict[str, torch.Tensor]]:
    return lambda images: {"pixel_values": _pixels(images, 3, size, size)}


def _sized(size: int) -> Callable[[Sequence[int]], dict[str, torch.Tensor]]:
    return lambda images: {**_plain(size)(images), "image_sizes": torch.tensor([[size, size]] * len(images))}


def _patches(width: int) -> Callable[[Sequence[int]], dict[str, torch.Tensor]]:
    """Sixteen patches of each image, of which four make a token."""
    return lambda images: {
        "pixel_values": _pixels(images, 16, width).flatten(0, 1),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * len(images)),
    }


@dataclass(frozen=True)
class Kind:
    """What a family's config says, what its processor makes of images, and what it calls which tokens are images.

    `types` with `suffix` is what it calls which tokens come behind a prefix that is seen both ways.
    """

    config: Mapping[str, Any]
    images: Callable[[Sequence[int]], dict[str, torch.Tensor]]
    types: str = ""
    suffix: int = 0


_QWEN = {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32}
SEEING: Mapping[str, Kind] = {
    "gemma3": Kind({"vision_config": _SIGLIP, "mm_tokens_per_image": PER_IMAGE}, _plain(28), "token_type_ids"),
    "paligemma": Kind({"vision_config": _SIGLIP, "projection_dim": 32}, _plain(28), "token_type_ids", suffix=2),
    "llava": Kind({"vision_config": _SIGLIP}, _plain(28)),
    "mistral3": Kind({"vision_config": {"image_size": 56, "patch_size": 14}, "spatial_merge_size": 2}, _sized(56)),
    "internvl": Kind({"vision_config": {"image_size": [56, 56], "patch_size": [14, 14]}}, _plain(56)),
    "qwen2_vl": Kind(
        {"vision_config": {**_QWEN, "patch_size": 14, "embed_dim": 32, "hidden_size": 32, "depth": 2}},
        _patches(1176),
        "mm_token_type_ids",
    ),
    "qwen2_5_vl": Kind(
        {"vision_config": {**_QWEN, "patch_size": 14, "depth": 2, "fullatt_block_indexes": [1], "window_size": 28}},
        _patches(1176),
        "mm_token_type_ids",
    ),
    "qwen3_vl": Kind(
        {
            "vision_config": {
                **{**_QWEN, "patch_size": 14, "depth": 2, "deepstack_visual_indexes": [0, 1]},
                "num_position_embeddings": 16,
            }
        },
        _patches(1176),
        "mm_token_type_ids",
    ),
}


@dataclass(frozen=True)
class Seeing:
    """A model that sees, a batch of two rows of unequal length for it, and each of the rows by itself, unpadded."""

    model: Any
    batch: dict[str, torch.Tensor]
    alone: tuple[dict[str, torch.Tensor], ...]


def seeing(family: str) -> Seeing:
    """Returns a family's tiny model, made to see small images, and texts with an image in each."""
    kind = SEEING[family]
    model = tiny_model(family, **kind.config, image_token_id=IMAGE)
    rows = ([1, 7, 8, *[IMAGE] * PER_IMAGE, 11, 23, 5, 17], [1, *[IMAGE] * PER_IMAGE, 9])
    alone = tuple(_batch(kind, [row], [number]) for number, row in enumerate(rows))
    return Seeing(model, _batch(kind, rows, [0, 1]), alone)


def _batch(kind: Kind, rows: Sequence[Sequence[int]], images: Sequence[int]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    types = {kind.types: (ids == IMAGE).long()} if kind.types else {}
    if kind.suffix:
        ends = mask.sum(1, keepdim=True)
        types = {kind.types: (torch.arange(longest) >= ends - kind.suffix).long()}
    return {"input_ids": ids, "attention_mask": mask, **kind.images(images), **types}
