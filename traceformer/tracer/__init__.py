"""Reverse attention on a live model (the tracer of reverse-attention) and on a recorded run; its results as files."""

from traceformer.tracer.files import load_trace, save_trace
from traceformer.tracer.stored import trace_stored
from traceformer.tracer.tracer import ReverseAttentionTracer

__all__ = ["ReverseAttentionTracer", "load_trace", "save_trace", "trace_stored"]
