"""The GLM on one device: the specification that every other form of the model is tested against.

Read top to bottom, this file is the forward pass: embedding, blocks, final norm, output. A block is post-LN DeepNorm in
the order of GLM-130B and xTrimoPGLM: the residual is the *output* of the LayerNorm, scaled by alpha = sqrt(2L),

    x = norm(x);  x = alpha x + attention(x);  x = norm(x);  x = alpha x + mlp(x)

the last norm being the model's final one. Rows are packed: tokens of many proteins lie back to back, only attention
knows where one ends (see attention.py); there is no batch axis and no padding.
"""

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtrimo.attention import Attend, within
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError
from xtrimo.objectives import Example
from xtrimo.quantization import LINEARS, QuantizedLinear
from xtrimo.reading import PROMPT_WORDS, read_as, reads_both_ways
from xtrimo.rope import Rotary, rotary, rotate
from xtrimo.tokens import MASK, encode_residues

Hidden = Float[Tensor, "token dim"]


class _Linear(nn.Linear):
    """A linear layer whose weights are left undefined: `draw_weight` or a checkpoint fills them, once."""

    def reset_parameters(self) -> None:
        pass


def _linear(config: GLMConfig, in_features: int, out_features: int) -> nn.Linear | QuantizedLinear:
    """A linear layer of a block, stored as the config says."""
    return LINEARS.get(config.quantization, _Linear)(in_features, out_features)


class Attention(nn.Module):
    """Multi-head attention; rows of `qkv` are grouped per head as [q, k, v], the published layout."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.shape = (config.num_heads, 3, config.head_dim)
        self.qkv = _linear(config, config.hidden_size, 3 * config.hidden_size)
        self.dense = _linear(config, config.hidden_size, config.hidden_size)

    def forward(self, x: Hidden, turn: Rotary, attend: Attend, layer: int) -> Hidden:
        qk, v = self.qkv(x).unflatten(-1, self.shape).split((2, 1), dim=2)  # each (token, head, (q k | v), width)
        q, k = rotate(qk, turn).unbind(2)
        mixed = attend(layer, q, k, v.squeeze(2))
        return self.dense(mixed.flatten(1))


class GEGLU(nn.Module):
    """down(value * gelu(gate)) with [value; gate] = up(x) and the exact, erf-based gelu (Shazeer 2020)."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.up = _linear(config, config.hidden_size, 2 * config.ffn_size)
        self.down = _linear(config, config.ffn_size, config.hidden_size)

    def forward(self, x: Hidden) -> Hidden:
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


