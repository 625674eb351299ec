"""What computes a shard here, and what to say where another host went before: see `store.hosts`."""

import os
import warnings

import torch

from traceformer.store.hosts import Host

__all__ = ["host_here", "warn_of_another_host"]


def host_here() -> Host:
    """Returns the facts of this process that change its speed, and last bits of its sums at most."""
    return Host(torch.get_num_threads(), os.cpu_count(), torch.backends.cpu.get_cpu_capability())


def warn_of_another_host(before: Host, here: Host) -> None:
    """Says what differs, where a run is gone on with on another machine, or with another number of threads."""
    changed = here.changed_from(before)
    if not changed:
        return
    last_bits = {"threads", "instructions"} & {*changed}
    outcome = "numbers may differ in their last bits from there on" if last_bits else "numbers stay the same"
    warnings.warn(f"going on with {here}, after shards of {before}: {outcome}", stacklevel=4)
