"""Folding beside transformers' ESMFold: a block's time and memory, cost against length, and whole folds.

    python -m benchmarks.fold --parts blocks memory        # and: curve whole

blocks: CPU-seconds of one block at the published widths (1,024 numbers a residue, 128 a pair), random weights: theirs,
our `esmfold` block with the same weights in fp32 and bf16, and a block of `trimul`; and how far the updates lie apart.
memory: what a block adds to the resident memory at its peak, each in a process of its own.
curve: the same times up to 1,024 residues, drawn on logarithmic scales.
whole: once, one pass of 48 `trimul` blocks and four passes of transformers' ESMFold's 48, with structure modules:
two different models, of which the first was never trained at this size.
batches: 50 held-out chains of an archive, folded together and one by one by a trained model.
"""

import functools
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from benchmarks import protocol
from benchmarks.protocol import Machine, Report, Timings
from benchmarks.results import DOCS
from benchmarks.row_memory import high_water_mark
from structure.config import FoldConfig
from structure.features import collate
from structure.fold_directory import load_fold
from structure.folding import buckets, fold
from structure.folding_block import FoldingBlock
from structure.model import FoldModel
from structure.published import packed_block
from structure.reader import Reader
from structure.triangle import PairBlock
from structure.trunk import in_bf16, pair_mask
from xtrimo.chains import read_chains
from xtrimo.figures import COLOURS, blank, save

WIDTH, PAIR, HEADS, PAIR_HEADS, BLOCKS = 1024, 128, 32, 4, 48
THEIRS, SAME, HALF, TRIMUL = "transformers", "esmfold, fp32", "esmfold, bf16", "trimul, fp32"
NUM_PROTEINS = 50
NOTHING: dict[str, Callable[[], object]] = {"": lambda: None}
"""To warm up with, where a call takes minutes."""
Variant = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to measure."""

    parts: tuple[Literal["blocks", "memory", "curve", "whole", "batches"], ...] = ("blocks", "memory")
    """Tables to make."""
    lengths: tuple[int, ...] = (128, 256)
    """blocks: residues."""
    rounds: int = 5
    """blocks: timed rounds, after one untimed call of every variant."""
    memory_length: int = 512
    """memory: residues."""
    curve_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """curve: residues; theirs only where its scores fit into 5 GB."""
    whole_length: int = 128
    """whole: residues."""
    model: Path = Path("runs/fold-lm/model")
    """batches: folding model."""
    data: Path = Path("../shared/data/structures/chains.npz")
    """batches: archive of chains, some of which are called test."""
    out: Path = Path("runs/benchmarks")
    """Folder of fold_PART.{json,md}."""


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    protocol.one_thread()
    tables: dict[str, Callable[[BenchmarkConfig], list[Report]]] = {
        "blocks": lambda config: [blocks(length, config.rounds) for length in config.lengths],
        "memory": lambda config: [memory(config.memory_length)],
        "curve": lambda config: [curve(config.curve_lengths)],
        "whole": lambda config: [whole(config.whole_length)],
        "batches": lambda config: [batches(config.model, config.data, config.rounds)],
    }
    with torch.no_grad():
        for part in config.parts:
            for report in tables[part](config):
                report.save(config.out, f"fold_{part}_{report.setting['length']}")
                print(report.to_markdown(), flush=True)


def spread_weights(module: nn.Module) -> nn.Module:
    """Random weights, every one of which matters; a new block adds nothing."""
    torch.manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.5)
    return module.eval()


@functools.cache
def theirs() -> Any:
    """Transformers' block."""
    from transformers.models.esm.configuration_esm import TrunkConfig
    from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

    return spread_weights(EsmFoldTriangularSelfAttentionBlock(TrunkConfig()))


