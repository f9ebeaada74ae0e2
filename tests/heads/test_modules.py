"""Heads: each protein answered as if it were alone, against loops written out; every kind can learn its rows."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads import modules
from heads.modules import HeadConfig, Pool, Scale, bucket, build_head, loss, padded, places, protein_of
from heads.tasks import Level
from tests.heads.generated import made_task
from xtrimo.errors import ConfigError
from xtrimo.pair_maps import pair_rows

WIDTH = 12
LENGTHS = torch.tensor([5, 1, 9, 3])
LEVELS: dict[Level, dict[str, Any]] = {
    "sequence": {},
    "residue": {},
    "pair": {"num_outputs": 1},
    "two_sequences": {},
    "molecule": {"num_bits": 16},
}


def states(lengths: Tensor = LENGTHS, *, seed: int = 0) -> Tensor:
    return torch.randn(int(lengths.sum()), WIDTH, generator=torch.Generator().manual_seed(seed))


def head(level: Level, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    module = build_head(HeadConfig(**({"level": level, "width": WIDTH, "num_outputs": 3} | LEVELS[level] | changes)))
    for name, parameter in module.named_parameters():  # what begins at zero would hide mistakes
        if name.endswith("score.weight"):
            nn.init.normal_(parameter)
    return module.eval()


def inputs(level: Level, lengths: Tensor = LENGTHS) -> tuple[Tensor, ...]:
    first = (states(lengths), lengths)
    others = torch.arange(2, 2 + len(lengths))
    return {
        "two_sequences": (*first, states(others, seed=1), others),
        "molecule": (*first, (states(torch.tensor([len(lengths)]), seed=2) > 0).float() @ torch.eye(12, 16)),
    }.get(level, first)


def one_of(level: Level, protein: int) -> tuple[Tensor, ...]:
    """What belongs to a protein of `inputs`."""
    given = inputs(level)
    cut = [given[0].split(LENGTHS.tolist())[protein], LENGTHS[protein : protein + 1]]
    if level == "two_sequences":
        cut += [given[2].split(given[3].tolist())[protein], given[3][protein : protein + 1]]
    if level == "molecule":
        cut.append(given[2][protein : protein + 1])
    return tuple(cut)


@pytest.mark.parametrize("level", ["sequence", "residue", "two_sequences", "molecule"])
@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_a_protein_is_answered_as_if_alone(level: Level, pooling: str) -> None:
    module = head(level, pooling=pooling)
    together = module(*inputs(level))
    alone = [module(*one_of(level, protein)) for protein in range(len(LENGTHS))]
    assert together.shape == (int(LENGTHS.sum()) if level == "residue" else len(LENGTHS), 3)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert (together[0] - together[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_pooling_is_a_softmax_over_the_residues_of_each_protein(pooling: modules.Pooling) -> None:
    torch.manual_seed(0)
    pool = Pool(WIDTH, pooling)
    torch.testing.assert_close(  # as it begins
        pool(states(), LENGTHS), torch.stack([x.mean(0) for x in states().split(LENGTHS.tolist())])
    )
    nn.init.normal_(pool.score.weight, std=20.0)  # scores whose exp overflows but for the highest taken off
    expected = []
    for x in states().split(LENGTHS.tolist()):
        scores = pool.score(F.layer_norm(x, (WIDTH,))) if pooling == "attention" else torch.zeros(len(x), 1)
        expected.append((scores.softmax(0) * x).sum(0))
    torch.testing.assert_close(pool(states(), LENGTHS), torch.stack(expected))


def test_the_mean_may_be_given_for_the_protein() -> None:
    module = head("sequence", pooling="mean")
    means = torch.stack([x.mean(0) for x in states().split(LENGTHS.tolist())])
    torch.testing.assert_close(module(means, torch.ones(4, dtype=torch.long)), module(states(), LENGTHS))


def test_places() -> None:
    lengths = torch.tensor([3, 2])
    assert protein_of(lengths, torch.device("cpu")).tolist() == [0, 0, 0, 1, 1]
    place, size = places(lengths, torch.device("cpu"))
    assert (place.tolist(), size.tolist()) == ([0, 1, 2, 0, 1], [3, 3, 3, 2, 2])
    dense, here = padded(torch.arange(1.0, 6.0)[:, None], lengths)
    assert dense[..., 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert here.tolist() == [[True, True, True], [True, True, False]]


def test_two_chains_tell_their_residues_orders() -> None:
    """The same residues elsewhere are another answer, by place alone; and so is the other chain alone changed."""
    module = head("two_sequences", pooling="mean")
    x, lengths, y, others = one_of("two_sequences", 2)
    said = module(x, lengths, y, others)
    assert (module(x.flip(0), lengths, y, others) - said).abs().max() > 1e-3
    assert (module(x, lengths, y.flip(0), others) - said).abs().max() > 1e-3


def test_the_chains_attend_to_each_other() -> None:
    """Pooled a alone does not see b; the part of the answer that does is there before the pools meet."""
    module = head("two_sequences", pooling="mean")
    seen: list[Tensor] = []
    module.pools[0].register_forward_hook(lambda _, __, out: seen.append(out))
    x, lengths, y, others = one_of("two_sequences", 0)
    module(x, lengths, y, others)
    module(x, lengths, y + 1.5 * torch.randn_like(y), others)
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def pair_by_hand(module: nn.Module, x: Tensor, maps: Tensor | None) -> Tensor:
    """Pair by pair."""
    small = module.project(module.norm(x))
    place = {pair: number for number, pair in enumerate((i, j) for i in range(len(x)) for j in range(i, len(x)))}
    logits = torch.empty(len(x), len(x))
    for i in range(len(x)):
        for j in range(len(x)):
            features = [small[i] * small[j], (small[i] - small[j]).abs(), module.separation(torch.tensor(abs(i - j)))]
            features += [] if maps is None else [maps[place[min(i, j), max(i, j)]]]
            logits[i, j] = module.mlp(torch.cat(features))[0]
    return logits


@pytest.mark.parametrize("num_maps", [0, 6])
def test_pairs(num_maps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = head("pair", num_maps=num_maps)
    x, lengths = states(torch.tensor([9])), torch.tensor([9])
    maps = pair_rows(torch.rand(num_maps, 9, 9).softmax(-1)) if num_maps else None
    expected = pair_by_hand(module, x, maps)
    torch.testing.assert_close(module(x, lengths, maps), expected)
    torch.testing.assert_close(expected, expected.T)
    monkeypatch.setattr(modules, "PAIRS_AT_ONCE", 7)  # in chunks: the same answer, and the same gradients
    torch.testing.assert_close(module(x, lengths, maps), expected)
    gradients = torch.autograd.grad(module(x, lengths, maps).square().sum(), list(module.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
    torch.testing.assert_close(gradients, wanted, atol=1e-4, rtol=1e-4)


def test_pairs_in_training_take_the_memory_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the way back needs is kept for no pair: only residues and indices are, whatever the number of pairs."""

    def kept(chunk: int) -> int:
        monkeypatch.setattr(modules, "PAIRS_AT_ONCE", chunk)
        num = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal num
            num += tensor.numel() if tensor.is_floating_point() else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            head("pair")(states(torch.tensor([60])), torch.tensor([60]))
        return num

    assert kept(200) < 0.1 * (128 + 96) * 1830  # pairs, of so many units and features


