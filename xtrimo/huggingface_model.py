"""The GLM as models of Hugging Face transformers: its weights under `glm.`, a head where a task wants one.

The GLM inside is the plain one of model.py, and its logits are the ones it gives there: a padded batch is packed on the
way in (see huggingface_rows.py) and laid out again on the way out, with zeros at the padding.

What transformers offers and a GLM has not, is refused by name: other masks than of padding, embeddings in place of
words, attention maps (`xtrimo.backbone.attentions` forms them), static caches, a resized vocabulary.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from xtrimo.attention import within
from xtrimo.config import Objective
from xtrimo.errors import CheckpointError, ConfigError, SequenceError
from xtrimo.huggingface_config import XtrimoConfig
from xtrimo.huggingface_files import README, card_of
from xtrimo.huggingface_rows import Packed, keeping, pack_batch, seen_of
from xtrimo.model import GLM
from xtrimo.published import STATED
from xtrimo.tokens import FIRST_RESIDUE, LAST_RESIDUE

IGNORED = -100
"""The label of transformers that asks nothing."""
DRAWN = "_is_hf_initialized"
"""What transformers calls a weight, or a module, that has its values."""
ANSWERED = ("output_hidden_states", "return_dict")
REFUSED = {
    "inputs_embeds": "a GLM reads words, from which their positions follow; give input_ids",
    "output_attentions": "attention maps are not formed here; xtrimo.backbone.attentions gives those of one protein",
    "position_ids": "positions follow from the words <gmask>, <smask> and <sop>; leave them out",
}
"""What transformers offers and a GLM has not."""
Ids = Int[Tensor, "batch length"]
States = Float[Tensor, "batch length dim"]
Layers = tuple[States, ...]
"""All states, from the embedding to the final ones; or the final ones alone. Zeros at the padding."""


class Read(NamedTuple):
    """What the GLM made of a batch."""

    layers: Layers
    packed: Packed


class XtrimoPreTrainedModel(PreTrainedModel):
    """What the models share.

    Args:
        config: of the GLM and the task.
        glm: its weights; by default drawn anew, by torch's seed.
    """

    config_class = XtrimoConfig
    accepts_loss_kwargs = False  # the loss is a mean; Trainer then averages over the steps of an update

    def __init__(self, config: XtrimoConfig, glm: GLM | None = None) -> None:
        super().__init__(config)
        is_to_be_filled = torch.empty(0).device.type == "meta"  # by from_pretrained
        seed = None if is_to_be_filled else int(torch.randint(2**62, ()))
        self.glm = GLM(config.glm_config, seed=seed) if glm is None else glm
        if not is_to_be_filled:
            for module in self.glm.modules():
                setattr(module, DRAWN, True)  # or transformers would draw the weights by a law of its own

    @classmethod
    def from_glm(cls, glm: GLM, **settings: Any) -> Any:
        """The model around a GLM, whose weights it shares; a head is drawn.

        Args:
            settings: of the config, such as num_labels.
        """
        return cls(XtrimoConfig(glm=glm.config.to_dict(), dtype=glm.dtype, **settings), glm).eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Draw a head. Of the GLM nothing may be missing: a model of some random weights looks like a trained one."""
        if type(module) is nn.Linear:  # those of a GLM are of classes of its own
            return super()._init_weights(module)
        for name, weight in module.named_parameters(recurse=False):
            if not getattr(weight, DRAWN, False):
                raise CheckpointError(
                    f"the files hold no {name} of shape {tuple(weight.shape)} for a {type(module).__name__} of the GLM;"
                    " copy the whole model directory again"
                )

    def get_input_embeddings(self) -> nn.Module:
        """One row a word."""
        return self.glm.embedding

    def get_output_embeddings(self) -> nn.Module:
        """One row a word; not tied to the input's."""
        return self.glm.output

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: Any, **__: Any) -> nn.Module:
        """The embedding as it is: it has free rows for words to come.

        Raises:
            ConfigError: for more words than it has rows, or fewer.
        """
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ConfigError(
                f"the vocabulary has {self.config.vocab_size} rows, got {new_num_tokens}; words of your own take free"
                " rows, so none need be added: leave out the call"
            )
        return self.glm.embedding

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers saves a model, and a card that states the licence, if the directory has none.

        What another model there stated of its files is removed.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        (Path(save_directory) / STATED).unlink(missing_ok=True)
        path = Path(save_directory) / README
        if not path.exists():
            path.write_text(card_of(self.config.glm_config), "utf-8")

    def _read(self, ids: Ids, attention_mask: Tensor | None, options: dict[str, Any], cache: Any = None) -> Read:
        """The states of a batch, whose keys and values go to an empty cache.

        Raises:
            ConfigError: something that a GLM cannot be asked.
            SequenceError: words in an order that it was not trained on.
        """
        asked = self._asked_layers(options)
        packed = pack_batch(ids, seen_of(ids, attention_mask), self.glm.config)
        attend = within(packed.segments) if cache is None else keeping(packed, cache.update)
        states = self.glm.hidden(packed.tokens, packed.positions, attend, layers=asked)
        return Read(tuple(packed.padded(x) for x in states), packed)

    def _asked_layers(self, options: dict[str, Any]) -> tuple[int, ...]:
        """The layers whose states are asked for.

        Raises:
            ConfigError: something else is asked for, that a GLM does not have.
        """
        given = {name for name, value in options.items() if value is not None and value is not False}
        for name, reason in REFUSED.items():
            if name in given:
                raise ConfigError(f"{name}: {reason}")
        if unknown := given - {*ANSWERED}:
            raise ConfigError(
                f"a GLM takes no {', '.join(sorted(unknown))}; expected input_ids, attention_mask, labels,"
                f" {', '.join(ANSWERED)}"
            )
        wanted = options.get("output_hidden_states")
        wants_all = self.config.output_hidden_states if wanted is None else wanted
        return tuple(range(self.glm.num_layers + 1)) if wants_all else (-1,)

    def _logits(self, states: States) -> Float[Tensor, "batch length vocab"]:
        return self.glm.logits(states.flatten(0, 1)).unflatten(0, states.shape[:2])

    def _answer(self, output: Any, layers: Layers, options: dict[str, Any]) -> Any:
        """The output with the states of all layers, if they were asked for; a tuple where that is wanted."""
        if len(layers) > 1:
            output["hidden_states"] = layers
        wanted = options.get("return_dict")
        return output if (self.config.return_dict if wanted is None else wanted) else output.to_tuple()


