"""What is printed, and returned to the shell, when a command fails."""

import ast
import errno
import re
import sys
from dataclasses import dataclass

from cyclopts import Argument, CycloptsError
from cyclopts.annotations import get_hint_name
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from traceformer.cli.stopping import TO_BE_RESUMED, Announced
from traceformer.errors import OutOfSpace, TraceformerError, UsageError
from traceformer.store.files import is_full

__all__ = ["FLAGS", "INTERRUPTED", "Failure", "explain", "in_flags"]

INTERRUPTED = 130
_NOT_READABLE = 3
_SMALLER = "a smaller --batch_size, or fewer --layers"

_NAMED_ALIKE = (
    "accumulation adapter against align all_pairs all_prompt_sets allow_pickle answer answer_token attention "
    "attn_codec batch_size batch_tokens by_source capture chat checkpoints clean convention corrupt data dataset "
    "device device_map draws dtype engine estimate evaluations exact_top example features floor format "
    "gpus_per_worker grad_clip heads heads_dec heads_enc held_out how ids_column init k keep_duplicates keep_steps "
    "layer layers layers_dec layers_enc layout learning_rate lens_top_k like limit lossless mark max_tokens method "
    "metric min_attn model model_a model_b model_dtype num_beams num_epochs num_return_sequences num_shards "
    "offload_folder offset output over overwrite pairs parts patience patterns penalty port position positions preset "
    "project project_site prompt prompt_set prompts repeats replace replay resume revision rows_codec scales search "
    "seed shard_index shuffle shuffle_buffer side site skip split steps stop store_topk streaming temperature "
    "text_column threads_per_worker to together top_beam top_k top_p warmup weight_decay window workers wrong"
)
FLAGS = {name: f"--{name.replace('_', '-')}" for name in _NAMED_ALIKE.split()} | {
    "data_path": "--data_path",
    "directions": "--vector",
    "dec_max_len": "--dec_max_len",
    "folder": "--output",
    "labels": "--label",
    "max_seq_len": "--max_seq_len",
    "out": "--out_dir",
    "seq_length": "--seq_length",
    "targets": "--targets_file",
    "texts": "--text",
    "translators": "--with",
}
"""The flag of every parameter that a message of the library names. What is not here is no flag: `with`, `use_cache`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The exit code of a failed command and its message; `str` gives the lines to print."""

    code: int
    error: str
    why: str = ""
    hint: str = ""

    def __str__(self) -> str:
        labelled = (("error", self.error), ("why", self.why), ("try", self.hint))
        return "\n".join(f"{label + ':':<7}{text}" for label, text in labelled if text)


def explain(error: BaseException) -> Failure | None:
    """Returns what to print for an error that has a cause outside of the program, None for a fault of the program."""
    if isinstance(error, TraceformerError):
        return Failure(error.exit_code, *map(in_flags, (error.message, error.why, error.hint)))
    if isinstance(error, CycloptsError):
        return _unreadable_command(error)
    if isinstance(error, KeyboardInterrupt):
        message, hint = error.args if len(error.args) == 2 else ("interrupted", "")
        return Failure(TO_BE_RESUMED if isinstance(error, Announced) else INTERRUPTED, message, hint=hint)
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        why = str(error).split("\n")[0]
        return Failure(OutOfSpace.exit_code, "out of memory", why, _SMALLER)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        if error.errno == errno.ENOMEM:  # of a mapping, in place of a MemoryError
            return Failure(OutOfSpace.exit_code, "out of memory", str(error), _SMALLER)
        if is_full(error):
            hint = "free some space, then the same command again"
            return Failure(OutOfSpace.exit_code, f"{where}the disk is full", hint=hint)
        return Failure(_NOT_READABLE, f"{where}{error.strerror or error}")
    return None


def in_flags(text: str) -> str:
    """Returns a message of the library as the command line says it.

    The library names parameters, as a call would have them: `overwrite=True`, `limit=5`, `capture="attn resid"`,
    `layers=[0, 3]`, `chat=False`, `out`. They become --overwrite, --limit 5, --capture attn resid, --layers 0,3,
    --no-chat and --out_dir. Whatever else stands in backquotes is left as it is.
    """
    return re.sub(r"`([^`]+)`", lambda quoted: _flags_of(quoted[1]) or quoted[0], text)


def _flags_of(arguments: str) -> str:
    """Returns `name` or `name=value, name=value` as flags, nothing for what is neither or names no flag."""
    try:
        call = ast.parse(f"call({arguments})", mode="eval").body
    except SyntaxError:
        return ""
    match call:
        case ast.Call(args=[ast.Name(name)], keywords=[]):
            return FLAGS.get(name, "")
        case ast.Call(args=[], keywords=[_, *_] as keywords) if all(keyword.arg in FLAGS for keyword in keywords):
            return " ".join(_flag(str(keyword.arg), keyword.value) for keyword in keywords)
        case _:
            return ""


def _flag(name: str, value: ast.expr) -> str:
    match value:
        case ast.Constant(True):
            return FLAGS[name]
        case ast.Constant(False):
            return FLAGS[name].replace("--", "--no-", 1)
        case ast.Constant(str(text)):
            return f"{FLAGS[name]} {text or repr(text)}"
        case ast.List(items):
            return f"{FLAGS[name]} {','.join(map(ast.unparse, items))}"
        case _:
            return f"{FLAGS[name]} {ast.unparse(value)}"


def _is_torch_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    # On a CPU torch raises a plain RuntimeError.
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def _unreadable_command(error: CycloptsError) -> Failure:
    verb = " ".join(error.command_chain or ())
    help_command = " ".join(part for part in ("traceformer", verb, "--help") if part)
    if isinstance(error, UnknownCommandError):
        return _unknown_verb(error, help_command)
    if isinstance(error, UnusedCliTokensError):
        return Failure(UsageError.exit_code, f"cannot place {' '.join(error.unused_tokens or ())!r}", hint=help_command)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        wanted = name if error.argument.index is None else name.lstrip("-").upper()
        message = f"{error.keyword} needs a value" if error.keyword else f"{verb} needs {wanted}"
        return Failure(UsageError.exit_code, message, hint=help_command)
    error.verbose = False
    message, _, suggestion = str(error).partition(" Did you mean ")
    hint = re.sub(r'["?]', "", suggestion) or help_command
    if isinstance(error, CoercionError) and error.argument is not None and error.token is not None:
        name = error.token.keyword or error.argument.name.lstrip("-").upper()
        why = str(error.msg) if error.msg else _what_it_takes(error.argument)
        return Failure(UsageError.exit_code, f"{name} cannot be {error.token.value!r}", why, hint)
    if isinstance(error, UnknownOptionError):
        message = f"{verb} has no option {error.token.keyword or error.token.value!r}"
    return Failure(UsageError.exit_code, message[:1].lower() + message[1:].rstrip("."), hint=hint)


def _what_it_takes(argument: Argument) -> str:
    choices = argument.get_choices()
    return f"it is one of {', '.join(choices)}" if choices else f"it takes {get_hint_name(argument.hint)}"


def _unknown_verb(error: UnknownCommandError, help_command: str) -> Failure:
    import difflib

    # cyclopts' own message imports every verb to find out which to show.
    asked = (error.unused_tokens or [""])[0]
    verbs = [name for name in (error.app or ()) if not name.startswith("-")]
    near = difflib.get_close_matches(asked, verbs, n=1)
    what = "option" if asked.startswith("-") else "command"
    return Failure(
        UsageError.exit_code, f"no {what} {asked!r}", hint=f"traceformer {near[0]}" if near else help_command
    )
