"""Models by their name on the Hugging Face Hub: "org/name" or "org/name@revision" to a local directory.

`huggingface_hub` does the work by its own rules: cache, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT. Config, card and
weights are fetched, never code. What licence weights stand under is what their card says, or what is known of the
organisation that published them.
"""

import json
import logging
import re
from pathlib import Path

from xtrimo.errors import CheckpointError
from xtrimo.log import warn_once

logger = logging.getLogger(__name__)

NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
DESCRIPTION = ("config.json", "README.md", "vocab.txt", "tokenizer.json")
SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # pickles: only where there is nothing else
PROTEINGLM_LICENCE = "CC-BY-NC-4.0"
SPELLED = {"apache-2.0": "Apache-2.0", "mit": "MIT"}  # the Hub writes all licences in small letters
LICENCES = {
    "biomap-research": PROTEINGLM_LICENCE,
    "proteinglm": PROTEINGLM_LICENCE,
    "Bo1015": PROTEINGLM_LICENCE,
    "facebook": "MIT",
}
"""Organisation -> licence of its protein models, for repositories whose card states none."""


def is_name(text: str) -> bool:
    """Whether a text can be a name on the Hub.

    >>> is_name("biomap-research/proteinglm-1b-mlm@main"), is_name("runs/a/model"), is_name("model")
    (True, False, False)
    """
    return NAME.fullmatch(text) is not None


def download(name: str) -> Path:
    """The directory of a model on the Hub, fetched or from the cache; its licence is logged once.

    Args:
        name: "org/name", or "org/name@revision" with a branch, a tag or a commit.

    Raises:
        CheckpointError: for a text that is no such name, or one that cannot be had here, and what to do then.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(f"{name!r} is no name on the Hub; expected org/name or org/name@revision")
    repository, revision = match["repository"], match["revision"]
    try:
        directory = _fetch(repository, revision, SAFETENSORS) or _fetch(repository, revision, TORCH)
    except Exception as error:  # huggingface_hub's, its HTTP client's, the file system's: all mean the same here
        reason = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        raise CheckpointError(_what_to_do(name, reason)) from error
    if directory is None:
        raise CheckpointError(_what_to_do(name, _why_incomplete(repository, revision)))
    warn_once(logger, "%s: licence of the weights: %s", name, licence(directory) or "not stated, ask its authors")
    return directory


def _fetch(repository: str, revision: str | None, weights: tuple[str, ...]) -> Path | None:
    """The directory with these weights files; None where the repository, or the copy in the cache, lacks them."""
    from huggingface_hub import snapshot_download

    patterns = [*DESCRIPTION, *weights]
    directory = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    files = {file.name for pattern in weights for file in directory.glob(pattern)}
    needed = {"config.json"}.union(*(_indexed(directory / file) for file in files if file.endswith(".index.json")))
    has_weights = any(not file.endswith(".index.json") for file in files)
    return directory if has_weights and needed <= {file.name for file in directory.iterdir()} else None


def _indexed(index: Path) -> set[str]:
    """The files that an index of weights names; none where it cannot be read, which loading says."""
    try:
        return set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _why_incomplete(repository: str, revision: str | None) -> str:
    """Why a directory that was handed out lacks files: the repository does too, or the cache does and it is cut off."""
    from huggingface_hub import HfApi

    try:
        HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:  # as in `download`; offline it is huggingface_hub's own
        return (
            "its copy in the cache is incomplete, perhaps of a download that was interrupted, and the Hub was not"
            f" asked for the rest ({type(error).__name__}); load it once without HF_HUB_OFFLINE, with a network"
        )
    return "it has no config.json, or no weights in safetensors or torch files"


def _what_to_do(name: str, reason: str) -> str:
    return (
        f"no directory {name} is here, and as a name on the Hugging Face Hub it cannot be had: {reason}\nPut its"
        " files config.json, README.md (for the licence) and model.safetensors, or all shards *.safetensors with"
        " model.safetensors.index.json, or pytorch_model*.bin, into one directory and give the path of that instead."
        " A gated or private model needs HF_TOKEN; HF_HUB_OFFLINE=1 uses only what was fetched before."
    )


def origin(directory: Path) -> str | None:
    """org/name@commit of a directory in the Hub's cache, which is .../models--org--name/snapshots/commit."""
    place = directory.resolve()
    kind, *parts = place.parent.parent.name.split("--")
    if place.parent.name != "snapshots" or kind != "models" or len(parts) != 2:
        return None
    return f"{'/'.join(parts)}@{place.name}"


def licence(directory: Path) -> str | None:
    """Licence of the weights in a directory: from the head of its README.md, or by who published them."""
    return _stated(directory / "README.md") or LICENCES.get((origin(directory) or "").partition("/")[0])


def card_head(licence: str) -> str:
    """The YAML head of a README.md that states a licence, as `licence` reads it.

    >>> card_head("CC-BY-NC-4.0"), card_head("In-House")
    ('---\\nlicense: cc-by-nc-4.0\\n---\\n', '---\\nlicense: other\\nlicense_name: In-House\\n---\\n')
    """
    small = licence.lower()
    if small in SPELLED or small.startswith("cc-"):
        return f"---\nlicense: {small}\n---\n"
    return f"---\nlicense: other\nlicense_name: {re.sub(r'[^A-Za-z0-9_.+-]+', '-', licence)}\n---\n"


def without_head(card: str) -> str:
    """The text of a card below its YAML head."""
    return re.sub(r"\A---\s*\n.*?\n---\s*(\n|\Z)", "", card, count=1, flags=re.DOTALL)


def _stated(card: Path) -> str | None:
    """The field `license` of a card's YAML head; `license_name` where that says "other".

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     card = Path(folder) / "README.md"
    ...     _ = card.write_text("---\\nlicense: cc-by-nc-4.0\\n---\\n# A model\\n")
    ...     _stated(card)
    'CC-BY-NC-4.0'
    """
    if not card.is_file():
        return None
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card.read_text("utf-8", errors="replace"), re.DOTALL)
    fields = dict(re.findall(r"^(license|license_name):[ \t]*['\"]?([\w.+-]+)", head[1] if head else "", re.MULTILINE))
    stated = fields.get("license")
    if stated == "other":
        return fields.get("license_name", stated)
    return SPELLED.get(stated, stated.upper() if stated.startswith("cc") else stated) if stated else None
