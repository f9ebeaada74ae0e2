"""LAYOUTS: the sorts of model directories that can be written, a row each.

A row says what the weights are called in the files, what lies in the files beside them, and which texts belong to the
directory. It is read back by its row of `backbone.KINDS`. Numbers stay as they are, so a model can go from any layout
to any other and back.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from xtrimo import hub, names
from xtrimo.checkpoint import CARD, CONFIG, Stated, card
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError
from xtrimo.published import OBJECTIVES, STATED, TURN, to_published
from xtrimo.rope import frequencies
from xtrimo.tokens import PUBLISHED_WORDS


class Layout(NamedTuple):
    """How one sort of model directory is written."""

    check: Callable[[GLMConfig], None]
    """Raises ConfigError for a model that it cannot hold."""
    names: Callable[[GLMConfig], Mapping[str, str]]
    """Our name of each weight -> its name in the files."""
    extras: Callable[[GLMConfig, torch.dtype], Mapping[str, Tensor]]
    """Small tensors that the files hold beside the weights; given the dtype of those that are not quantized."""
    describe: Callable[[Path, Stated, torch.dtype, str], None]
    """Writes all but the weights into a directory: given what is stated of the model, that dtype, and notes for the
    card. config.json comes last, so that nothing unfinished passes for a model."""
    unsaid: Callable[[GLMConfig], list[str]]
    """What the programs that the layout is for do not know of the model, though it goes along."""


def _ours(directory: Path, stated: Stated, dtype: torch.dtype, notes: str) -> None:
    (directory / CARD).write_text(card(stated.config, notes), "utf-8")
    (directory / CONFIG).write_text(stated.to_json(), "utf-8")


def _published(directory: Path, stated: Stated, dtype: torch.dtype, notes: str) -> None:
    readme = hub.card_head(stated.config.licence) + card(stated.config, notes)
    (directory / "README.md").write_text(readme, "utf-8")
    (directory / "tokenizer.model").write_text("\n".join(PUBLISHED_WORDS), "utf-8")
    (directory / STATED).write_text(stated.to_json(), "utf-8")
    content = json.dumps(to_published(stated.config, dtype), indent=2) + "\n"
    (directory / CONFIG).write_text(content, "utf-8")


def _check_published(config: GLMConfig) -> None:
    to_published(config, torch.float32)


def _turns(config: GLMConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The rotary frequencies of each layer, a buffer there. They were computed in the precision of the training: so in
    `dtype` where that holds them, else in fp32."""
    exact = frequencies(config)
    turn = exact.to(dtype) if torch.equal(exact.to(dtype).float(), exact) else exact
    return {TURN.format(i=i): turn.clone() for i in range(config.num_layers)}  # files do not share memory


def _unpublished(config: GLMConfig) -> list[str]:
    known = OBJECTIVES[config.rotary == "2d", "mlm" not in config.objectives]
    return [
        *(f"objective {name}" for name in config.objectives if name not in known),
        *(f"direction {name}" for name in config.directions if name != "forward"),
        *(f"control word {word}" for word in config.control_words),
        *(["activations in eight bits"] if config.quantization == "int8-dynamic" else ()),
    ]


XTRIMO = Layout(
    check=lambda config: None,
    names=lambda config: {name: name for name in names.pairs(config, "published")},
    extras=lambda config, dtype: {},
    describe=_ours,
    unsaid=lambda config: [],
)
PROTEINGLM = Layout(
    check=_check_published,
    names=lambda config: names.pairs(config, "published"),
    extras=_turns,
    describe=_published,
    unsaid=_unpublished,
)
LAYOUTS = {
    "xtrimo": "xtrimo.layouts:XTRIMO",
    "proteinglm": "xtrimo.layouts:PROTEINGLM",
    "hf": "xtrimo.huggingface:LAYOUT",
}
"""Name -> module:row; imported only when it is asked for."""


def find_layout(name: str) -> Layout:
    """The row of this name.

    Raises:
        ConfigError: there is none; lists the known.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"no layout {name!r}; known: {', '.join(LAYOUTS)}")
    module, _, row = LAYOUTS[name].partition(":")
    found: Layout = getattr(importlib.import_module(module), row)
    return found
