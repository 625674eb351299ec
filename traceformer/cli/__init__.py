"""The command line: one short function per verb, imported when it is used.

A verb parses, asks the library and prints: nothing is computed here. stdout is data, stderr is words and progress. A
failure is told in up to three lines (`error:`, `why:`, `try:`) and an exit code; `--debug` anywhere on the line adds
the traceback.

failures      errors to three lines and an exit code; parameters' names to flags
stopping      work that keeps what it has done, and signals that announce its end
arguments     what RUN, --example, --head and counts may be; layers and heads are in `choices`
choices       flags that several verbs share, said once
demo          the whole way from a model to pictures, each step a command
check         what is proved of a model's sites
extract       texts to a run
checkpoints   the checkpoints of a training, a run each
generate      prompts to a run, the text shown as it is made
list_         the runs in a folder
inspect       what a run holds, an example, a head
summary       what a run holds, as text and JSON
finish        an unfinished run over a stream ends with what was committed
verify        is everything as it was written?
upgrade       a run of an older format in the newest one
sync          a finished run to a bucket, or back
analyze       statistics of a run
statistics    these as text
heads         the metrics of every head
role_card     these with weights and ablation, as text and in files
training_curves  the same along the steps of a training
circuits      what weights say of heads
cluster       heads in clusters
clustered     these as text
compare       how two runs differ
compared      that as text
paths         which tokens led to a token
paths_report  these in lines of text
lens          what the model would say after each layer
fit_lens      a map per layer that makes more of that
patch         which places carry what tells two texts apart
ablate        what is lost without a head, an MLP or a layer
effects       these in lines of text
edges         what one part adds, changed in what one other part reads
attribute     what each head, MLP and bias adds to a logit
project       how far every token lies along trait vectors
curves        these as tables
vectors       trait vectors fitted, and looked at
probe         linear probes of a label, layer by layer
dose          a trait and fluency against the scale of steering
export        a run in another format
import_       files of another format as a run
train         a byte-level model trained
view          runs in the browser
matrix        a head drawn in characters
terminal      tables out of characters
"""

import builtins
import keyword
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from inspect import cleandoc
from io import TextIOWrapper
from typing import Any, TextIO

from cyclopts import App, CycloptsError, Parameter

from traceformer import __version__
from traceformer.cli.failures import INTERRUPTED, explain, in_flags
from traceformer.cli.stopping import TO_BE_RESUMED
from traceformer.errors import TraceformerError
from traceformer.heap import keep_freed_memory

__all__ = ["VERBS", "application", "main"]

VERBS = {
    "demo": "Record a small real model on the built-in texts, and look at the run.",
    "check": "Prove on a model that every site means what it says.",
    "extract": "Record a model's internals over a data set into a run.",
    "generate": "Let a model answer prompts, and record it token by token.",
    "list": "List the runs of a folder, the newest first.",
    "inspect": "Show what a run holds: its arrays, an example, a head.",
    "analyze": "Statistics of attention, activations and logits.",
    "heads": "Measure every attention head, of a run or of a model.",
    "circuits": "What the weights alone say of every attention head.",
    "cluster": "Put attention heads into clusters by their metrics.",
    "compare": "How two runs differ: what they predict, their layers, their heads.",
    "paths": "Which tokens led to a token: paths backward through attention.",
    "project": "Project what was recorded onto trait vectors, token by token.",
    "vectors": "Find the direction that tells two kinds of texts apart.",
    "probe": "What can be read off activations by planes, layer by layer.",
    "dose": "How far steering moves a trait, and what it costs in fluency.",
    "lens": "What the model would say after each layer (logit lens).",
    "fit-lens": "Fit a lens: a map per layer into the place of the last one.",
    "patch": "Which places of a model carry what tells two texts apart.",
    "ablate": "What a model loses without a head, an MLP or a layer.",
    "edges": "Which part feeds which, in what tells two texts apart.",
    "attribute": "What each head, MLP and bias adds to a logit.",
    "view": "Look inside runs in the browser.",
    "export": "Write a run in another format.",
    "import": "Make a run of files in another format.",
    "verify": "Check every file of a run against its records.",
    "finish": "End a run over a stream with what was committed.",
    "upgrade": "Write a run of an older format in the newest one.",
    "sync": "Copy a finished run to a bucket, or from one to a disk.",
    "train": "Train a byte-level transformer, dense or sparse.",
}
"""Every verb and its line in the help; its function lives in the module of that name, or of `import_`, `list_`."""

_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended
_CONTINUED = re.compile(r"(?<=\S)\n(?=\S)|\n {8,}")  # the next line of a paragraph, or of what an argument means


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line, the process's own by default."""
    if arguments is None:  # the process is ours
        keep_freed_memory()
        arguments = sys.argv[1:]
    arguments = list(arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        _print_anything()
        try:
            code = application(arguments)(arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes stdout once more on the way out, which would fail again, with a message.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _BROKEN_PIPE
        except (TraceformerError, CycloptsError, KeyboardInterrupt, MemoryError, OSError, RuntimeError) as error:
            failure = explain(error)
            if failure is None:
                raise
            if debug and failure.code not in (INTERRUPTED, TO_BE_RESUMED):
                import traceback

                traceback.print_exc()
            print(failure, file=sys.stderr)
            return failure.code
    return code if isinstance(code, int) else 0


def application(arguments: Sequence[str]) -> App:
    """Returns the app that understands a command line.

    The verb that is asked for tells all that its docstring says; of the others, which are not imported, the table of
    verbs has a line.
    """
    asked = next((word for word in arguments[:1] if word in VERBS), None)
    app = App(
        name="traceformer",
        help="Record what happens inside transformers, keep it in one compact store, ask it questions.",
        # A reader of Markdown takes as long to load as a verb and its flags.
        help_format="plaintext",
        help_epilogue="--debug anywhere on the line shows the traceback of an error.",
        version=_version,
        default_parameter=Parameter(negative=(), show_default=_default_in_help),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        exit_on_error=False,
        print_error=False,
    )
    for verb, help_line in VERBS.items():
        name = f"{verb}_" if keyword.iskeyword(verb) or hasattr(builtins, verb) else verb.replace("-", "_")
        if verb == asked:
            app.command(_told_plainly(getattr(import_module(f"traceformer.cli.{name}"), name)), name=verb)
        else:
            app.command(f"traceformer.cli.{name}:{name}", name=verb, help=help_line)
    return app


def _version() -> str:
    from traceformer.core.library import described

    return f"traceformer {__version__} ({described()})"


def _told_plainly(verb: Any) -> Any:
    """Returns a verb, or an app of several, with paragraphs of docstrings in one line each, and without backquotes."""
    functions = [verb[name].default_command for name in verb if name[0] != "-"] if isinstance(verb, App) else [verb]
    for function in functions:
        function.__doc__ = _CONTINUED.sub(" ", cleandoc(function.__doc__ or "").replace("`", ""))
    return verb


def _print_anything() -> None:
    # Tokens are in every script; a stream that cannot write one gets an escape in its place.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _default_in_help(value: object) -> str | None:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or None  # pyright: ignore[reportUnknownArgumentType]
    return None if value is None or value is False else str(value)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {in_flags(str(message))}", file=sys.stderr)