class DeepNormBlock(nn.Module):
    """One transformer block; see the module's equation."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.alpha = config.alpha
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = GEGLU(config)

    def forward(self, x: Hidden, turn: Rotary, attend: Attend, layer: int) -> Hidden:
        x = self.attention_norm(x)
        x = torch.add(self.attention(x, turn, attend, layer), x, alpha=self.alpha)
        x = self.mlp_norm(x)
        return torch.add(self.mlp(x), x, alpha=self.alpha)


class GLM(nn.Module):
    """A protein GLM.

    Args:
        config: the shape.
        seed: draws the weights; None leaves them undefined, for a loader that fills every one.
    """

    def __init__(self, config: GLMConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(
            config.vocab_size, config.hidden_size, _weight=torch.empty(config.vocab_size, config.hidden_size)
        )
        self.blocks = nn.ModuleList(DeepNormBlock(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.output = _Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        if seed is not None:
            if config.quantization != "none":
                raise ConfigError(f"{config.quantization} weights cannot be drawn; load them from a checkpoint")
            for name, weight in self.state_dict().items():
                weight.copy_(draw_weight(name, tuple(weight.shape), config, seed))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and activations."""
        return self.output.weight.dtype

    @property
    def width(self) -> int:
        """Numbers in the state of one token."""
        return self.config.hidden_size

    @property
    def num_layers(self) -> int:
        """Blocks."""
        return self.config.num_layers

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        return self.config.num_heads

    @property
    def max_length(self) -> int:
        """Tokens of the longest training row."""
        return self.config.max_length

    @property
    def words_around(self) -> tuple[int, int]:
        """Words that `tokenize` writes before the first residue and after the last."""
        return (0 if reads_both_ways(self.config) else len(PROMPT_WORDS)), 1

    @property
    def cls(self) -> None:
        """No word was trained to stand for the whole protein."""
        return None

    @property
    def mask(self) -> int | None:
        """The word that MLM training replaced residues by; None without MLM."""
        return MASK if "mlm" in self.config.objectives else None

    @property
    def facts(self) -> dict[str, Any]:
        """The configuration, but for where the weights come from."""
        return {name: value for name, value in self.config.to_dict().items() if name not in ("licence", "source")}

    def tokenize(self, sequence: str, *, name: str = "sequence") -> Example:
        """`R1..Rn<eos>`, or `<gmask><sop><eos>R1..Rn<eos>` for a model that only writes from left to right.

        Raises:
            SequenceError: an empty sequence or unknown letter, naming `name`.
        """
        return read_as(encode_residues(sequence, name=name), self.config)

    def logits(self, hidden: Hidden) -> Float[Tensor, "token vocab"]:
        """A score for each row of the vocabulary, from final states."""
        return self.output(hidden)

    def forward(
        self, tokens: Int[Tensor, "token"], positions: Int[Tensor, "token 2"], segments: Int[Tensor, "segment 3"]
    ) -> Float[Tensor, "token vocab"]:
        """Logits of a packed row (see packing.py for the layout)."""
        return self.logits(self.hidden(tokens, positions, within(segments))[-1])

    def hidden(
        self,
        tokens: Int[Tensor, "token"],
        positions: Int[Tensor, "token 2"],
        attend: Attend,
        *,
        layers: tuple[int, ...] = (-1,),
        input_gradient: float = 1.0,
    ) -> list[Hidden]:
        """Hidden states after the asked layers, in that order.

        Args:
            attend: mixes values between tokens; a packed row's segments or a KV cache.
            layers: 0 is the embedding, i the output of block i, -1 the last one after the final norm, which is what
                the output layer reads.
            input_gradient: scale of the gradient that reaches the embedding (GLM-130B, section 3.2: 0.1 calms it).
        """
        wanted = counted_from_start(layers, len(self.blocks))
        x = self.embedding(tokens)
        if input_gradient != 1.0:
            x = torch.lerp(x.detach(), x, input_gradient)  # the value stays the same to the bit
        turn = rotary(positions, self.config, x.dtype)
        states = {0: x}
        for layer, block in enumerate(self.blocks):
            x = block(x, turn, attend, layer)
            if layer + 1 in wanted:
                states[layer + 1] = x
        states[len(self.blocks)] = self.final_norm(x)
        return [states[i] for i in wanted]


def counted_from_start(layers: tuple[int, ...], num_blocks: int) -> list[int]:
    """The places 0..num_blocks that `hidden` is asked for.

    Raises:
        ConfigError: a layer that the model does not have.
    """
    count = num_blocks + 1
    if not all(-count <= i < count for i in layers):
        raise ConfigError(f"layers {layers} of a model of {num_blocks} blocks: each lies in -{count}..{num_blocks}")
    return [i % count for i in layers]


def draw_weight(name: str, shape: tuple[int, ...], config: GLMConfig, seed: int) -> Tensor:
    """The fresh value of one weight of the plain model, by its name; fp32 on the CPU.

    DeepNorm's law (Wang et al. 2022, GLM-130B table 11): Xavier-normal, with gain beta = 1/sqrt(2L) for the value rows,
    the attention output and the feed-forward, gain 1 for query and key rows; embedding and output rows N(0, std).
    Each weight has its own random stream, so a rank of a parallel job draws its own weights and every layout of the
    job starts from the same model.
    """
    layer, kind = name.split(".")[-2:]
    if kind == "bias":
        return torch.zeros(shape)
    if layer in ("attention_norm", "mlp_norm", "final_norm"):
        return torch.ones(shape)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(_stream(name, seed)))
    if layer in ("embedding", "output"):
        return weight * config.initializer_std
    if layer == "qkv":
        # each of q, k, v is a square matrix of its own to Xavier; stored interleaved per head
        gain = torch.tensor([1.0, 1.0, config.beta]).repeat_interleave(config.head_dim).repeat(config.num_heads)
        return weight * (gain / shape[1] ** 0.5)[:, None]
    rows = shape[0] // 2 if layer == "up" else shape[0]  # value and gate are drawn as two matrices
    return weight * (config.beta * (2 / (rows + shape[1])) ** 0.5)


def _stream(name: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
