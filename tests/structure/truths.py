"""Predictions made by hand: of a known chain the truth itself, and what becomes of it."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from structure.data import Crop, Example
from structure.geometry import Frames, backbone_frames, rigid_group_frames, torsions, virtual_cb
from structure.losses import Truth
from structure.model import Folded

SURE = 30.0
"""A logit beside zeros: the others have no share left."""


def crop_of(example: Example, *, clamp: bool = False) -> Crop:
    """All of a chain."""
    return Crop(example, 0, 0, clamp, 0)


def truth_of(*examples: Example, length: int = 0) -> Truth:
    """Of a batch; not clamped."""
    return Truth.of([crop_of(example) for example in examples], device=torch.device("cpu"), length=length)


def one_hot(bins: Tensor, num_bins: int) -> Tensor:
    """Logits that are sure of a bin."""
    return SURE * torch.nn.functional.one_hot(bins, num_bins).float()


def distances(example: Example) -> np.ndarray:
    """Angstrom between the C-betas, in glycine where one would be."""
    virtual = virtual_cb(*torch.from_numpy(example.atoms).unbind(1)[:3]).numpy()
    place = np.where(example.seen[:, 4:5] > 0, example.atoms[:, 4], virtual).astype(np.float64)
    apart: np.ndarray = np.linalg.norm(place[:, None] - place[None], axis=-1)
    return apart


def distance_bins(apart: np.ndarray) -> Tensor:
    """Bins of 0.3125 angstrom; the first ends at 2.3125, the last, of 64, has no end."""
    return torch.from_numpy(np.clip(np.floor((apart - 2.3125) / 0.3125).astype(np.int64) + 1, 0, 63))


def perfect(example: Example, *, layers: int = 2) -> Folded:
    """The prediction that is the truth, and sure of it: each layer places all that was seen where it is."""
    truth, length = truth_of(example), len(example)
    turned = torsions(truth.aatype, truth.atoms, truth.seen, truth.index)
    angles = torch.where(turned.mask[..., None] > 0, turned.values, torch.tensor([0.0, 1.0]))
    frames = backbone_frames(truth.atoms)
    many = torch.stack([angles] * layers)
    return Folded(
        frames=Frames(*(torch.stack([value] * layers) for value in frames)),
        group_frames=rigid_group_frames(truth.aatype, truth.atoms, truth.seen).frames,
        angles=many, raw_angles=many, atoms=torch.stack([truth.atoms] * layers),
        distogram=one_hot(distance_bins(distances(example)), 64)[None],
        lddt=one_hot(torch.full((1, length, 37), 49), 50), pae=one_hot(torch.zeros(1, length, length).long(), 64),
        single=torch.zeros(1, length, 4), pair=torch.zeros(1, length, length, 4),
    )  # fmt: skip


def noisy(example: Example, *, seed: int = 0, layers: int = 2) -> Folded:
    """A prediction of which nothing is right: noise on every place and angle, logits at random."""
    generator = torch.Generator().manual_seed(seed)

    def noise(value: Tensor) -> Tensor:
        return value + torch.randn(value.shape, generator=generator)

    found = mapped(perfect(example, layers=layers), noise)
    logits = {name: noise(torch.zeros_like(getattr(found, name))) for name in ("distogram", "lddt", "pae")}
    return changed(found, **logits)


def mapped(folded: Folded, change: Any) -> Folded:
    """A function of each tensor."""
    return changed(folded, **{
        field.name: Frames(*map(change, value)) if isinstance(value, Frames) else change(value)
        for field in fields(folded) if (value := getattr(folded, field.name)) is not None
    })  # fmt: skip


def changed(folded: Folded, **changes: Any) -> Folded:
    """The same but for some."""
    return Folded(**{field.name: getattr(folded, field.name) for field in fields(folded)} | changes)


_LAYERED, _OF_PAIRS = ("frames", "angles", "raw_angles", "atoms"), ("distogram", "pae", "pair")


def together(*each: Folded, junk: float = 1e3) -> Folded:
    """A batch, padded to the longest with junk."""
    length = max(one.lddt.shape[1] for one in each)

    def padded(values: list[Tensor], *, batch: int, num_dims: int) -> Tensor:
        rows = []
        for value in values:
            shape = list(value.shape)
            shape[batch + 1 : batch + 1 + num_dims] = [length] * num_dims
            row = value.new_full(shape, junk)
            row[tuple(slice(size) for size in value.shape)] = value
            rows.append(row)
        return torch.cat(rows, dim=batch)

    found: dict[str, Any] = {}
    for field in fields(Folded):
        values = [getattr(one, field.name) for one in each]
        place = {"batch": int(field.name in _LAYERED), "num_dims": 1 + (field.name in _OF_PAIRS)}
        found[field.name] = (
            Frames(*(padded(list(part), **place) for part in zip(*values, strict=True)))
            if isinstance(values[0], Frames) else padded(values, **place)
        )  # fmt: skip
    return Folded(**found)
