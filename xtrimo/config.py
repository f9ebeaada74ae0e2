"""What a GLM is: its shape, its rotary layout, and what it was trained to do. PRESETS holds every shape by name.

A model directory's `config.json` is this dataclass, so every verb asks the model, never its name: which objectives it
knows, how a prompt is written, which reading directions it has seen, under which licence its weights stand.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from xtrimo.errors import ConfigError
from xtrimo.tokens import CONTROL_WORDS, PUBLISHED_WORDS, VOCAB_SIZE

Objective = Literal["mlm", "gmask", "smask", "causal"]
Rotary = Literal["1d", "2d"]
Direction = Literal["forward", "reverse"]
Quantization = Literal["none", "int4", "int8", "int8-dynamic"]
CONVERTED = {"rotary_frequencies": None, "output_bias": False, "quantization": "none"}
"""Fields that only weights from elsewhere set, and what ours have."""
GENERATIVE: tuple[Objective, ...] = ("gmask", "causal")


@dataclass(frozen=True, kw_only=True, slots=True)
class GLMConfig:
    """Shape and training facts of one GLM. Impossible combinations raise ConfigError."""

    num_layers: int
    """Transformer blocks; also sets the DeepNorm residual scale alpha = sqrt(2 * num_layers)."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Attention heads; hidden_size must be a multiple of it."""
    ffn_size: int
    """Inner width of the GEGLU; the first linear is twice as wide."""
    rotary: Rotary = "2d"
    """1d: place in the chain. 2d: half of each head turns by the place in the chain, half by that in the span."""
    objectives: tuple[Objective, ...] = ("mlm", "gmask", "smask")
    """What the weights were trained on."""
    directions: tuple[Direction, ...] = ("forward", "reverse")
    """Reading directions seen in generation; "reverse" needs the control word <rev>."""
    max_length: int = 2048
    """Longest training row, tokens. Longer input runs, with a warning."""
    vocab_size: int = VOCAB_SIZE
    """Rows of the embedding and of the output layer."""
    control_words: tuple[str, ...] = CONTROL_WORDS
    """Our words in the free vocabulary rows, from row 36."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    rotary_frequencies: tuple[float, ...] | None = None
    """Radians a step of each pair of a channel, where the weights bring their own; by default 1/base^(2i/width)."""
    output_bias: bool = False
    """Whether the output layer adds a bias."""
    quantization: Quantization = "none"
    """int4, int8: the linear layers of the blocks are stored as signed numbers of so many bits with one scale a row.
    int8-dynamic: as int8, and multiplied in eight bits, which a CPU does faster."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in each LayerNorm."""
    initializer_std: float = 0.02
    """Standard deviation of the freshly drawn embedding and output rows."""
    licence: str = "Apache-2.0"
    """Licence of the weights."""
    source: str = ""
    """Where the weights come from, one line."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "num_heads", "ffn_size", "max_length", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number, at least 1")
        for name in ("rotary_base", "layer_norm_eps", "initializer_std"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.vocab_size < len(PUBLISHED_WORDS) + len(self.control_words):
            raise ConfigError(
                f"vocab_size {self.vocab_size} has no room for {len(PUBLISHED_WORDS)} published words and"
                f" {len(self.control_words)} control words"
            )
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}, which share it"
            )
        if self.rotary not in get_args(Rotary):
            raise ConfigError(f"rotary is {self.rotary!r}; it must be 1d or 2d")
        pairs = 4 if self.rotary == "2d" else 2
        if self.head_dim % pairs:
            raise ConfigError(
                f"head_dim {self.head_dim} is not a multiple of {pairs}, which {self.rotary} rotary needs"
            )
        self._check_storage()
        for name, known in (("objectives", get_args(Objective)), ("directions", get_args(Direction))):
            if not getattr(self, name) or set(getattr(self, name)) - set(known):
                raise ConfigError(f"{name} {getattr(self, name)} must be some of {', '.join(known)}")
        if self.rotary == "1d" and self.objectives not in (("mlm",), ("causal",)):
            raise ConfigError(
                f"1d rotary cannot train {self.objectives}: with one position channel it is mlm alone, or causal alone"
                " (empty source); gmask and smask need the second to tell a target from its place; use rotary 2d"
            )
        if "reverse" in self.directions and "<rev>" not in self.control_words:
            raise ConfigError("directions name reverse but control_words lack <rev>, which marks it")

    def _check_storage(self) -> None:
        if self.quantization not in get_args(Quantization):
            known = ", ".join(get_args(Quantization))
            raise ConfigError(f"quantization is {self.quantization!r}; it must be one of {known}")
        if self.quantization == "int4" and (self.hidden_size % 2 or self.ffn_size % 2):
            raise ConfigError(
                f"int4 stores two numbers of a row in a byte: hidden_size {self.hidden_size} and ffn_size"
                f" {self.ffn_size} must be even"
            )
        given, channels = self.rotary_frequencies, 2 if self.rotary == "2d" else 1
        num_pairs = self.head_dim // channels // 2
        if given is not None and not (len(given) == num_pairs and all(0 < x < math.inf for x in given)):
            raise ConfigError(
                f"rotary_frequencies must be {num_pairs} positive numbers, one for each pair of a channel; got {given}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def alpha(self) -> float:
        """DeepNorm residual scale, sqrt(2L) (GLM-130B, section 2.1)."""
        return math.sqrt(2 * self.num_layers)

    @property
    def beta(self) -> float:
        """DeepNorm gain of the initial value, output and feed-forward weights, 1/sqrt(2L)."""
        return 1 / self.alpha

    @property
    def prompt_style(self) -> Literal["gmask", "none"]:
        """gmask: generation starts from `<gmask><sop><eos>`; none: the model only fills masks."""
        return "gmask" if set(self.objectives) & set(GENERATIVE) else "none"

    @property
    def converted(self) -> dict[str, Any]:
        """The fields of weights from elsewhere in which these differ from ours."""
        return {name: getattr(self, name) for name, ours in CONVERTED.items() if getattr(self, name) != ours}

    @property
    def num_params(self) -> int:
        """Number of weights: embedding, blocks, final norm, untied output layer. A quantized weight counts as one."""
        h, f = self.hidden_size, self.ffn_size
        attention = 3 * h * h + 3 * h + h * h + h
        mlp = h * 2 * f + 2 * f + f * h + h
        output = self.vocab_size * (h + self.output_bias)
        return self.vocab_size * h + self.num_layers * (attention + mlp + 4 * h) + 2 * h + output

    def flops_per_token(self, length: float) -> float:
        """Multiply-adds (counted as 2) of one forward pass per token, in a segment of `length` tokens seen in full.

        A training step costs three times this. Attention counts 4 * length * hidden_size a layer, unhalved for causal.
        """
        h, f = self.hidden_size, self.ffn_size
        return self.num_layers * (2 * (4 * h * h + 3 * h * f) + 4 * length * h) + 2 * self.vocab_size * h

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; it also states what follows from the fields for who reads it elsewhere.

        What only converted weights have goes unsaid where it is the default: a training run compares these facts with
        those that it began with, perhaps before there was such a field.
        """
        usual = {name: value for name, value in dataclasses.asdict(self).items() if name not in CONVERTED}
        return {**usual, **self.converted, "prompt_style": self.prompt_style}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "GLMConfig":
        """The inverse of `to_dict`, also after a trip through JSON, which turns tuples into lists.

        Raises:
            TypeError: a field is missing or unknown.
            ConfigError: the stated prompt style is not that of the objectives.
        """
        own: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
        style = own.pop("prompt_style", None)
        config = cls(**own)
        if style not in (None, config.prompt_style):
            raise ConfigError(
                f"prompt_style is {style!r}, but objectives {config.objectives} make it {config.prompt_style}"
            )
        return config


