"""The folding model: padding, batches, recycles and chunks change no atom; gradients reach what they should."""

from dataclasses import replace

import pytest
import torch

from structure.config import PRESETS, FoldConfig
from structure.data import Crop
from structure.features import CHAIN_GAP
from structure.losses import Truth, terms, total
from structure.model import Folded, FoldModel
from structure.openfold import InvariantPointAttention, constants
from tests.structure.models import SMALL, TRUNKS, batch, chain, model_of, protein, unlike
from xtrimo.errors import ConfigError

WITH_LM = {name: replace(config, lm_width=6, num_lm_layers=3, num_lm_maps=2) for name, config in TRUNKS.items()}
each_trunk = pytest.mark.parametrize("config", WITH_LM.values(), ids=WITH_LM.keys())


def atoms(model: FoldModel, *args: object, **kwargs: int | None) -> torch.Tensor:
    with torch.no_grad():
        return model(*args, num_recycles=model.config.max_recycles, **kwargs).atoms[-1]


@each_trunk
@pytest.mark.parametrize("pad", [1, 7, 33])
def test_padding_moves_nothing(config: FoldConfig, pad: int) -> None:
    """Beside the same padding unmasked, which has to move atoms: equal numbers alone prove no mask."""
    model, one = model_of(config), protein(23, config=config)
    alone = atoms(model, batch(one))
    padded = batch(one, length=23 + pad)
    assert (atoms(model, padded)[:, :23] - alone).abs().max() <= 1e-4
    unmasked = unlike(padded, mask=torch.ones_like(padded.mask))
    assert (atoms(model, unmasked)[:, :23] - alone).abs().max() > 1e-3


@each_trunk
def test_a_batch_is_its_proteins_one_by_one(config: FoldConfig) -> None:
    model = model_of(config)
    proteins = [protein(length, seed=length, config=config) for length in (20, 13, 17)]
    together = atoms(model, batch(*proteins))
    for place, one in enumerate(proteins):
        assert (together[place, : len(one.aatype)] - atoms(model, batch(one))[0]).abs().max() <= 1e-4


@each_trunk
def test_chunks_change_no_bit(config: FoldConfig) -> None:
    model, one = model_of(replace(config, pair_width=32)), batch(protein(41, config=config))
    whole = atoms(model, one)
    for chunk in (1, 7, 16, 64):
        assert torch.equal(atoms(model, one, chunk=chunk), whole), chunk


@each_trunk
def test_everything_that_is_read_matters(config: FoldConfig) -> None:
    model, one = model_of(config), batch(protein(15, config=config))
    before = atoms(model, one)
    changed = {
        "aatype": (one.aatype + 1) % 20, "states": one.states.roll(1, 1), "maps": one.maps.roll(1, 1),
        "index": one.index + CHAIN_GAP * (torch.arange(15) > 6),
    }  # fmt: skip
    for name, value in changed.items():
        assert (atoms(model, unlike(one, **{name: value})) - before).abs().max() > 1e-3, name


def test_recycles_are_counted_after_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, one = model_of(TRUNKS["esmfold"]), batch(protein(11))
    calls: list[bool] = []
    monkeypatch.setattr(model.trunk, "forward", counting(model, calls))
    found = []
    for num_recycles in (0, 1, 3):
        calls.clear()
        found.append(model(one, num_recycles=num_recycles).atoms[-1])
        assert calls == [False] * num_recycles + [True], "gradients belong to the last pass alone"
    assert (found[0] - found[1]).abs().max() > 1e-3


def counting(model: FoldModel, calls: list[bool]) -> object:
    whole = model.trunk.forward

    def forward(*args: object) -> object:
        calls.append(torch.is_grad_enabled())
        return whole(*args)

    return forward


@each_trunk
def test_every_weight_learns(config: FoldConfig) -> None:
    """But for ESMFold's rows that nothing reads, and the bins of distances that were not met."""
    model, example = model_of(config).train(), chain()
    one = protein(len(example), config=config)
    features = unlike(batch(one), aatype=torch.from_numpy(example.aatype)[None])
    folded = model(features, num_recycles=config.max_recycles)
    truth = Truth.of([Crop(example, 0, 0, False, 0)], device=torch.device("cpu"))
    total(terms(folded, truth, side_chains=True, violations=True), 0.1).sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle


def test_bf16_leaves_the_structure_module_alone() -> None:
    model, one = model_of(SMALL), batch(protein(12))
    seen: list[torch.dtype] = []
    model.structure.register_forward_pre_hook(lambda _, args: seen.append(args[0]["pair"].dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        folded: Folded = model(one)
    assert seen == [torch.float32] and folded.atoms.dtype == torch.float32
    assert folded.pair.dtype in (torch.float32, torch.bfloat16)


def test_an_unknown_residue_has_a_backbone() -> None:
    one = batch(protein(9))
    one.aatype[0, 4] = constants.unk_restype_index
    placed = atoms(model_of(SMALL), one)[0, 4]
    assert placed[:5].abs().sum(-1).gt(0).sum() >= 4 and not placed[5:].any()


def test_a_new_model_is_alphafolds() -> None:
    """Residues begin at the origin, new branches add nothing, and attention to points weighs 1."""
    model = FoldModel(TRUNKS["esmfold"])
    one = batch(protein(9))
    assert not model(one).frames.translations.any()
    attention = next(module for module in model.modules() if isinstance(module, InvariantPointAttention))
    torch.testing.assert_close(torch.nn.functional.softplus(attention.head_weights), torch.ones(2))
    single, pair = torch.randn(1, 9, 16), torch.randn(1, 9, 9, 8)
    for block in model.trunk.blocks:
        out = block(single, pair, torch.ones(1, 9), torch.ones(1, 9, 9))
        assert torch.equal(out[0], single) and torch.equal(out[1], pair)
    relu = model.structure.transition.layers[0].linear_1
    wide = FoldModel(replace(TRUNKS["trimul"], structure_width=256)).structure.transition.layers[0].linear_1
    assert relu.bias.abs().sum() == 0
    assert wide.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.03)
    assert wide.weight.abs().max() <= 2 * (2 / 256) ** 0.5 / 0.8796 + 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"trunk": "trimul", "max_recycles": 1}, {"pair_width": 6}, {"single_width": 15},
        {"lm_width": 4}, {"num_lm_layers": 2}, {"num_blocks": 0}, {"dropout": 0.1}, {"structure_dropout": 1.0},
    ],
)  # fmt: skip
def test_impossible_configs(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(SMALL, **changes)


@pytest.mark.parametrize(("name", "millions"), [("fold-tiny", 0.32), ("fold-8m", 8), ("fold-150m", 150)])
def test_presets_are_as_large_as_their_names(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = FoldModel(PRESETS[name])
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.15)
