"""Byte-level transformers, dense and sparse; importing this registers the sparse one with transformers."""

from traceformer.bytelm.model import SparseByteConfig, SparseByteForCausalLM

__all__ = ["SparseByteConfig", "SparseByteForCausalLM"]
