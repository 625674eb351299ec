"""Valid files of every kind that is read, made by the product, or as the code did whose files it reads."""

import json
import shutil
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from tests.formats import foreign, foreign_pt
from tests.models.checkpoints import FIXTURES, SIZES, random_weights
from tests.store import runs
from tests.tiny_folders import write_tiny_model
from traceformer.store.aliases import Rows
from traceformer.store.run import Run

__all__ = ["CONLLU", "TEXTS", "write"]

TEXTS = ("The river froze.", "Yes", "Ein Maß für café?")
CONLLU = (
    "# sent_id = a\n1\tDo\tdo\tAUX\t_\tMood=Ind\t2\taux\t_\t_\n2\tyou\tyou\tPRON\t_\t_\t0\troot\t_\tSpaceAfter=No\n"
    "3\t?\t?\tPUNCT\t_\t_\t2\tpunct\t_\t_\n\n# sent_id = b\n1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "1\tdo\tdo\tAUX\t_\t_\t0\troot\t_\t_\n2\tn't\tnot\tPART\t_\t_\t1\tadvmod\t_\t_\n2.1\tgo\tgo\tVERB\t_\t_\t_\t_\t_\t_\n\n"
)
_ROWS = [{"text": text, "label": number, "tags": ["a", None]} for number, text in enumerate(TEXTS)]


def write(name: str, folder: Path) -> None:
    """Writes the seeds of a reader, by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _WRITERS[name](folder)


@cache
def _recorded() -> Run:
    """A decoder's run in memory, of two layers."""
    import tempfile

    from traceformer.capture.extract import record

    with tempfile.TemporaryDirectory() as place:
        write_tiny_model(Path(place) / "model", "gpt2", n_layer=2)
        return record(str(Path(place) / "model"), list(TEXTS), "attn qkv resid hidden internals", shard_examples=2)


def _run(folder: Path) -> None:
    arrays = tuple(runs.spec(key) for key in ("dec.self.attn_pattern", "dec.self.k", "dec.hidden", "dec.embed"))
    layout = runs.plan("dec", arrays, n_examples=3, longest={"dec": 9}, shard_examples=2)
    runs.write(folder / "run", replace(layout, aliases={Rows.parse("dec.embed"): Rows.parse("dec.hidden[0]")}))


def _encdec_run(folder: Path) -> None:
    arrays = tuple(runs.spec(key) for key in ("enc.hidden", "dec.cross.attn_pattern", "dec.self.q", "dec.cross.k"))
    runs.write(
        folder / "run", runs.plan("encdec", arrays, n_examples=3, longest={"enc": 9, "dec": 5}, shard_examples=2)
    )


def _recipe_run(folder: Path) -> None:
    runs.write(folder / "run", runs.plan_by_recipe(n_examples=3, longest={"dec": 9}, shard_examples=2))


def _unfinished_run(folder: Path) -> None:
    runs.begin(folder / "run", 2, runs.plan(arrays=runs.FEW[::2], n_examples=7, longest={"dec": 9}, shard_examples=2))


def _exported(folder: Path, format: str, **options: str | bool) -> None:
    from traceformer.formats.registry import export

    export(_recorded(), format, folder / "files", **options)  # pyright: ignore[reportArgumentType]


def _nanochat_documented(folder: Path) -> None:
    foreign.write(folder / "files/trace_a.json", foreign.documented("trace_a"))
    foreign.write(folder / "files/trace_b.json", foreign.documented("trace_b"))


def _traces(folder: Path) -> None:
    foreign.write(folder / "trace_a.json", foreign.documented("trace_a"))
    foreign.original(folder, steps=True)


def _directions(folder: Path) -> None:
    import torch

    from traceformer.analysis.directions import Direction
    from traceformer.formats.results.directions import write_direction

    folder.mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    direction = Direction("kind", {1: vectors[0], 2: vectors[1]}, {"site": "resid_post"}, {1: {"auc": 0.9}, 2: {}})
    write_direction(direction, folder / "kind.safetensors")
    np.save(folder / "rows.npy", vectors)
    np.save(folder / "one_layer3.npy", vectors[0])
    torch.save({"layer_1": torch.tensor(vectors[0]), "layer_2": torch.tensor(vectors[1])}, folder / "kind.pt")


def _translators(folder: Path) -> None:
    from traceformer.analysis.translators import HeldOut, Translators

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    weights, biases = random.standard_normal((2, 4, 4)).astype(np.float32), np.zeros((2, 4), np.float32)
    numbers = (np.array([0.25, 0.0]), np.array([0.5, 1.0]), np.array([1.5, 0.0]), np.array([0.5, 1.0]))
    held_out = HeldOut(*numbers, ("tuned", "identity"), rows=80, examples=2)
    Translators("tuned", (0, 3), weights, biases, "byte", "ab" * 16, 258, {"seed": 0}, held_out).save(
        folder / "a.safetensors"
    )
    Translators("jacobian", (1, 2), weights, biases).save(folder / "b.safetensors")


