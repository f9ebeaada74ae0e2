"""`generate` of transformers for a GLM: prompts, their cache, and what may be written.

Keys and values are kept in transformers' own dynamic cache, padded as the batch is, so that beams and assistants work.
The prompt is read packed, since part of it is seen by all; each word after that is one step that sees the cache. Where
a word stands follows from the whole prompt, so `prepare_inputs_for_generation` works it out and hands it over.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from xtrimo.config import GENERATIVE, GLMConfig
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.huggingface_config import XtrimoConfig
from xtrimo.huggingface_model import ANSWERED, IGNORED, Ids, Layers, XtrimoPreTrainedModel, loss_of, require
from xtrimo.huggingface_rows import Continued, Packed, asked, layouts_of, seen_of
from xtrimo.model import GLM
from xtrimo.tokens import AMINO_ACIDS, EOP, EOS, FIRST_RESIDUE, PAD


class XtrimoForCausalLM(XtrimoPreTrainedModel, GenerationMixin):
    """Proteins from left to right, from a prompt: <gmask><sop><eos>MKV, or M<smask>A<eos><sop> for a gap.

    `generate` draws from the 20 amino acids, and ends with <eos>, or with <eop> where it fills a gap.

    Raises:
        ConfigError: of a model that was not trained to generate.
    """

    def __init__(self, config: XtrimoConfig, glm: GLM | None = None) -> None:
        super().__init__(config, glm)
        require(config, GENERATIVE, "only fills masks", "AutoModelForMaskedLM")
        self.generation_config = drawing_of(config.glm_config)
        self.post_init()

    def forward(
        self,
        input_ids: Ids,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        places: Int64[Tensor, "batch length 2"] | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> Any:
        """`logits` (batch, length, vocab) of the word after each; `loss` is the mean of -log p(next word), nats.

        What a prompt gives was never trained to be said, so nothing is asked there: all up to <sop>, <eos> after it.

        Args:
            attention_mask: 1 for words, 0 for padding; by default all that is not <pad> is a word. With words in a
                cache, of these as well.
            labels: the words themselves, not shifted; -100 where nothing is asked.
            past_key_values: a dynamic cache; an empty one is filled.
            places: positions of words that follow a cache; of all others they follow from the words.
            logits_to_keep: for how many words at the end; 0 for all.

        Raises:
            SequenceError: a row that is no prompt.
            ConfigError: something that a GLM cannot be asked.
        """
        cache = DynamicCache(config=self.config) if use_cache and past_key_values is None else past_key_values
        num_before = _num_kept(cache)
        if labels is not None and (num_before or logits_to_keep):
            raise ConfigError("labels ask for whole proteins; leave out the words in the cache, or logits_to_keep")
        if num_before:
            layers, packed = self._go_on(input_ids, attention_mask, options, cache, places), None
        else:
            layers, packed = self._read(input_ids, attention_mask, options, cache)
            _require_prompts(packed, self.glm.config.rotary)
        logits = self._logits(layers[-1][:, -logits_to_keep:])
        loss = None
        if labels is not None and packed is not None:
            loss = loss_of(logits, asked(labels, packed, ignore=IGNORED))
        return self._answer(CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache), layers, options)

    def prepare_inputs_for_generation(
        self,
        input_ids: Ids,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """What `generate` hands to `forward`: the words that are not in the cache, and where they stand.

        Raises:
            SequenceError: a prompt that ends with padding, or a row that is no prompt.
        """
        seen = seen_of(input_ids, attention_mask)
        if not seen[:, -1].all():
            raise SequenceError("a prompt ends with padding, and would go on after it; pad left: padding_side='left'")
        num_before = _num_kept(past_key_values)
        inputs = {name: settings[name] for name in ("use_cache", "logits_to_keep", *ANSWERED) if name in settings}
        inputs |= {"attention_mask": seen, "past_key_values": past_key_values}
        if not num_before:
            return inputs | {"input_ids": input_ids}
        new = input_ids[:, num_before:]
        return inputs | {"input_ids": new, "places": _places(input_ids, seen, new.shape[1], self.glm.config)}

    def _go_on(
        self, ids: Ids, attention_mask: Tensor | None, options: dict[str, Any], cache: Any, places: Tensor | None
    ) -> Layers:
        """The states of words after those in a cache; no row has padding among them."""
        num_all, num_new = _num_kept(cache) + ids.shape[1], ids.shape[1]
        if places is None:
            raise ConfigError("words after a cache need places, their positions (batch, new, 2), as `generate` gives")
        seen = ids.new_ones(len(ids), num_all) if attention_mask is None else attention_mask
        if seen.shape[1] != num_all:
            raise ConfigError(
                f"attention_mask has {seen.shape[1]} columns; with the words in the cache expected {num_all}"
            )
        attend = Continued(seen.bool(), num_new, cache.update).attend
        states = self.glm.hidden(ids.flatten(), places.flatten(0, 1), attend, layers=self._asked_layers(options))
        return tuple(x.unflatten(0, ids.shape) for x in states)


def drawing_of(config: GLMConfig) -> GenerationConfig:
    """How proteins are drawn unless a call says otherwise: the 20 amino acids by the model's own law, to the end."""
    written = {*range(FIRST_RESIDUE, FIRST_RESIDUE + len(AMINO_ACIDS)), EOS, EOP}
    return GenerationConfig(
        do_sample=True, top_k=0, pad_token_id=PAD, eos_token_id=[EOS, EOP],
        suppress_tokens=[i for i in range(config.vocab_size) if i not in written],
    )  # fmt: skip


def _num_kept(cache: Any) -> int:
    """How many words of each row a cache holds, padding included.

    Raises:
        ConfigError: a static cache.
    """
    if cache is None:
        return 0
    if cache.is_compileable:
        raise ConfigError("a static cache is laid out for masks that a GLM does not form; take the dynamic one")
    return int(cache.get_seq_length())


def _require_prompts(packed: Packed, rotary: str) -> None:
    """Refuse rows that are read in both directions, where each word would be said with itself in sight.

    Raises:
        SequenceError: naming the first such row.
    """
    for i, one in enumerate(packed.layouts):
        if rotary == "2d" and not one.first_answer:
            raise SequenceError(
                f"row {i} of the batch has no <sop>, so it is read in both directions; to generate, begin with"
                " <gmask><sop><eos>, as in tokenizer('<gmask><sop><eos>MKV', add_special_tokens=False)"
            )


def _places(ids: Ids, seen: Bool[Tensor, "batch length"], num_new: int, config: GLMConfig) -> Tensor:
    """Positions (batch, new, 2) of the last words of each row."""
    layouts = layouts_of(ids, seen, config)
    return torch.stack([torch.from_numpy(one.positions[-num_new:]) for one in layouts]).to(ids.device)
