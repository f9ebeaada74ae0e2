"""The `xtrimo` command: one table of verbs, each imported only when it is called.

This is the only place in xtrimo that names the folders above it, and it holds them as strings.
"""

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xtrimo import __version__
from xtrimo.errors import MissingExtraError, XtrimoError

if TYPE_CHECKING:
    from xtrimo.run_record import Trace

INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell reports SIGINT and SIGPIPE
ENVIRONMENT = {
    # Threads that spin while they wait steal the core of the thread they wait for.
    "OMP_WAIT_POLICY": "PASSIVE",
    # oneDNN keeps a kernel for each shape of a half-precision product, 1,024 of them, and hardly two packed rows are of
    # one length: 20 MB more at each training step of glm-1m, without being any faster.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "LRU_CACHE_CAPACITY": "32",
}
"""What torch's libraries read once, when they are loaded or first used."""
QUIET, JSON = "--quiet", "--json"
OF_ALL = {
    QUIET: "no progress bars, and of the messages warnings alone",
    JSON: "say at the end what was done as one JSON object",
}
"""Flags of every verb; they may stand before it, too."""
OWN_JSON = ("plan", "doctor")
"""Verbs whose `--json` is a flag of their own, with a shape of its own."""
OWN_RECORD = ("rerun",)
"""Verbs that run another, which leaves the record."""
Run = Callable[[Sequence[str]], None]  # reads its own flags, does the work, raises XtrimoError on bad input


class Verb(NamedTuple):
    """Where a verb lives, what `xtrimo --help` says of it, and the extra that installs what it needs."""

    target: str
    summary: str
    extra: str = ""


VERBS = {
    "corpus": Verb("pretrain.build_corpus:main", "FASTA files to a token corpus, split into train and valid"),
    "pretrain": Verb("pretrain.train:main", "train a GLM on a corpus; on an existing run folder: resume", "pretrain"),
    "plan": Verb("pretrain.plan_command:main", "what a pretraining run would take: memory, time, layouts", "pretrain"),
    "export": Verb("pretrain.export:main", "a training run to a model directory"),
    "scaling": Verb("pretrain.scaling:main", "held-out loss of runs against compute, and what tasks gain", "pretrain"),
    "generate": Verb("generate.sampler:main", "draw new proteins from a model"),
    "infill": Verb("generate.infilling:main", "fill the gaps of proteins"),
    "redesign": Verb("generate.redesigning:main", "write chosen positions of proteins anew"),
    "finetune-generator": Verb("generate.finetune:main", "teach a generator tags, from tagged proteins", "tune"),
    "align": Verb("generate.align:main", "teach a generator what a reward or a preference asks for", "tune"),
    "judge": Verb("generate.judge:main", "generated proteins of a family, beside real ones and controls", "judge"),
    "score": Verb("xtrimo.scoring:main", "likelihood of each protein under a model"),
    "mutate": Verb("xtrimo.mutating:main", "mutations of proteins, named ones or all, under a model", "mutate"),
    "antibody": Verb("xtrimo.antibodies:main", "how natural a model finds the regions of antibodies", "antibody"),
    "embed": Verb("xtrimo.embedding_file:main", "hidden states of each protein, per residue or pooled"),
    "finetune": Verb("heads.finetune:main", "train a head for a task, on a frozen, adapted or whole model", "heads"),
    "predict": Verb("heads.prediction:main", "what a trained head says of each protein", "heads"),
    "zeroshot": Verb("heads.zeroshot:main", "variants of proteins, scored without training", "heads"),
    "evaluate": Verb("heads.evaluation:main", "a trained head on labelled proteins", "heads"),
    "bench": Verb("heads.bench:main", "one model on many tasks, beside random weights and baselines", "heads"),
    "report": Verb("heads.report:main", "results of fine-tuned models as tables and pictures", "heads"),
    "train-fold": Verb("structure.train_command:main", "train a folding model on chains with coordinates", "structure"),
    "fold": Verb("structure.fold_command:main", "predict the structure of each protein", "structure"),
    "compare": Verb("structure.compare:main", "predicted structures beside their references", "structure"),
    "convert": Verb("xtrimo.conversion:main", "a model directory in another layout, precision or size of shards"),
    "quantize": Verb("xtrimo.quantizing:main", "a model with its weights in 8 or 4 bits, if it bears that"),
    "info": Verb("xtrimo.info:main", "what is in a model directory, a corpus or a preset"),
    "rerun": Verb("xtrimo.rerun:main", "a run again from its record, and whether all is as it was"),
    "doctor": Verb("xtrimo.doctor:main", "whether all that is needed is here and works, and what to do where not"),
    "completion": Verb("xtrimo.completion:main", "a script by which a shell completes verbs and flags"),
}