def _published(layers: int, hidden: int, heads: int, ffn: int, objective: Objective, **changes: Any) -> GLMConfig:
    facts: dict[str, Any] = dict(
        num_layers=layers, hidden_size=hidden, num_heads=heads, ffn_size=ffn, rotary="1d", objectives=(objective,),
        directions=("forward",), max_length=1024, control_words=(), licence="CC-BY-NC-4.0",
        source="shape of a published ProteinGLM checkpoint",
    )  # fmt: skip
    return GLMConfig(**(facts | changes))


def _ours(layers: int, hidden: int, ffn: int) -> GLMConfig:
    return GLMConfig(num_layers=layers, hidden_size=hidden, num_heads=hidden // 64, ffn_size=ffn)


# Ours: head_dim 64, even layers and heads, ffn the multiple of 64 nearest to 8/3 of the width, so that any
# tensor-parallel degree up to the head count divides them.
PRESETS: dict[str, GLMConfig] = {
    "glm-1m": _ours(6, 128, 320),
    "glm-8m": _ours(10, 256, 704),
    "glm-35m": _ours(12, 512, 1344),
    "glm-150m": _ours(20, 768, 2048),
    "proteinglm-1b": _published(24, 2048, 32, 5461, "mlm"),
    "proteinglm-3b": _published(36, 2560, 40, 6832, "mlm"),
    "proteinglm-7b": _published(36, 4096, 32, 10922, "causal"),
    "proteinglm-10b": _published(47, 4352, 34, 11605, "mlm"),
    "xtrimopglm-100b": _published(
        72, 10240, 80, 31744, "mlm", objectives=("mlm", "gmask"), rotary="2d", max_length=2048
    ),
}


def preset(name: str) -> GLMConfig:
    """The config called `name`.

    Raises:
        ConfigError: listing the known names.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
