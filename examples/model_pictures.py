"""The pictures of docs/model.md, drawn by the code that they show: `python examples/model_pictures.py [--out docs]`.

segments.png    a packed row: who sees whom, by the rectangles that attention multiplies
positions.png   the two position channels of a row, and how far each turns a head
block.png       a DeepNorm block, with the shapes of its weights
ranks.png       sixteen ranks, by the groups that megatron-core makes
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from xtrimo.attention import blocks
from xtrimo.config import preset
from xtrimo.figures import COLOURS, GREY, blank, save
from xtrimo.model import DeepNormBlock
from xtrimo.objectives import Fragment, ObjectiveConfig, gmask, mlm, smask
from xtrimo.packing import Row, pack
from xtrimo.rope import angles
from xtrimo.tokens import Tokenizer, encode_residues

PROTEINS = ("MKTAYI", "MKVLAG", "MSDE")
COLOUR_OF = dict(zip(("mlm", "smask", "gmask"), COLOURS, strict=False))
MODEL = "glm-1m"


def example_row() -> Row:
    """Three short proteins, one an objective, drawn as training draws them and packed end to end."""
    config = ObjectiveConfig(mask_ratio=0.3, average_span=5.0, reverse_ratio=0.0, unconditional_ratio=0.0)
    rng = np.random.default_rng(4)
    return pack(
        [
            build(Fragment(encode_residues(protein, name="picture")), rng, config)
            for build, protein in zip((mlm, smask, gmask), PROTEINS, strict=True)
        ]
    )


def seen(row: Row) -> Bool[np.ndarray, "query key"]:
    """Who sees whom, by the rectangles that `attend` multiplies."""
    num = len(row.tokens)
    out = np.zeros((num, num), dtype=bool)
    for block in blocks(torch.from_numpy(row.segments), 0, num):
        for start, end, causal in block.keys:
            part = np.ones((block.end - block.start, end - start), dtype=bool)
            out[block.start : block.end, start:end] = np.tril(part) if causal else part
    return out


def words(row: Row) -> list[str]:
    """The words of a row."""
    tokenizer = Tokenizer()
    return [tokenizer.decode([token]) for token in row.tokens.tolist()]


def draw_segments(out: Path) -> Path:
    row = example_row()
    shown, names = seen(row), words(row)
    figure, axes = blank(6.0, 5.6)
    picture = np.ones((*shown.shape, 3))
    for (start, length, prefix), name in zip(row.segments.tolist(), COLOUR_OF, strict=True):
        part = slice(start, start + length)
        picture[part, part][shown[part, part]] = _rgb(COLOUR_OF[name])
        x, side = (start - 1, "right") if start else (length, "left")
        label = f"{name}\n{length} tokens\nprefix {prefix}"
        axes.text(x, start + (length - 1) / 2, label, fontsize=8, ha=side, va="center")
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="is seen", ylabel="sees")
    axes.set_xticklabels(names, rotation=90, fontsize=7)
    axes.set_yticklabels(names, fontsize=7)
    axes.set_xticks(np.arange(len(names)) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names)) - 0.5, minor=True)
    axes.grid(which="minor", color=GREY, linewidth=0.3)
    axes.tick_params(which="both", length=0)
    return save(figure, out / "segments.png")


def draw_positions(out: Path) -> Path:
    row, config = example_row(), preset(MODEL)
    names, both = words(row), row.positions
    turn = angles(torch.from_numpy(both), config)[:, :, 1].numpy()  # the second pair: the first turns too fast to see
    figure, empty = blank(9.5, 3.4)
    empty.remove()
    numbers, wheels = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    for channel, what in enumerate(("place in the chain", "place in the span")):
        for place, value in enumerate(both[:, channel].tolist()):
            numbers.text(place, -channel, str(value), ha="center", va="center", fontsize=8)
        wheels.scatter(range(len(names)), np.full(len(names), -channel), s=170, color="white", edgecolor=GREY)
        x, y = np.arange(len(names)), np.full(len(names), -channel, dtype=float)
        wheels.quiver(
            x, y, np.sin(turn[:, channel]), np.cos(turn[:, channel]), angles="xy", scale=4.5, scale_units="inches",
            width=0.003, color=COLOURS[channel],
        )  # fmt: skip
        for axes in (numbers, wheels):
            axes.text(-1.2, -channel, what, ha="right", va="center", fontsize=8)
    for axes in (numbers, wheels):
        axes.set(ylim=(-1.7, 0.7), xlim=(-1, len(names)), yticks=[])
        axes.spines[:].set_visible(False)
        for start, length, _ in row.segments.tolist():
            axes.axvline(start + length - 0.5, color=GREY, linewidth=0.5)
    wheels.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    for axes in (numbers, wheels):
        axes.tick_params(length=0)
    return save(figure, out / "positions.png")


def draw_block(out: Path) -> Path:
    """The order is that of `DeepNormBlock.forward`; the shapes are those of its weights."""
    config = preset(MODEL)
    block = DeepNormBlock(config)
    shapes = {name: " x ".join(map(str, weight.shape)) for name, weight in block.named_parameters()}
    steps = [
        ("x", "from the block below", ""),
        ("attention_norm", "LayerNorm; its output is the residual", shapes["attention_norm.weight"]),
        ("attention.qkv", "per head [q, k, v]; q and k are turned", shapes["attention.qkv.weight"]),
        ("attend", "softmax within each segment", f"{config.num_heads} heads of {config.head_dim}"),
        ("attention.dense", "", shapes["attention.dense.weight"]),
        ("+", f"alpha x + attention(x), alpha = sqrt(2L) = {block.alpha:.3f}", ""),
        ("mlp_norm", "LayerNorm; its output is the residual", shapes["mlp_norm.weight"]),
        ("mlp.up", "value and gate", shapes["mlp.up.weight"]),
        ("GEGLU", "value * gelu(gate)", f"{config.ffn_size}"),
        ("mlp.down", "", shapes["mlp.down.weight"]),
        ("+", f"alpha x + mlp(x), alpha = {block.alpha:.3f}", ""),
    ]
    figure, axes = blank(6.0, 5.4)
    for number, (name, what, shape) in enumerate(steps):
        colour = {"+": COLOURS[1], "x": "white"}.get(name, "#dbe9f4")
        box = dict(boxstyle="round,pad=0.35", facecolor=colour, edgecolor="black", linewidth=0.8)
        axes.text(0, number, name, ha="center", va="center", bbox=box, fontsize=9)
        axes.text(0.42, number, what, ha="left", va="center", fontsize=8)
        axes.text(2.25, number, shape, ha="right", va="center", fontsize=8, color="#555555")
        if number:
            axes.annotate("", (0, number - 0.28), (0, number - 0.72), arrowprops=dict(arrowstyle="->", linewidth=0.8))
    for first, last in ((1, 5), (6, 10)):
        axes.plot((-0.22, -0.5, -0.5, -0.14), (first, first, last, last), color=COLOURS[1], linewidth=1.2)
        axes.text(-0.54, (first + last) / 2, "x alpha", ha="right", va="center", fontsize=8, rotation=90)
    axes.set(xlim=(-0.75, 2.3), ylim=(-0.6, len(steps) - 0.4), title=f"A block of {MODEL}, read upwards")
    axes.set_axis_off()
    return save(figure, out / "block.png")


def draw_ranks(out: Path) -> Path:
    """Sixteen ranks as tensor 2 x context 2 x data 2 x pipeline 2."""
    from pretrain.parallel import parallel_state  # seconds of imports

    groups = parallel_state.RankGenerator(tp=2, ep=1, dp=2, pp=2, cp=2, order="tp-cp-ep-dp-pp")
    axis = {name: np.zeros(16, dtype=int) for name in ("tp", "cp", "dp", "pp")}
    for name, place in axis.items():
        for group in groups.get_ranks(name):
            place[group] = range(len(group))
    figure, axes = blank(7.6, 3.6)
    for rank in range(16):
        x = axis["tp"][rank] + 2.2 * axis["cp"][rank] + 4.8 * axis["dp"][rank]
        y = axis["pp"][rank] * 1.5
        colour = COLOURS[2 * axis["cp"][rank] + axis["tp"][rank]]
        box = dict(boxstyle="square,pad=0.5", facecolor=colour, alpha=0.35, edgecolor="black", linewidth=0.8)
        axes.text(x, y, f"{rank:2d}", ha="center", va="center", bbox=box, fontsize=10, family="monospace")
    for copy in range(2):
        axes.text(4.8 * copy + 1.6, 2.3, f"data {copy}: rows of its own", ha="center", fontsize=9)
        for part in range(2):
            left = 4.8 * copy + 2.2 * part
            axes.text(left + 0.5, -0.75, f"tokens {part + 1}/2\n(context)", ha="center", va="top", fontsize=8)
    for stage in range(2):
        axes.text(-0.8, 1.5 * stage, f"layers {stage + 1}/2\n(pipeline)", ha="right", va="center", fontsize=8)
    axes.text(0.5, 0.75, "tensor: half of\neach weight", ha="center", va="center", fontsize=7)
    axes.set(xlim=(-2.2, 8.4), ylim=(-1.5, 2.7))
    axes.set_axis_off()
    return save(figure, out / "ranks.png")


def _rgb(colour: str) -> Any:
    return [int(colour[i : i + 2], 16) / 255 * 0.6 + 0.4 for i in (1, 3, 5)]


PICTURES = {"segments": draw_segments, "positions": draw_positions, "block": draw_block, "ranks": draw_ranks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the PNGs")
    parser.add_argument("--only", nargs="*", choices=PICTURES, default=list(PICTURES), help="which of them")
    options = parser.parse_args()
    for name in options.only:
        print(PICTURES[name](options.out))


if __name__ == "__main__":
    main()
