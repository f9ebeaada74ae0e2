"""The `xtrimo` command: one table of verbs, each imported only when it is called.

This is the only place in xtrimo that names the folders above it, and it holds them as strings.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from xtrimo import __version__
from xtrimo.errors import MissingExtraError, StoppedError, XtrimoError

FAILED, STOPPED = 2, 75  # 75 is EX_TEMPFAIL of sysexits.h: start the same command again
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
    "judge": Verb("generate.judge:main", "generated proteins of a family, beside real ones and controls", "judge"),
    "score": Verb("xtrimo.scoring:main", "likelihood of each protein under a model"),
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
    "info": Verb("xtrimo.info:main", "what is in a model directory, a corpus or a preset"),
}


def usage() -> str:
    """The text of `xtrimo --help`."""
    width = max(map(len, VERBS)) + 2
    rows = "\n".join(f"  {name:<{width}}{verb.summary}" for name, verb in VERBS.items())
    return f"usage: xtrimo VERB [flags]\n\n{rows}\n\nxtrimo VERB --help lists the flags of a verb. xtrimo {__version__}"


def find(name: str) -> Run:
    """Import the function behind a verb."""
    module, _, function = VERBS[name].target.partition(":")
    found: Run = getattr(importlib.import_module(module), function)
    return found


def run(name: str, args: Sequence[str]) -> None:
    """Run a verb; most import what is large only then.

    Raises:
        MissingExtraError: when a package outside this project is not installed, naming how to get it.
    """
    try:
        find(name)(args)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {verb.target.partition(".")[0] for verb in VERBS.values()}:
            raise  # a file of ours: our own bug, which deserves its traceback
        extra = VERBS[name].extra
        package = f"xtrimo[{extra}]" if extra else "xtrimo"
        raise MissingExtraError(
            f"xtrimo {name} needs {missing}, which is not installed; run: pip install '{package}'"
        ) from error


def main(args: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status. XTRIMO_DEBUG=1 shows the traceback of an expected error."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    try:
        try:
            if name in ("-h", "--help", "--version"):
                print(__version__ if name == "--version" else usage())
            elif name in VERBS:
                from xtrimo.log import configure

                configure()
                run(name, rest)
            else:
                raise XtrimoError(f"no verb {name!r}; known: {', '.join(VERBS)}")
        finally:
            sys.stdout.flush()  # a reader that has gone shows here, not while Python shuts down
    except XtrimoError as error:
        if os.environ.get("XTRIMO_DEBUG") == "1":
            raise
        print(f"xtrimo: {error}", file=sys.stderr)
        return STOPPED if isinstance(error, StoppedError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `xtrimo ... | head`; what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        if error.filename is None or os.environ.get("XTRIMO_DEBUG") == "1":
            raise
        print(f"xtrimo: {error.filename}: {error.strerror}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    # `python -m` puts the working directory first, where a user's generate.py would hide our folder of that name.
    if not sys.flags.safe_path:
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(main())
