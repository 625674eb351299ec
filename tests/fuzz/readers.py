"""Every reader there is, as the fuzzers call it: all that it reads of a folder of files, one of which is damaged.

`read` returns what was read, plainly enough to compare; `judge` says what is wrong with it, if another way to read the
same bytes, or the undamaged files, tell.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz import judges
from tests.fuzz.mutation import damaged, damaged_word

__all__ = ["READERS", "Reader"]


def damage_a_file(folder: Path, random: Random) -> None:
    """Damages one file of a folder; small ones and large ones are as likely."""
    path = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    path.write_bytes(damaged(path.read_bytes(), random))


def damage_within(*names: str) -> Callable[[Path, Random], None]:
    """Returns what damages a file of one of these names."""

    def damage(folder: Path, random: Random) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.endswith(names)]
        path = random.choice(files)
        path.write_bytes(damaged(path.read_bytes(), random))

    return damage


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader under test; `share` is how many of a thousand inputs it gets."""

    read: Callable[[Path], Any]
    share: float
    change: Callable[[Path, Random], None] = damage_a_file
    judge: Callable[[Path, Path, Any, Any], str] = judges.nothing_known


def _read_run(folder: Path) -> dict[str, Any]:
    from traceformer.cli.summary import summarise
    from traceformer.store.folders import list_runs
    from traceformer.store.run import Run
    from traceformer.store.verification import verify_folder

    list_runs(folder).to_frame()
    [place] = [path for path in folder.iterdir() if path.is_dir()]
    checked = _or_error(lambda: verify_folder(place))
    run = Run(place)
    str(summarise(run, place)), summarise(run, place).to_json(), repr(run), run.about.to_json()
    found: dict[str, Any] = {"ids": run.ids, "ok": getattr(checked, "ok", None)}
    run.tokens.to_dict()
    for spec in run.layout.arrays:
        for example in run.ids:
            found[f"{example} {spec.key}"] = np.array(run.get(example, spec.key))
    for example in run.ids:
        found[f"{example} text"] = run.text(example)
        found[f"{example} row"] = {name: np.asarray(own).tolist() for name, own in run.encodings(example).items()}
    for spec in run.layout.arrays:
        if not spec.site.is_matrix:
            layer = spec.layers[0] if spec.layers else None
            found[f"all {spec.key}"] = np.array(run.activations(str(spec.key), layer=layer))
    return found


def _or_error(call: Callable[[], Any]) -> Any:
    from traceformer.errors import TraceformerError

    try:
        return call()
    except TraceformerError as error:
        return error


def _import(folder: Path) -> Any:
    from traceformer.formats.registry import import_run

    run = import_run(folder / "files", out=folder / "out")
    return {
        **{f"{row} text": run.text(row) for row in range(run.n)},
        **{f"{row} {spec.key}": np.array(run.get(row, spec.key)) for row in range(run.n) for spec in run.layout.arrays},
    }


def _read_trace_folder(folder: Path) -> Any:
    from traceformer.compat import TraceStorage

    storage = TraceStorage(folder)
    read: dict[str, Any] = {}
    for trace_id in storage.list_traces():
        read[trace_id] = _or_error(lambda own=trace_id: storage.load_trace(own))
        _or_error(lambda own=trace_id: storage.load_trace_metadata(own))
        _or_error(lambda own=trace_id: storage.get_trace_summary(own))
    storage.list_traces(category="geography")
    return read


def _read_directions(folder: Path) -> Any:
    from traceformer.formats.results.directions import read_direction

    return {path.name: _or_error(lambda own=path: read_direction(own)) for path in sorted(folder.iterdir())}


def _read_probes(folder: Path) -> Any:
    from traceformer.formats.results.probes import open_probes

    read = {path.name: _or_error(lambda own=path: open_probes(own)) for path in sorted(folder.iterdir())}
    for probes in read.values():
        if not isinstance(probes, Exception):
            repr(probes), probes.to_json(), probes.to_frame()
    return read


def _read_translators(folder: Path) -> Any:
    from traceformer.formats.results.translators import open_lens

    def read(path: Path) -> Any:
        found = open_lens(path)
        found.to_frame(), found.to_json(), repr(found)
        return found

    return {path.name: _or_error(lambda own=path: read(own)) for path in sorted(folder.iterdir())}