def _published_lenses(folder: Path) -> None:
    import torch

    (folder / "tuned").mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    matrices = {layer: torch.randn(4, 4, generator=random).half() for layer in (0, 1)}
    about = {"model_name": "gpt2", "target_layer": 2}
    torch.save(
        {"J": matrices, "n_prompts": 3, "source_layers": [0, 1], "d_model": 4, "metadata": about}, folder / "lens.pt"
    )
    config = {"base_model_name_or_path": "gpt2", "d_model": 4, "num_hidden_layers": 3, "bias": True}
    (folder / "tuned" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3)).state_dict()
    torch.save(state, folder / "tuned" / "params.pt")


def _head_tables(folder: Path) -> None:
    from traceformer.formats.results.head_tables import write_heads
    from traceformer.questions.heads import heads

    write_heads(heads(_recorded()), folder / "heads.csv")
    (folder / "thesis.csv").write_text("layer,head,entropy,sparsity,distance\n0,0,1.5,0.2,3\n0,1,,0.1,2.5\n")


def _paths(folder: Path) -> None:
    from traceformer.formats.results.path_traces import save_trace
    from traceformer.questions.paths import paths

    folder.mkdir(parents=True, exist_ok=True)
    save_trace(paths(_recorded(), 0, to=-1, layer=1), folder / "trace.json")
    save_trace(paths(_recorded(), 2, to=-1), folder / "all.json")


def _prompts(folder: Path) -> None:
    from traceformer.texts.prompts import PROMPT_SETS

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(PROMPT_SETS / "baseline.json", folder / "set.json")
    (folder / "lines.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    rows = ({"id": f"p{number}", "text": text, "note": "n"} for number, text in enumerate(TEXTS))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _texts(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lines.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS), encoding="utf-8")
    (folder / "table.csv").write_text("text,label\n" + "".join(f'"{text}",{n}\n' for n, text in enumerate(TEXTS)))
    (folder / "trees.conllu").write_text(CONLLU, encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(_ROWS), folder / "table.parquet", row_group_size=2)


def _saved_dataset(folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(_ROWS).save_to_disk(str(folder / "saved"))


def _model(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    write_tiny_model(folder / "model", "gpt2", n_layer=1)
    write_tiny_model(folder / "encoder", "bert", num_hidden_layers=1)
    weights = load_file(folder / "encoder/model.safetensors")
    names, index = sorted(weights), folder / "encoder/model.safetensors.index.json"
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / "encoder" / file, {"format": "pt"})
    placed = {name: file for file, own in parts.items() for name in own}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    (folder / "encoder/model.safetensors").unlink()
    for place in ("model", "encoder"):
        settings = {"settings": {"data": str(folder / "data.txt"), "split": "standard"}}
        (folder / place / "training.json").write_text(json.dumps(settings))
    (folder / "data.txt").write_bytes(bytes(range(32, 127)) * 40)


def _nanochat(folder: Path) -> None:
    import torch

    (folder / "tokenizer").mkdir(parents=True)
    shutil.copy(FIXTURES / "tokenizer.pkl", folder / "tokenizer")
    place = folder / "chatsft_checkpoints/d3"
    place.mkdir(parents=True)
    torch.save(random_weights(n_layer=1), place / "model_000650.pt")
    meta = {"step": 650, "val_loss": 1.5, "model_config": {**SIZES, "n_layer": 1}}
    (place / "meta_000650.json").write_text(json.dumps(meta))


def _training(folder: Path) -> None:
    place = folder / "checkpoints/checkpoint-5"
    place.mkdir(parents=True)
    (folder / "checkpoints/settings.json").write_text(json.dumps({"settings": {"seed": 1}, "data": "abc"}))
    (place / "trainer_state.json").write_text(json.dumps({"global_step": 5, "log_history": []}))


def _probes(folder: Path) -> None:
    from tests.probed import probes_of

    probes_of(layers=(1, 3), heads=(0, 2)).save(folder / "heads.safetensors")
    probes_of(layers=(None,), of="text").save(folder / "texts.safetensors")


def _words(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _commands(folder: Path) -> None:
    _recorded().save(folder / "run")
    _directions(folder)
    _head_tables(folder)


_WRITERS = {
    "run": _run,
    "run of two stacks": _encdec_run,
    "run by recipe": _recipe_run,
    "unfinished run": _unfinished_run,
    "nanochat traces, documented": _nanochat_documented,
    "nanochat traces, exported": lambda folder: _exported(folder, "json", lossless=True),
    "nanochat trace folder": _traces,
    "Gemma files, documented": lambda folder: [foreign_pt.documented_internals(folder / "files", foreign_pt.truth())],
    "Gemma files, original": lambda folder: [foreign_pt.original_residual(folder / "files", foreign_pt.truth())],
    "Gemma files, exported": lambda folder: _exported(folder, "pt", layout="internals", lossless=True),
    "safetensors, exported": lambda folder: _exported(folder, "safetensors"),
    "padded store": lambda folder: _exported(folder, "padded-zarr"),
    "directions": _directions,
    "translators": _translators,
    "published lenses": _published_lenses,
    "head tables": _head_tables,
    "probes": _probes,
    "path traces": _paths,
    "prompts": _prompts,
    "texts": _texts,
    "saved data set": _saved_dataset,
    "weights": _model,
    "model folder": _model,
    "nanochat checkpoint": _nanochat,
    "training folder": _training,
    "arguments": _words,
    "commands": _commands,
}
