"""ESMFold's block: a track of residues, and triangle attention beside the triangle multiplications.

    s += attention(LN(s), bias LN(z));  s += transition(s)                        residues; their pairs say who listens
    z_ij += W [k_i * q_j, q_j - k_i]                                              outer product and difference of them
    z: outgoing, incoming (`triangle`), attention around the starting and the ending node, transition

Triangle attention (Jumper et al. 2021, supplement, algorithms 13 and 14): in row i of z, pair (i, j) listens to the
pairs (i, k), the more the closer the third side (j, k) says they are:

    z_ij += W_o sigmoid(g_ij) * sum_k softmax_k(q_ij k_ik / sqrt(width) + b_jk) v_ik          b = W_b LN(z)

around the ending node the same of z transposed. q, k, v and g are one product; b is the same of every row, so that it
is one mask of torch's fused attention, which forms no row of scores for each pair. Padding is -1e9 in it.

Source: Lin et al. 2023, supplement A.3.1. Equal in weights and numbers to the block of transformers, in other words and
another order (`published`); its memory without gradients is that of `triangle`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from structure.triangle import (
    Pair,
    PairMask,
    SharedDropout,
    Transition,
    TriangleMultiplication,
    add_by_rows,
    normed,
    parts,
    precision,
    rows_at_once,
)  # fmt: skip

Single = Float[Tensor, "batch length single"]
Mask = Float[Tensor, "batch length"]
Bias = Float[Tensor, "batch head length length"]
HIDDEN = -1e9
"""Added to the scores of padding."""


class BiasedAttention(nn.Module):
    """Gated attention along each row, with a bias that all rows share."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project_in = nn.Linear(width, 4 * width, bias=False)  # q, k, v, g
        self.gate_bias = nn.Parameter(torch.ones(width))
        self.project_out = nn.Linear(width, width)
        with torch.no_grad():
            for part in self.project_in.weight[: 3 * width].chunk(3):
                nn.init.xavier_uniform_(part)
            self.project_in.weight[3 * width :] = 0
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(
        self, x: Float[Tensor, "row length dim"], bias: Float[Tensor, "head length length"]
    ) -> Float[Tensor, "row length dim"]:
        """What each place of each row hears."""
        q, k, v, g = self.project_in(x).chunk(4, dim=-1)
        # (row, length, dim) -> (row, head, length, width)
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, k, v))
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(x), *bias.shape))
        gate = (g + self.gate_bias.to(g.dtype)).sigmoid_()
        out: Tensor = self.project_out(heard.transpose(1, 2).flatten(2) * gate)
        return out