def usage() -> str:
    """The text of `xtrimo --help`."""
    width = max(map(len, VERBS)) + 2
    rows = "\n".join(f"  {name:<{width}}{verb.summary}" for name, verb in VERBS.items())
    flags = "\n".join(f"  {flag:<{width}}{does}" for flag, does in OF_ALL.items())
    ending = f"xtrimo VERB --help lists the flags of a verb. xtrimo {__version__}"
    return f"usage: xtrimo VERB [flags]\n\n{rows}\n\nflags of every verb:\n\n{flags}\n\n{ending}"


def find(name: str) -> Run:
    """Import the function behind a verb."""
    module, _, function = VERBS[name].target.partition(":")
    found: Run = getattr(importlib.import_module(module), function)
    return found


def run(name: str, args: Sequence[str]) -> None:
    """Run a verb; most import what is large only then.

    Raises:
        MissingExtraError: when a package outside this project is not installed, naming how to get it.
        SystemExit: it was asked for its flags, or does not understand those given.
    """
    try:
        find(name)(args)
    except SystemExit as ended:
        if not ended.code:  # its --help, which does not know of what all have
            own = (JSON,) if name in OWN_JSON else ()
            sys.stdout.writelines(f"  {flag:<8}  {does}\n" for flag, does in OF_ALL.items() if flag not in own)
        raise
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {verb.target.partition(".")[0] for verb in VERBS.values()}:
            raise  # a file of ours: our own bug, which deserves its traceback
        extra = VERBS[name].extra
        package = f"xtrimo[{extra}]" if extra else "xtrimo"
        raise MissingExtraError(
            f"xtrimo {name} needs {missing}, which is not installed; run: pip install '{package}'"
        ) from error


def run_as_asked(name: str, args: Sequence[str], asked: Sequence[str]) -> None:
    """Run a verb, as quietly and with the sort of answer that is asked for; a record beside its output tells of it."""
    from xtrimo.log import configure
    from xtrimo.run_record import Trace, recorded

    configure(logging.WARNING if QUIET in asked else logging.INFO)
    if QUIET in asked:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # of what is fetched by name, and read by transformers
    recording = nullcontext(Trace()) if name in OWN_RECORD else recorded(name, args)
    if JSON in asked and name in OWN_JSON:
        args = [*args, JSON]
    elif JSON in asked and not {"-h", "--help"} & set(args):
        run_in_json(name, args, recording)
        return
    with recording:
        run(name, args)


def run_in_json(name: str, args: Sequence[str], recording: "AbstractContextManager[Trace]") -> None:
    """Run a verb, and print what it said and wrote as one JSON object; also where it fails after its answer."""
    from xtrimo.answer import keeping
    from xtrimo.run_record import Trace, is_first_rank

    began, trace, done = time.monotonic(), Trace(), False
    try:
        with keeping() as answer, recording as trace:
            run(name, args)
        done = True
    finally:
        if is_first_rank() and (done or answer.facts is not None):
            seconds = round(time.monotonic() - began, 3)
            said = answer.in_json(verb=name, seconds=seconds, outputs=trace.outputs, record=trace.record)
            sys.stdout.write(f"{said}\n")


def main(args: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status. XTRIMO_DEBUG=1 shows the traceback of an expected error."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    given = sys.argv[1:] if args is None else args
    name, *rest = [word for word in given if word not in OF_ALL] or ["--help"]
    try:
        try:
            if name in ("-h", "--help", "--version"):
                print(__version__ if name == "--version" else usage())
            elif name in VERBS:
                run_as_asked(name, rest, [word for word in given if word in OF_ALL])
            else:
                raise XtrimoError(f"no verb {name!r}; known: {', '.join(VERBS)}")
        finally:
            sys.stdout.flush()  # a reader that has gone shows here, not while Python shuts down
    except XtrimoError as error:
        if os.environ.get("XTRIMO_DEBUG") == "1":
            raise
        print(f"xtrimo: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `xtrimo ... | head`; what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        if error.filename is None or os.environ.get("XTRIMO_DEBUG") == "1":
            raise
        print(f"xtrimo: {error.filename}: {error.strerror}", file=sys.stderr)
        return XtrimoError.exit_status
    return 0


if __name__ == "__main__":
    # `python -m` puts the working directory first, where a user's generate.py would hide our folder of that name.
    if not sys.flags.safe_path:
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(main())
