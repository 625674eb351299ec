"""Byte-level transformers, dense and sparse, and their training.

Importing this registers the sparse one with transformers. Other people's models are in `models`.

tokenizer         bytes as tokens, exactly
model             the sparse model: Llama's parts, computing only what each head may see
patterns          where each head of a sparse model may look
sparse_mask       from patterns to the plan of a pass
sparse_attention  attention that computes only that
flex              the same by a kernel for CUDA
presets           ready-made sizes
settings          what decides the weights
corpus            bytes to train on, mapped; nothing held out is trained on
pydoc_texts       English that every Python has
enwik8            downloaded once, resumed, checked
windows           the windows in which a text is read; bits per byte
train             Hugging Face's Trainer around them
checkpoints       which one to go on from, and which not
kept_steps        models on the way, kept for good
outcome           figures, model card and curve of a training
baselines         xz and n-grams on the same text
"""

from traceformer.bytelm.model import SparseByteConfig, SparseByteForCausalLM

__all__ = ["SparseByteConfig", "SparseByteForCausalLM"]
