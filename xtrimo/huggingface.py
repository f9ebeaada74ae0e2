"""GLMs in Hugging Face transformers. To import this module is to register them with its Auto classes:

    import xtrimo.huggingface
    model = AutoModelForMaskedLM.from_pretrained("models/first-hf")

AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSequenceClassification and
AutoModelForTokenClassification know GLMs from then on, and with them pipelines, Trainer and peft. That is the one thing
in this package that an import does, because a table of transformers' own is where these classes look.

`xtrimo convert M OUT --to hf` writes a directory of transformers from any GLM; `xtrimo.load` and `convert` read it.
"""

from pathlib import Path

import torch

from xtrimo.errors import MissingExtraError

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
except ImportError as error:
    raise MissingExtraError("GLMs in transformers need transformers 5.23; run: pip install 'xtrimo[hf]'") from error

from xtrimo.checkpoint import Stated
from xtrimo.huggingface_config import XtrimoConfig
from xtrimo.huggingface_files import MODEL_TYPE, README, card_of, weight_names
from xtrimo.huggingface_generation import XtrimoForCausalLM, drawing_of
from xtrimo.huggingface_model import (
    XtrimoForMaskedLM,
    XtrimoForSequenceClassification,
    XtrimoForTokenClassification,
    XtrimoModel,
)
from xtrimo.huggingface_tokenizer import build_tokenizer
from xtrimo.layouts import Layout
from xtrimo.published import STATED

CLASSES = {
    AutoModel: XtrimoModel,
    AutoModelForMaskedLM: XtrimoForMaskedLM,
    AutoModelForCausalLM: XtrimoForCausalLM,
    AutoModelForSequenceClassification: XtrimoForSequenceClassification,
    AutoModelForTokenClassification: XtrimoForTokenClassification,
}

AutoConfig.register(MODEL_TYPE, XtrimoConfig)
for _auto, _ours in CLASSES.items():
    _auto.register(XtrimoConfig, _ours)


def _describe(directory: Path, stated: Stated, dtype: torch.dtype, notes: str) -> None:
    """The card, the tokenizer, for a model that generates how it draws, and config.json."""
    config = stated.config
    (directory / README).write_text(card_of(config, notes), "utf-8")
    (directory / STATED).write_text(stated.to_json(), "utf-8")
    build_tokenizer(config).save_pretrained(directory)
    if config.prompt_style != "none":
        drawing_of(config).save_pretrained(directory)
    architecture = XtrimoForMaskedLM if "mlm" in config.objectives else XtrimoForCausalLM
    XtrimoConfig(glm=config.to_dict(), dtype=dtype, architectures=[architecture.__name__]).save_pretrained(directory)


LAYOUT = Layout(
    check=lambda config: None,
    names=weight_names,
    extras=lambda config, dtype: {},
    describe=_describe,
    unsaid=lambda config: [],
)
"""A directory of transformers, as a row of LAYOUTS."""