def _read_published_lenses(folder: Path) -> Any:
    from traceformer.formats.results.translators import open_lens

    return {name: _or_error(lambda own=name: open_lens(folder / own)) for name in ("lens.pt", "tuned")}


def _damage_lens(folder: Path, random: Random) -> None:
    """Damages a file, or what a .pt file instructs its reader to make, its checksums being right."""
    path = folder / "lens.pt"
    if random.random() < 0.3:
        damage_a_file(folder, random)
        return
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, damaged(data, random) if name.endswith("data.pkl") else data)


def _read_head_tables(folder: Path) -> Any:
    from traceformer.formats.results.head_tables import read_heads
    from traceformer.questions.clusters import cluster

    tables = {path.name: _or_error(lambda own=path: read_heads(own)) for path in sorted(folder.iterdir())}
    for table in tables.values():
        if not isinstance(table, Exception):
            table.to_frame(), repr(table)
    _or_error(lambda: cluster(folder / "heads.csv").to_frame())
    return tables


def _read_path_traces(folder: Path) -> Any:
    from traceformer.formats.results.path_traces import load_trace
    from traceformer.viewer.path_payloads import paths_payload

    read = {path.name: _or_error(lambda own=path: load_trace(own)) for path in sorted(folder.iterdir())}
    for found in read.values():
        if not isinstance(found, Exception):
            found.to_json(), repr(found), found.to_frame()
            _or_error(lambda own=found: paths_payload(own.to_json()))
    return read


def _read_prompts(folder: Path) -> Any:
    from traceformer.texts.prompts import digest_of_prompts, load_prompts

    found = {path.name: _or_error(lambda own=path: load_prompts(own)) for path in sorted(folder.iterdir())}
    digest_of_prompts(own for own in found.values() if not isinstance(own, Exception))
    return found


def _read_texts(folder: Path) -> Any:
    from traceformer.texts.load import load_targets, load_texts

    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        found[path.name] = _or_error(lambda own=path: _examples(load_texts(own)))
        _or_error(lambda own=path: _examples(load_texts(own, text_column="label")))
    found["targets"] = _or_error(lambda: load_targets(folder / "lines.txt", 3))
    return found


def _examples(source: Any) -> list[tuple[str, str]]:
    return [(example.example_id, example.text) for example in source.examples]


def _read_saved(folder: Path) -> Any:
    from traceformer.texts.load import load_texts

    return _examples(load_texts(folder / "saved"))


def _read_weights(folder: Path) -> Any:
    from traceformer.models.readout import open_readout
    from traceformer.models.weights import files_digest, open_folder, read_config
    from traceformer.questions.training_texts import training_texts
    from traceformer.questions.vocabulary import _vocabulary  # pyright: ignore[reportPrivateUsage]

    found: dict[str, Any] = {}
    for place in (folder / "model", folder / "encoder"):
        _or_error(lambda own=place: files_digest(own))
        _or_error(lambda own=place: open_readout(own, read_config(own)))
        _or_error(lambda own=place: training_texts(own))
        _or_error(lambda own=place: _vocabulary(str(own), None))
        found[place.name] = _or_error(
            lambda own=place: {name: tensor.read() for name, tensor in open_folder(own).items() if tensor.shape}
        )
    return found


def _load_models(folder: Path) -> Any:
    from traceformer.capture.extract import record
    from traceformer.models.load import load_model

    for place in ("model", "encoder"):
        model = _or_error(lambda own=place: load_model(folder / own, device="cpu"))
        if not isinstance(model, Exception):
            _or_error(lambda own=model: record(own, ["Yes, the river."], "attn resid_post"))
    return None


def _load_nanochat(folder: Path) -> Any:
    from traceformer.models.nanochat import load_nanochat

    os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    return load_nanochat("nanochat:sft", device="cpu", allow_pickle=True).source


def _read_training(folder: Path) -> Any:
    from traceformer.bytelm.checkpoints import newest_checkpoint, prepare_folder

    newest_checkpoint(folder)
    prepare_folder(folder, {"settings": {"seed": 1}, "data": "abc"}, resume=True, overwrite=False)
    return None


_INDICES = ("0", "0,3 5-7", "1-2", "3", "0-11")
_HEADS = ("L5H3", "3", "H3", "l0h0", "L12H11")


def _write_words(folder: Path, random: Random) -> None:
    words = [damaged_word(random.choice((*_INDICES, *_HEADS)), random) for _ in range(8)]
    (folder / "words").write_bytes("\n".join(words).encode("utf-8", "surrogatepass"))