class XtrimoModel(XtrimoPreTrainedModel):
    """The states of the words of proteins."""

    def __init__(self, config: XtrimoConfig, glm: GLM | None = None) -> None:
        super().__init__(config, glm)
        self.post_init()

    def forward(self, input_ids: Ids, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """`last_hidden_state` (batch, length, dim), after the final norm; zeros at the padding.

        Args:
            attention_mask: 1 for words, 0 for padding; by default all that is not <pad> is a word.
            options: output_hidden_states, return_dict.
        """
        layers, _ = self._read(input_ids, attention_mask, options)
        return self._answer(BaseModelOutput(last_hidden_state=layers[-1]), layers, options)


class XtrimoForMaskedLM(XtrimoPreTrainedModel):
    """Residues at masks.

    Raises:
        ConfigError: of a model that was not trained on masks.
    """

    def __init__(self, config: XtrimoConfig, glm: GLM | None = None) -> None:
        super().__init__(config, glm)
        require(config, ("mlm",), "fills no masks", "AutoModelForCausalLM")
        self.post_init()

    def forward(
        self, input_ids: Ids, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> Any:
        """`logits` (batch, length, vocab); `loss` is the mean of -log p(label), nats.

        Args:
            labels: what stands at each place, -100 where nothing is asked; at the padding nothing ever is.
        """
        layers, packed = self._read(input_ids, attention_mask, options)
        logits = self._logits(layers[-1])
        loss = None if labels is None else loss_of(logits, labels.masked_fill(~packed.seen, IGNORED))
        return self._answer(MaskedLMOutput(loss=loss, logits=logits), layers, options)


class XtrimoForSequenceClassification(XtrimoPreTrainedModel):
    """A value or a class of each protein: a linear head on the mean state of its residues.

    The loss is transformers' by `config.problem_type`, or else by the labels: regression for one label, classes for
    whole numbers, several labels at once for others.
    """

    def __init__(self, config: XtrimoConfig, glm: GLM | None = None) -> None:
        super().__init__(config, glm)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Ids, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> Any:
        """`logits` (batch, label).

        Raises:
            SequenceError: a row without residues.
        """
        layers, packed = self._read(input_ids, attention_mask, options)
        is_residue = (input_ids >= FIRST_RESIDUE) & (input_ids <= LAST_RESIDUE) & packed.seen
        num_residues = is_residue.sum(1, keepdim=True)
        if not num_residues.all():
            raise SequenceError(f"row {int(num_residues.argmin())} of the batch has no residues; give at least one")
        summed = (layers[-1].float() * is_residue[..., None]).sum(1)  # in fp32: bf16 loses the digits of a long sum
        logits = self.classifier((summed / num_residues).to(self.classifier.weight.dtype))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits.float(), config=self.config)
        return self._answer(SequenceClassifierOutput(loss=loss, logits=logits), layers, options)


class XtrimoForTokenClassification(XtrimoPreTrainedModel):
    """A class of each residue: a linear head on its state."""

    def __init__(self, config: XtrimoConfig, glm: GLM | None = None) -> None:
        super().__init__(config, glm)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Ids, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> Any:
        """`logits` (batch, length, label); `loss` over the labels that are not -100."""
        layers, packed = self._read(input_ids, attention_mask, options)
        logits = self.classifier(layers[-1])
        loss = None if labels is None else loss_of(logits, labels.masked_fill(~packed.seen, IGNORED))
        return self._answer(TokenClassifierOutput(loss=loss, logits=logits), layers, options)


def loss_of(logits: Float[Tensor, "batch length class"], labels: Ids) -> Float[Tensor, ""]:
    """The mean of -log p(label), nats, over the labels that are not -100; NaN if there are none."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def require(config: XtrimoConfig, objectives: tuple[Objective, ...], cannot: str, instead: str) -> None:
    """Refuse a model that was trained on none of the objectives.

    Raises:
        ConfigError: naming the class to take instead.
    """
    trained = config.glm_config.objectives
    if not set(trained) & set(objectives):
        raise ConfigError(f"this model {cannot}: it was trained on {', '.join(trained)}; take {instead}")
