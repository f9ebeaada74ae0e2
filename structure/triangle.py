"""Triangle multiplication and the transition of pairs: the trunk `trimul`, and a part of `esmfold`.

A pair of residues (i, j) is updated from the two other sides of every triangle that it is part of (Jumper et al. 2021,
supplement, algorithms 11 and 12; `trimul` leaves out the biases):

    a, b  = mask * sigmoid(Wg LN(z)) * Wp LN(z)                            gated projections of every pair
    outgoing:  x_ij = sum_k a_ik b_jk        incoming:  x_ij = sum_k a_ki b_kj
    z_ij += sigmoid(Wg' LN(z_ij)) * Wp' LN(x_ij)

a, b and x lie with the numbers of a pair first, (dim, batch, length, length): one product writes them so, and each of
the `dim` sums over triangles is then a plain matrix product. The norm of x is taken in that layout as well.

Without gradients z is updated in place, some rows of pairs at a time, and beside it only a and b are whole. On a CPU
the rows are as many as its cache holds, which is also faster; `chunk` sets a lower number. The product over triangles
is cut by its `dim` numbers, each a product of its own; so every number is the sum of the same terms in the same order,
however the work is cut. (Widths that are no multiple of 32 may differ in the last digit: what is left over by vector
registers is rounded by other instructions.)

Weights in bf16 (`trunk.in_bf16`) take products in bf16; z, the norms and their statistics stay in fp32.
"""

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from structure.initialisation import lecun_

Pair = Float[Tensor, "batch length length dim"]
PairMask = Float[Tensor, "batch length length"]
Sides = Float[Tensor, "dim batch row length"]
KERNELS = "cuequivariance_torch", "cuequivariance_ops_torch"
"""NVIDIA's triangle multiplication: used on CUDA, where both packages are installed."""
CACHED_PAIRS = 4096
"""Pairs at a time in inference on a CPU: 2 MB for 128 numbers each, whatever the length."""


def parts(size: int, chunk: int) -> Iterator[slice]:
    """0 .. size in parts of at most `chunk`."""
    for start in range(0, size, chunk):
        yield slice(start, min(size, start + chunk))