def test_a_pair_head_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="one protein at a time, got 4"):
        head("pair")(states(), LENGTHS)
    with pytest.raises(ConfigError, match="built for 6 attention maps was given 0"):
        head("pair", num_maps=6)(states(torch.tensor([4])), torch.tensor([4]))
    with pytest.raises(ConfigError, match="built for 0 attention maps was given 2"):
        head("pair")(states(torch.tensor([4])), torch.tensor([4]), torch.ones(10, 2))
    with pytest.raises(ConfigError, match="needs the bits"):
        HeadConfig(level="molecule", width=3)


def test_separations_in_buckets() -> None:
    buckets = bucket(torch.arange(3000))
    assert buckets[:33].tolist() == [*range(32), 32]
    assert buckets[63] == 39 and buckets[64] == 40
    assert buckets.diff().min() >= 0 and buckets.max() == 63


@pytest.mark.parametrize("level", LEVELS)
def test_every_head_can_learn_its_rows(level: Level) -> None:
    lengths = torch.tensor([30]) if level == "pair" else torch.tensor([4, 7, 3, 9, 5, 6])
    given = inputs(level, lengths)
    module = head(level, dropout=0.0).train()
    generator = torch.Generator().manual_seed(5)
    num = {"residue": int(lengths.sum())}.get(level, len(lengths))
    labels = torch.randint(3, (num,), generator=generator)
    if level == "pair":
        upper = (torch.rand(30, 30, generator=generator) < 0.2).triu(1)
        labels = (upper | upper.T).long()
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(made_task(level), module(*given), labels)
        value.backward()
        optimizer.step()
    assert value.item() < 0.05
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("level", LEVELS)
def test_half_precision(level: Level) -> None:
    """Under autocast, from bf16 states, about the same."""
    lengths = torch.tensor([9]) if level == "pair" else LENGTHS
    given, module = inputs(level, lengths), head(level)
    expected = module(*given)
    rounded = [x.bfloat16() if x.is_floating_point() else x for x in given]
    with torch.autocast("cpu", torch.bfloat16):
        said = module(*rounded).float()
    torch.testing.assert_close(said, expected, atol=0.05, rtol=0.05)