def variant(name: str) -> Variant:
    """A block by its name; it may write into the pairs that it is given."""
    if name == THEIRS:
        return lambda single, pair: theirs()(single, pair, mask=single.new_ones(single.shape[:2]))
    if name == TRIMUL:
        trimul = spread_weights(PairBlock(PAIR))
        return lambda single, pair: (single, trimul(pair, pair.new_ones(pair.shape[:3])))
    holder, block = nn.Module(), FoldingBlock(WIDTH, PAIR, HEADS, PAIR_HEADS).eval()
    block.load_state_dict(packed_block(theirs().state_dict()))
    holder.blocks = nn.ModuleList([block])
    if name == HALF:
        in_bf16(holder)

    def run(single: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        mask = single.new_ones(single.shape[:2])
        updated: tuple[Tensor, Tensor] = block(single, pair, mask, pair_mask(mask))
        return updated

    return run


def inputs(length: int) -> tuple[Tensor, Tensor]:
    """Single and pair of one protein."""
    generator = torch.Generator().manual_seed(0)
    single = torch.randn(1, length, WIDTH, generator=generator)
    return single, torch.randn(1, length, length, PAIR, generator=generator)


def blocks(length: int, rounds: int) -> Report:
    """Times of the blocks at a length, and errors of their updates."""
    single, pair = inputs(length)
    variants = {name: variant(name) for name in (THEIRS, SAME, HALF, TRIMUL)}
    expected = variants[THEIRS](single, pair)[1] - pair
    errors = {
        name: float((variants[name](single, pair.clone())[1] - pair - expected).norm() / expected.norm())
        for name in (SAME, HALF)
    }
    space = pair.clone()  # what comes in is of no matter to the time, as long as it stays bounded
    calls = {name: functools.partial(_refilled, run, single, pair, space) for name, run in variants.items()}
    (*_, timings) = protocol.interleave(calls, rounds)
    rows = [
        (name, str(timings.spread(name)), str(timings.speedup(name, THEIRS)), f"{errors[name]:.1e}" if name in errors
         else "-") for name in variants
    ]  # fmt: skip
    return _report(
        f"A folding block, {length} residues", {"length": length}, timings,
        ("block", "CPU-s", "times faster", "error of the pairs' update"), rows,
        f"{timings.num_rounds} rounds, median (range); each call copies the pairs first",
    )  # fmt: skip


def _refilled(run: Variant, single: Tensor, pair: Tensor, space: Tensor) -> None:
    run(single, space.copy_(pair))


def memory(length: int) -> Report:
    """What each block adds at its peak."""
    fresh, rows, added = multiprocessing.get_context("spawn"), [], {}
    for name in (THEIRS, SAME, HALF, TRIMUL):
        with fresh.Pool(1) as pool:
            added[name] = pool.apply(peak, (name, length))
        rows.append((name, f"{added[name] / 1e9:.2f}", f"{added[name] / added[THEIRS]:.2f}"))
    return _report(
        f"Peak memory of a folding block, {length} residues", {"length": length, "bytes": added}, Timings({}),
        ("block", "GB", "share of transformers'"), rows,
        f"over the weights and the pairs themselves, which take {length**2 * PAIR * 4 / 1e9:.2f} GB; theirs uncut",
    )  # fmt: skip


def peak(name: str, length: int) -> int:
    """Bytes that a block adds at its peak; meant for a process of its own."""
    protocol.one_thread()
    with torch.no_grad():
        run = variant(name)
        run(*inputs(16))
        single, pair = inputs(length)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present size
        before = high_water_mark()
        run(single, pair)
        return high_water_mark() - before


def curve(lengths: tuple[int, ...]) -> Report:
    """One timed call of each block at each length."""
    seconds: dict[str, list[float]] = {name: [] for name in (THEIRS, SAME, HALF, TRIMUL)}
    for length in lengths:
        single, pair = inputs(length)
        fits = 4 * PAIR_HEADS * length**3 * 2 < 5e9  # two rows of scores for each pair
        calls = {
            name: functools.partial(_refilled, variant(name), single, pair, pair.clone())
            for name in seconds if name != THEIRS or fits
        }  # fmt: skip
        (*_, timings) = protocol.interleave(calls, 1, warm=NOTHING if length > 256 else None)
        for name in seconds:
            seconds[name].append(timings.seconds[name][0] if name in calls else float("nan"))
        print(length, {name: round(values[-1], 2) for name, values in seconds.items()}, flush=True)
    figure, axes = blank(5, 3.5)
    for (name, values), colour in zip(seconds.items(), COLOURS, strict=False):
        axes.loglog(lengths, values, "o-", color=colour, label=name)
    axes.set(xlabel="residues", ylabel="CPU-seconds of a block", xticks=lengths, xticklabels=map(str, lengths))
    axes.legend()
    save(figure, DOCS / "fold_speed.png")
    rows = [(name, *(f"{value:.2f}" for value in values)) for name, values in seconds.items()]
    return _report(
        "Cost of a block against length, CPU-s", {"length": max(lengths)}, Timings(seconds),
        ("block", *map(str, lengths)), rows, "one round",
    )  # fmt: skip


def whole(length: int) -> Report:
    """Once: a fold by a single pass of `trimul`, and four passes of transformers' ESMFold behind its language model."""
    from transformers.models.esm.configuration_esm import TrunkConfig
    from transformers.models.esm.modeling_esmfold import EsmFoldingTrunk

    shape = FoldConfig(
        single_width=WIDTH, pair_width=PAIR, num_blocks=BLOCKS, num_single_heads=HEADS, num_pair_heads=PAIR_HEADS,
        structure_width=384, structure_pair_width=128, num_structure_layers=8, num_point_heads=12, angle_width=128,
        confidence_width=128,
    )  # fmt: skip
    features = collate([Reader(None, shape).read(("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV" * (length // 32 + 1))[:length])])
    model, esmfold = FoldModel(shape).eval(), EsmFoldingTrunk(TrunkConfig(num_blocks=BLOCKS, chunk_size=None)).eval()
    single, pair = inputs(length)
    calls: dict[str, Callable[[], object]] = {
        "trimul, 1 pass": functools.partial(model, features),
        "transformers' ESMFold, 4 passes": lambda: esmfold(
            single, torch.zeros_like(pair), features.aatype, features.index, features.mask, 3
        ),
    }
    (*_, timings) = protocol.interleave(calls, 1, warm=NOTHING)
    rows = [(name, str(timings.spread(name)), str(timings.speedup(name, [*calls][1]))) for name in calls]
    return _report(
        f"A whole fold of {length} residues, {BLOCKS} blocks", {"length": length}, timings,
        ("model", "CPU-s", "times faster"), rows,
        "two different models, measured once; trunk and structure module, without a language model",
    )  # fmt: skip


def batches(model: Path, data: Path, rounds: int) -> Report:
    """50 real proteins with a trained model: batches of about one length, and one by one."""
    chains = [chain for chain in read_chains(data) if chain.split == "test"][:NUM_PROTEINS]
    sequences, pipeline = [chain.sequence for chain in chains], load_fold(model)

    def alone() -> None:
        for sequence in sequences:
            fold(pipeline, [sequence])

    calls: dict[str, Callable[[], object]] = {"one by one": alone, "in batches": lambda: fold(pipeline, sequences)}
    (*_, timings) = protocol.interleave(calls, rounds)
    lengths = sorted(map(len, sequences))
    rows = [(name, str(timings.spread(name)), str(timings.speedup(name, "one by one"))) for name in calls]
    return _report(
        f"{len(sequences)} proteins of {lengths[0]} to {lengths[-1]} residues", {"length": sum(lengths)}, timings,
        ("folded", "CPU-s", "times faster"), rows,
        f"{timings.num_rounds} rounds, median (range); {pipeline.name} with its language model;"
        f" {len(buckets([*map(len, sequences)]))} batches",
    )  # fmt: skip


def _report(
    title: str, setting: dict[str, Any], timings: Timings, header: tuple[str, ...], rows: Sequence[tuple[str, ...]],
    *notes: str,
) -> Report:  # fmt: skip
    return Report(
        title=title, machine=Machine.here("transformers"), setting=setting, timings=timings, header=header,
        rows=list(rows), notes=notes,
    )  # fmt: skip


if __name__ == "__main__":
    main()