def rows_at_once(z: Pair, chunk: int | None) -> int:
    """Rows of pairs that inference works on at a time."""
    batch, length = z.shape[:2]
    most = max(1, CACHED_PAIRS // (batch * length)) if z.device.type == "cpu" else length
    return min(most, chunk or most)


def add_by_rows(z: Pair, update: Callable[[Tensor], Tensor], rows: int) -> None:
    """z_ij += update(z)_ij, in place, some rows at a time; an update of a row reads no other row of z."""
    for part in parts(z.shape[1], rows):
        z[:, part] += update(z[:, part])


class SharedDropout(nn.Module):
    """Dropout that drops whole rows or columns of pairs: the same numbers along `dim`, where `ratio` is not 0."""

    def __init__(self, ratio: float, dim: int) -> None:
        super().__init__()
        self.ratio, self.dim = ratio, dim

    def forward(self, z: Tensor) -> Tensor:
        if not self.training or self.ratio == 0:
            return z
        kept = F.dropout(torch.ones_like(z.select(self.dim, 0)), self.ratio).unsqueeze(self.dim)
        return z * kept


class TriangleMultiplication(nn.Module):
    """See the module.

    Args:
        width: numbers per pair.
        outgoing: which of the two.
        bias: whether the projections have biases, as those of AlphaFold 2 and ESMFold.
        dropout: of the update, whole rows (outgoing) or columns of it.
    """

    def __init__(self, width: int, *, outgoing: bool, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.outgoing = width, outgoing
        self.norm_in, self.norm_out = nn.LayerNorm(width), NormOfChannels(width)
        self.project_in = Channels(width, 2 * width, bias=bias)
        self.gate_in = Channels(width, 2 * width, bias=bias)
        self.project_out = nn.Linear(width, width, bias=bias)
        self.gate_out = nn.Linear(width, width, bias=bias)
        self.drop = SharedDropout(dropout, dim=2 if outgoing else 1)
        nn.init.zeros_(self.gate_in.weight)
        nn.init.zeros_(self.gate_out.weight)
        nn.init.zeros_(self.project_out.weight)
        if bias:
            lecun_(self.project_in.weight)
            for layer, value in ((self.project_in, 0), (self.project_out, 0), (self.gate_in, 1), (self.gate_out, 1)):
                nn.init.constant_(layer.bias, value)

    def forward(self, z: Pair, mask: PairMask, chunk: int | None = None) -> Pair:
        """The updated pairs; without gradients `z` itself is updated and given back.

        Args:
            mask: 1 for pairs of two residues, 0 with padding.
            chunk: rows, or numbers per pair, at a time, at most; without gradients alone.
        """
        if z.is_cuda and has_kernels():
            return z + self.drop(self._fused(z, mask))
        if torch.is_grad_enabled():
            return z + self.drop(self._update(z, self._product(*self._sides(z, mask))))
        batch, length = z.shape[:2]
        rows, dtype = rows_at_once(z, chunk), precision(self.gate_in)
        a, b = (z.new_empty(self.width, batch, length, length, dtype=dtype) for _ in range(2))
        for part in parts(length, rows):
            a[:, :, part], b[:, :, part] = self._sides(z[:, part], mask[:, part])
        for part in parts(self.width, rows):
            a[part] = self._product(a[part], b[part])
        del b
        for part in parts(length, rows):
            z[:, part] += self._update(z[:, part], a[:, :, part])
        return z

    def _sides(self, z: Tensor, mask: Tensor) -> tuple[Sides, Sides]:
        """a and b of some rows of pairs."""
        x = normed(self.norm_in, z, self.gate_in).flatten(0, 2).T  # (dim, pair)
        sides = self.gate_in(x).sigmoid_() * self.project_in(x)
        a, b = sides.unflatten(1, z.shape[:3]).mul_(mask.to(sides.dtype)).chunk(2)
        return a, b

    def _product(self, a: Sides, b: Sides) -> Sides:
        """x of all pairs."""
        return a @ b.transpose(2, 3) if self.outgoing else a.transpose(2, 3) @ b

    def _update(self, z: Tensor, x: Sides) -> Tensor:
        gate = self.gate_out(normed(self.norm_in, z, self.gate_out)).sigmoid_()
        y = normed(self.norm_out, x.flatten(1), self.project_out)
        update: Tensor = self.project_out(y.T).view_as(gate) * gate
        return update

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


class Channels(nn.Linear):
    """A linear layer of what has its numbers first."""

    def forward(self, x: Float[Tensor, "dim pair"]) -> Float[Tensor, "out pair"]:
        return self.weight @ x if self.bias is None else torch.addmm(self.bias[:, None], self.weight, x)


class NormOfChannels(nn.LayerNorm):
    """LayerNorm of what has its numbers first."""

    def forward(self, x: Float[Tensor, "dim pair"]) -> Float[Tensor, "dim pair"]:
        x = x.to(self.weight.dtype)
        x = x - _mean(x)
        x = x * (_mean(x.square()) + self.eps).rsqrt()
        return torch.addcmul(self.bias[:, None], x, self.weight[:, None])


def _mean(x: Float[Tensor, "dim pair"]) -> Float[Tensor, "pair"]:
    """Over the first dimension, by halves: torch adds the last pairs, too few for a register, in another order."""
    num = len(x)
    while len(x) > 1:
        half = len(x) // 2
        x = torch.cat((x[:half] + x[half : 2 * half], x[2 * half :])) if len(x) % 2 else x[:half] + x[half:]
    return x[0] / num


def normed(norm: nn.LayerNorm, x: Tensor, reader: nn.Linear) -> Tensor:
    """LN(x), in the precision of the layer that reads it."""
    y: Tensor = norm(x)
    return y.to(reader.weight.dtype)


def precision(layer: nn.Linear) -> torch.dtype:
    """Of what a layer gives."""
    device = layer.weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype


class Transition(nn.Module):
    """x += W2 relu(W1 LN(x)), four times as wide inside (algorithm 15); of residues or of pairs."""

    def __init__(self, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, z: Pair, chunk: int | None = None) -> Pair:
        """The updated pairs; without gradients `z` itself is updated and given back."""
        if torch.is_grad_enabled():
            return z + self.drop(self.update(z))
        add_by_rows(z, self.update, rows_at_once(z, chunk))
        return z

    def update(self, x: Tensor) -> Tensor:
        """What is added."""
        update: Tensor = self.contract(F.relu_(self.expand(normed(self.norm, x, self.expand))))
        return update


class PairBlock(nn.Module):
    """Outgoing, incoming, transition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.outgoing = TriangleMultiplication(width, outgoing=True)
        self.incoming = TriangleMultiplication(width, outgoing=False)
        self.transition = Transition(width)

    def forward(self, z: Pair, mask: PairMask, chunk: int | None = None) -> Pair:
        """The updated pairs; without gradients `z` itself is updated and given back."""
        z = self.incoming(self.outgoing(z, mask, chunk), mask, chunk)
        updated: Pair = self.transition(z, chunk)
        return updated