def _words_of(folder: Path) -> list[str]:
    return (folder / "words").read_bytes().decode("utf-8", "surrogatepass").split("\n")


def _read_words(folder: Path) -> Any:
    from traceformer.cli.arguments import parse_head
    from traceformer.sites import ArrayKey, Selection, parse_indices

    found: dict[str, Any] = {}
    for word in _words_of(folder):
        found[f"indices {word}"] = _or_error(lambda own=word: parse_indices(own))
        found[f"head {word}"] = _or_error(lambda own=word: parse_head(None, own))
        _or_error(lambda own=word: ArrayKey.parse(own))
        _or_error(lambda own=word: Selection.of(own, layers=own))
    return found


_LINES = (
    "inspect run --example 0 --head L0H1",
    "inspect run --layer 1 --head 0 --site attn_pattern --json",
    "inspect run --example 2 --json",
    "inspect run --site dec.resid_post --layer 1",
    "list .",
    "verify run --json",
    "heads run --layers 0,1 --json",
    "analyze run --example 0 --json",
    "cluster heads.csv --k 2 --seed 1 --json",
    "paths run --example 0 --layer 1 --position 3 --top_beam 3 --json",
    "project run --vector kind.safetensors --site resid_post --json",
    "vectors show kind.safetensors",
    "export run --format safetensors --output out --example 0 --overwrite",
    "import out --out_dir back --overwrite",
    "extract --model byte --dataset demo --limit 1 --capture attn --layers 0 --heads 0,1 --dry-run",
    "lens run --example 0 --layers 0",
)


def _write_command(folder: Path, random: Random) -> None:
    words = random.choice(_LINES).split(" ")
    at = random.randrange(len(words))
    words[at] = damaged_word(words[at], random)
    (folder / "words").write_bytes("\n".join(words).replace("\0", "").encode("utf-8", "surrogatepass"))


def _run_command(folder: Path) -> Any:
    import contextlib
    import io

    from traceformer.cli import main

    words = _words_of(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                code = main(words)
            except SystemExit as stopped:
                code = stopped.code
    finally:
        os.chdir(before)
    return words, code, out.getvalue(), err.getvalue()


_JSON = (".json",)
READERS: Mapping[str, Reader] = {
    "run": Reader(_read_run, 40, judge=judges.same_unless_resealed),
    "run of two stacks": Reader(_read_run, 15, judge=judges.same_unless_resealed),
    "run by recipe": Reader(_read_run, 20, judge=judges.same_unless_resealed),
    "unfinished run": Reader(_read_run, 20, judge=judges.same_unless_resealed),
    "nanochat traces, documented": Reader(_import, 30),
    "nanochat traces, exported": Reader(_import, 15),
    "nanochat trace folder": Reader(_read_trace_folder, 50),
    "Gemma files, documented": Reader(_import, 20),
    "Gemma files, original": Reader(_import, 20),
    "Gemma files, exported": Reader(_import, 10),
    "safetensors, exported": Reader(_import, 40, judge=judges.same_unless_named("manifest.json")),
    "padded store": Reader(_import, 15),
    "directions": Reader(_read_directions, 90, judge=judges.directions),
    "probes": Reader(_read_probes, 30, damage_within(".safetensors"), judges.probes),
    "translators": Reader(_read_translators, 20, judge=judges.translators),
    "published lenses": Reader(_read_published_lenses, 20, _damage_lens, judges.published_lenses),
    "head tables": Reader(_read_head_tables, 70, judge=judges.head_tables),
    "path traces": Reader(_read_path_traces, 70),
    "prompts": Reader(_read_prompts, 100, judge=judges.prompts),
    "texts": Reader(_read_texts, 90, judge=judges.texts),
    "saved data set": Reader(_read_saved, 4),
    "weights": Reader(_read_weights, 25, damage_within(*_JSON, ".safetensors"), judges.weights),
    "model folder": Reader(_load_models, 2, damage_within(*_JSON, ".safetensors")),
    "nanochat checkpoint": Reader(_load_nanochat, 3),
    "training folder": Reader(_read_training, 30, damage_within(*_JSON)),
    "arguments": Reader(_read_words, 140, _write_words, judges.words),
    "commands": Reader(_run_command, 11, _write_command, judges.commands),
}


def remove_all_in(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
