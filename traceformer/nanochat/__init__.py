"""Models that karpathy/nanochat trained."""

from traceformer.nanochat.checkpoints import Checkpoint, Source, find_checkpoint, load_model, load_nanochat

__all__ = ["Checkpoint", "Source", "find_checkpoint", "load_model", "load_nanochat"]