class PairBias(nn.Module):
    """Of each pair a number per head, and of padding HIDDEN."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, num_heads, bias=False)
        nn.init.kaiming_normal_(self.project.weight, nonlinearity="linear")

    def forward(self, z: Pair, norm: nn.LayerNorm, mask: Mask, chunk: int | None) -> Bias:
        """(batch, head, length, length), in the precision of the weights; `norm` is that of z."""
        hidden = (1 - mask)[:, None, None] * HIDDEN
        if torch.is_grad_enabled():
            return self._of(z, norm) + hidden
        found = z.new_empty(z.shape[0], self.project.out_features, *z.shape[1:3], dtype=precision(self.project))
        for part in parts(z.shape[1], rows_at_once(z, chunk)):
            found[:, :, part] = self._of(z[:, part], norm)
        return found.add_(hidden)

    def _of(self, z: Tensor, norm: nn.LayerNorm) -> Tensor:
        bias: Tensor = self.project(normed(norm, z, self.project))
        return bias.permute(0, 3, 1, 2)


class TriangleAttention(nn.Module):
    """See the module.

    Args:
        starting: around the starting node, else the ending one.
        dropout: of the update, whole rows (starting) or columns of it.
    """

    def __init__(self, width: int, num_heads: int, *, starting: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.starting = starting
        self.norm = nn.LayerNorm(width)
        self.bias = PairBias(width, num_heads)
        self.attention = BiasedAttention(width, num_heads)
        self.drop = SharedDropout(dropout, dim=2 if starting else 1)

    def forward(self, z: Pair, mask: Mask, chunk: int | None = None) -> Pair:
        """The updated pairs; without gradients `z` itself is updated and given back."""
        rows = z if self.starting else z.transpose(1, 2)
        bias = self.bias(rows, self.norm, mask, chunk)
        if torch.is_grad_enabled():
            update = self._update(rows, bias)
            return z + self.drop(update if self.starting else update.transpose(1, 2))
        add_by_rows(rows, lambda part: self._update(part, bias), rows_at_once(z, chunk))  # a view: z is updated
        return z

    def _update(self, rows: Tensor, bias: Bias) -> Tensor:
        x = normed(self.norm, rows, self.attention.project_in)
        return torch.stack([self.attention(own, own_bias) for own, own_bias in zip(x, bias, strict=True)])


class SingleAttention(nn.Module):
    """Residues listen to each other, as their pairs say."""

    def __init__(self, width: int, pair_width: int, num_heads: int) -> None:
        super().__init__()
        self.norm, self.norm_pair = nn.LayerNorm(width), nn.LayerNorm(pair_width)
        self.bias = PairBias(pair_width, num_heads)
        self.attention = BiasedAttention(width, num_heads)

    def forward(self, single: Single, z: Pair, mask: Mask, chunk: int | None) -> Single:
        """What is added."""
        x = normed(self.norm, single, self.attention.project_in)
        bias = self.bias(z, self.norm_pair, mask, chunk)
        return torch.cat([self.attention(own[None], own_bias) for own, own_bias in zip(x, bias, strict=True)])


class SingleToPair(nn.Module):
    """z_ij += P (k_i * q_j) + D q_j - D k_i + c: D is applied to residues, of which there are fewer than pairs."""

    def __init__(self, width: int, pair_width: int) -> None:
        super().__init__()
        inner = pair_width // 2
        self.norm = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, 2 * inner)  # q, k
        self.products = nn.Linear(inner, pair_width)
        self.differences = nn.Linear(inner, pair_width, bias=False)
        nn.init.zeros_(self.project_in.bias)
        for layer in (self.products, self.differences):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.products.bias)

    def forward(self, single: Single, z: Pair, chunk: int | None) -> Pair:
        """The updated pairs; without gradients `z` itself is updated and given back."""
        q, k = self.project_in(normed(self.norm, single, self.project_in)).chunk(2, dim=-1)
        right, left = self.differences(q), self.differences(k)

        def update(rows: slice) -> Tensor:
            together: Tensor = self.products(k[:, rows, None] * q[:, None])
            return together + (right[:, None] - left[:, rows, None])

        if torch.is_grad_enabled():
            return z + update(slice(None))
        for part in parts(z.shape[1], rows_at_once(z, chunk)):
            z[:, part] += update(part)
        return z


class FoldingBlock(nn.Module):
    """See the module.

    Args:
        width: numbers per residue.
        pair_width: numbers per pair; even.
        num_heads: of the track of residues.
        num_pair_heads: of the triangle attention.
        dropout: in training; twice of it for rows and columns of pairs.
    """

    def __init__(
        self, width: int, pair_width: int, num_heads: int, num_pair_heads: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.single_attention = SingleAttention(width, pair_width, num_heads)
        self.drop = nn.Dropout(dropout)
        self.single_transition = Transition(width, dropout=dropout)
        self.single_to_pair = SingleToPair(width, pair_width)
        self.outgoing, self.incoming = (
            TriangleMultiplication(pair_width, outgoing=way, bias=True, dropout=2 * dropout) for way in (True, False)
        )
        self.starting, self.ending = (
            TriangleAttention(pair_width, num_pair_heads, starting=way, dropout=2 * dropout) for way in (True, False)
        )
        self.transition = Transition(pair_width, dropout=dropout)

    def forward(
        self, single: Single, z: Pair, mask: Mask, pair_mask: PairMask, chunk: int | None = None
    ) -> tuple[Single, Pair]:
        """Single and pairs, updated; without gradients `z` itself is updated and given back."""
        single = single + self.drop(self.single_attention(single, z, mask, chunk))
        single = single + self.single_transition.drop(self.single_transition.update(single))
        z = self.single_to_pair(single, z, chunk)
        z = self.incoming(self.outgoing(z, pair_mask, chunk), pair_mask, chunk)
        z = self.ending(self.starting(z, mask, chunk), mask, chunk)
        updated: Pair = self.transition(z, chunk)
        return single, updated
