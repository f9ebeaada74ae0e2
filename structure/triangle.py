"""Triangle multiplication and the transition of pairs: the trunk `trimul`.

A pair of residues (i, j) is updated from the two other sides of every triangle that it is part of (Jumper et al. 2021,
supplement, algorithms 11 and 12, without biases):

    a, b  = mask * sigmoid(Wg LN(z)) * Wp LN(z)                            gated projections of every pair
    outgoing:  x_ij = sum_k a_ik b_jk        incoming:  x_ij = sum_k a_ki b_kj
    z_ij += sigmoid(Wg' LN(z_ij)) * Wp' LN(x_ij)

In inference the work may be cut (`chunk`), and `z` is then updated in place: beside it only a and b are whole. Norms,
gates and projections are cut by rows of pairs, the product by its `dim` numbers per pair, each a matrix product of its
own; so every number is the sum of the same terms in the same order, whatever the chunk. (Widths that are no multiple of
32 may differ in the last digit: what is left over by vector registers is rounded by other instructions.)
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Pair = Float[Tensor, "batch length length dim"]
PairMask = Float[Tensor, "batch length length"]
KERNELS = "cuequivariance_torch", "cuequivariance_ops_torch"
"""NVIDIA's triangle multiplication: used on CUDA, where both packages are installed."""


def parts(size: int, chunk: int) -> Iterator[slice]:
    """0 .. size in parts of at most `chunk`."""
    for start in range(0, size, chunk):
        yield slice(start, min(size, start + chunk))


class TriangleMultiplication(nn.Module):
    """See the module.

    Args:
        width: numbers per pair.
        outgoing: which of the two.
    """

    def __init__(self, width: int, *, outgoing: bool) -> None:
        super().__init__()
        self.width, self.outgoing = width, outgoing
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project_in = nn.Linear(width, 2 * width, bias=False)
        self.gate_in = nn.Linear(width, 2 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)
        self.gate_out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.gate_in.weight)
        nn.init.zeros_(self.gate_out.weight)
        nn.init.zeros_(self.project_out.weight)

    def forward(self, z: Pair, mask: PairMask, chunk: int | None = None) -> Pair:
        """The updated pairs; with `chunk`, `z` itself is updated and given back.

        Args:
            mask: 1 for pairs of two residues, 0 with padding.
            chunk: rows, or numbers per pair, at a time; without gradients alone.
        """
        if z.is_cuda and has_kernels():
            return z + self._fused(z, mask)
        length = z.shape[1]
        if chunk is None:
            a, b = self._sides(z, mask)
            return z + self._update(z, self._product(a, b))
        a, b = (z.new_empty(z.shape[0], self.width, length, length) for _ in range(2))
        for part in parts(length, chunk):
            a[:, :, part], b[:, :, part] = self._sides(z[:, part], mask[:, part])
        for part in parts(self.width, chunk):
            a[:, part] = self._product(a[:, part], b[:, part])
        for part in parts(length, chunk):
            z[:, part] += self._update(z[:, part], a[:, :, part])
        return z

    def _sides(self, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of some rows of pairs, (batch, dim, row, length)."""
        x = self.norm_in(z)
        sides = torch.sigmoid(self.gate_in(x)) * self.project_in(x) * mask[..., None]
        a, b = sides.permute(0, 3, 1, 2).chunk(2, dim=1)
        return a, b

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """x of all pairs, (batch, dim, length, length)."""
        return a @ b.transpose(2, 3) if self.outgoing else a.transpose(2, 3) @ b

    def _update(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate_out(self.norm_in(z))) * self.project_out(self.norm_out(x.permute(0, 2, 3, 1)))

    def _fused(self, z: Pair, mask: PairMask) -> Pair:
        update = import_module(KERNELS[0]).triangle_multiplicative_update(
            z, direction="outgoing" if self.outgoing else "incoming", mask=mask,
            norm_in_weight=self.norm_in.weight, norm_in_bias=self.norm_in.bias,
            p_in_weight=self.project_in.weight, g_in_weight=self.gate_in.weight,
            norm_out_weight=self.norm_out.weight, norm_out_bias=self.norm_out.bias,
            p_out_weight=self.project_out.weight, g_out_weight=self.gate_out.weight, eps=self.norm_in.eps,
        )  # fmt: skip
        assert isinstance(update, Tensor)
        return update


@cache
def has_kernels() -> bool:
    """Whether the fused kernels can be imported."""
    return all(find_spec(name) for name in KERNELS)


class Transition(nn.Module):
    """z_ij += W2 relu(W1 LN(z_ij)), four times as wide inside (algorithm 15)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, z: Pair, chunk: int | None = None) -> Pair:
        """The updated pairs; with `chunk`, `z` itself is updated and given back."""
        if chunk is None:
            return z + self._update(z)
        for part in parts(z.shape[1], chunk):
            z[:, part] += self._update(z[:, part])
        return z

    def _update(self, z: Tensor) -> Tensor:
        update: Tensor = self.contract(F.relu(self.expand(self.norm(z))))
        return update


class PairBlock(nn.Module):
    """Outgoing, incoming, transition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.outgoing = TriangleMultiplication(width, outgoing=True)
        self.incoming = TriangleMultiplication(width, outgoing=False)
        self.transition = Transition(width)

    def forward(self, z: Pair, mask: PairMask, chunk: int | None = None) -> Pair:
        """The updated pairs; with `chunk`, `z` itself is updated and given back."""
        z = self.incoming(self.outgoing(z, mask, chunk), mask, chunk)
        updated: Pair = self.transition(z, chunk)
        return updated
