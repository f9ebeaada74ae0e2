"""The words of a model as a fast tokenizer of transformers: the same ids, letter by letter.

Its files are plain `tokenizers`, so that transformers reads them without this package. Two things differ from
`xtrimo.Tokenizer`, as they do in all tokenizers of transformers: a letter that is no residue becomes <unk> and raises
nothing, and `-` and `.` are words.
"""

import re

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Words
from transformers import PreTrainedTokenizerFast

from xtrimo.config import GLMConfig
from xtrimo.reading import PROMPT_WORDS, reads_both_ways
from xtrimo.tokens import EOS, RESIDUES, Tokenizer

NAMED = {"pad_token": "<pad>", "mask_token": "<mask>", "eos_token": "<eos>", "unk_token": "<unk>"}


def build_tokenizer(config: GLMConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of a model.

    It closes a protein by <eos>; for a model that only writes it opens it by <gmask><sop><eos> as well. With
    add_special_tokens=False it writes what is there, such as a prompt `<gmask><sop><eos>MKV`. Models that generate are
    padded on the left, as `generate` needs it.
    """
    words = Tokenizer(config.control_words).words
    special = [word for word in words if re.fullmatch("<.*>", word)]
    unnamed = [word for word in special if word not in NAMED.values()]
    backend = Words(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=NAMED["unk_token"]))
    stop_codon = normalizers.Replace(Regex(r"\*\z"), "")
    upper = [normalizers.Replace(letter.lower(), letter) for letter in RESIDUES]
    backend.normalizer = normalizers.Sequence([stop_codon, *upper])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    opening = [] if reads_both_ways(config) else [words[i] for i in PROMPT_WORDS]
    used = sorted({*opening, words[EOS]})
    backend.post_processor = processors.TemplateProcessing(
        single=[*opening, "$A", words[EOS]], pair=[*opening, "$A", words[EOS], "$B", words[EOS]],
        special_tokens=[(word, words.index(word)) for word in used],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **NAMED, extra_special_tokens=unnamed, model_max_length=config.max_length,
        padding_side="right" if config.prompt_style == "none" else "left",
        model_input_names=["input_ids", "attention_mask"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