def test_loss_of_classes() -> None:
    outputs, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, -1, 2, -1])
    each = -outputs.log_softmax(1)[torch.arange(6), labels.clamp(min=0)]
    kept = labels >= 0
    torch.testing.assert_close(loss(made_task("residue"), outputs, labels), each[kept].mean())
    weights = torch.tensor([1.0, 2.0, 5.0])
    weighed = (weights[labels[kept]] * each[kept]).sum() / weights[labels[kept]].sum()
    torch.testing.assert_close(loss(made_task("residue"), outputs, labels, weights), weighed)


def test_loss_of_nothing_is_zero_and_can_be_stepped() -> None:
    for level, shape in (("residue", (4, 3)), ("pair", (4, 4))):
        outputs = torch.randn(shape, requires_grad=True)
        labels = torch.full((4, 4) if level == "pair" else (4,), -1)
        value = loss(made_task(level), outputs, labels)
        value.backward()
        assert value.item() == 0 and outputs.grad is not None and not outputs.grad.any()


def test_loss_of_pairs() -> None:
    """Of those at least 6 apart and measured."""
    outputs, labels = torch.randn(10, 10), torch.randint(-1, 2, (10, 10), generator=torch.Generator().manual_seed(0))
    terms, weights = [], []
    for i in range(10):
        for j in range(10):
            if abs(i - j) >= 6 and labels[i, j] >= 0:
                terms.append(F.softplus(-outputs[i, j] if labels[i, j] == 1 else outputs[i, j]))
                weights.append(3.0 if labels[i, j] == 1 else 1.0)
    torch.testing.assert_close(loss(made_task("pair"), outputs, labels), torch.stack(terms).mean())
    w = torch.tensor(weights)
    torch.testing.assert_close(
        loss(made_task("pair"), outputs, labels, torch.tensor([1.0, 3.0])), (w * torch.stack(terms)).sum() / w.sum()
    )


def test_loss_of_values_and_their_scale() -> None:
    values = torch.tensor([1.0, 3.0, 8.0])
    scale = Scale.fit(values.tolist())
    standard = scale.standardise(values)
    torch.testing.assert_close((standard.mean(), standard.std(correction=0)), (torch.tensor(0.0), torch.tensor(1.0)))
    torch.testing.assert_close(scale.restore(standard), values)
    outputs = torch.randn(3, 1)
    expected = ((outputs[:, 0] - standard) ** 2).mean()
    torch.testing.assert_close(loss(made_task("sequence", "regression"), outputs, standard), expected)
    assert Scale.fit([2.0, 2.0]).spread == 1.0
