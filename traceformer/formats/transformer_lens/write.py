"""A run's examples as TransformerLens caches them: `{id}.pt`, a dict from hook names to tensors with a batch of 1.

`transformer_lens.ActivationCache(torch.load(path, weights_only=True), model)` takes such a dict.
"""

from collections.abc import Iterator
from pathlib import Path

from traceformer.filenames import file_name
from traceformer.formats.options import ExportOptions
from traceformer.formats.outgoing import written_dtype
from traceformer.formats.torch_files import Part, write_torch_file
from traceformer.formats.transformer_lens.hooks import HOOKS
from traceformer.store.run import Run

__all__ = ["OPTIONS", "write_files"]

OPTIONS: frozenset[str] = frozenset()


def write_files(store: Run, folder: Path, options: ExportOptions) -> Iterator[Path]:
    """Yields each example's file, once it is written.

    Raises:
        NotRecorded: the run holds no site that has a hook.
        Unsupported: TransformerLens has no names for such a model.
        RunExists: a file is in the way.
    """
    dtype = written_dtype(store, (spec for spec in store.layout.arrays if HOOKS[spec.key.site].name))
    ids = store.ids if options.example_ids is None else options.example_ids
    for done, example_id in enumerate(ids, start=1):
        path = options.claimed(folder / f"{file_name(example_id)}.pt")
        cache = {name: Part(values) for name, values in store.cache(example_id, dtype="stored").items()}
        write_torch_file(path, cache, dtype)
        options.progress(done, len(ids))
        yield path
