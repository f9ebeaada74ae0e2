"""What bf16 and int8 cost a trained model: how far its states turn from fp32, and what the truth then costs.

    python -m benchmarks.precision runs/models/glm-8m

The first proteins of the fixed list, each eighth residue masked (xtrimo/precision_loss.py); Markdown on stdout.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import protocol
from xtrimo.checkpoint import load
from xtrimo.precision_loss import PrecisionLoss, answers
from xtrimo.prepacking import prepack, prepack_int8

NUM_PROTEINS = 12
ANY_LOSS = PrecisionLoss(cosine=-1.0, nll_rise=float("inf"))


def main() -> None:
    protocol.one_thread()
    directory = Path(sys.argv[1])
    proteins = protocol.list_proteins(protocol.FASTA)[:NUM_PROTEINS]
    exact = answers(load(directory, dtype=torch.float32), proteins)
    half = load(directory, dtype=torch.bfloat16)
    eight, _ = prepack_int8(half, proteins[:1], bounds=ANY_LOSS)
    print("| precision | cosine, mean | least | nats a masked residue |\n| --- | --- | --- | --- |")
    for name, model in (("bf16, plain", half), ("bf16", prepack(half)), ("int8", eight)):
        told = answers(model, proteins)
        loss = PrecisionLoss.between(exact, told)
        least = float(F.cosine_similarity(exact.states, told.states).min())
        print(f"| {name} | {loss.cosine:.6f} | {least:.5f} | {loss.nll_rise:+.5f} |")


if __name__ == "__main__":
    main()
