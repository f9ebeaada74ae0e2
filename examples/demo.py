"""The whole journey in minutes on two cores: proteins -> corpus -> pretraining -> model directory -> new proteins.

`make demo` runs it, and writes to demo/ in the project's folder; each step is the `xtrimo` command that it prints.
After an interruption it goes on where it was; once finished, the next run starts afresh. The exit status is 1 if the
model predicts the held-out residues of any objective no better than their frequencies do.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xtrimo.__main__ import main as xtrimo
from xtrimo.fasta import Record, read_fasta

if TYPE_CHECKING:  # what needs torch is imported after the first command, which says how torch's threads wait
    from pretrain.held_out import Comparison

ROOT = Path(__file__).resolve().parents[1]
DEMO = Path("demo")
STEPS = 480
RANKS = min(2, os.cpu_count() or 1)
SETTINGS = (
    "--model glm-1m --batch.rows 2 --batch.row-length 2048"
    " --optimizer.learning-rate 2e-3 --optimizer.min-learning-rate-ratio 0.02 --optimizer.warmup-ratio 0.04"
    " --curriculum.mlm-tokens 250000 --curriculum.ramp-tokens 100000"
    " --curriculum.mlm-share 0.25 --curriculum.smask-share 0.35"
    " --validate-every 80 --valid-tokens 20000 --save-every 100 --log-every 20"
)


def run(command: str) -> None:
    """One `xtrimo` command; ends the demo if it fails."""
    print(f"\n$ xtrimo {command}", flush=True)
    if status := xtrimo(command.split()):
        sys.exit(status)


def run_on_ranks(command: str) -> None:
    """One `xtrimo` command on data-parallel processes of one thread: matrices this small leave a second thread idle."""
    launch = f"--standalone --nproc-per-node {RANKS} -m xtrimo {command}"
    print(f"\n$ torchrun {launch}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", *launch.split()]
    if status := subprocess.run(torchrun, env=environment).returncode:
        sys.exit(status)


def judge(model_directory: Path, corpus: Path, valid_tokens: int) -> "list[Comparison]":
    """The model's held-out nats of each objective, beside residue n-grams."""
    from pretrain.held_out import compare, validation_config
    from xtrimo.checkpoint import load

    model = load(model_directory)
    return compare(model, validation_config(model.config, corpus, seed=0, valid_tokens=valid_tokens))


def speed(metrics: Path) -> tuple[float, float]:
    """Median residues/s of the training run, and the MFU that goes with it."""
    from xtrimo.training_log import read_metrics

    entries = read_metrics(metrics)
    rates = sorted((e["residues_per_second"], e["mfu"]) for e in entries if e["split"] == "train")
    return rates[len(rates) // 2]


def report(results: "list[Comparison]", samples: list[Record], rates: tuple[float, float], seconds: float) -> str:
    """What came out, as Markdown."""
    from pretrain.held_out import markdown

    shown = "\n".join(f"- {sample.description}\n  `{sample.sequence[:80]}`" for sample in samples[:3])
    return (
        "# Demo\n\nNats per residue of held-out proteins, with 95 % bootstrap intervals over proteins; lower is better."
        f"\n\n{markdown(results)}\n\n"
        f"Trained at {rates[0]:,.0f} residues/s; MFU {rates[1]:.0%} of the matrix-product rate measured when training"
        " began (other work on the machine blurs both).\n"
        f"The demo took {seconds:.0f} s, and {sum(os.times()[:4]):.0f} s of processor time.\n\n"
        f"The first 80 residues of three of the {len(samples)} proteins in samples.fasta:\n\n{shown}\n\n"
        "![training](loss.png)\n"
    )


def main() -> int:
    """Run the demo; the exit status."""
    began = time.monotonic()
    os.chdir(ROOT)
    if (DEMO / "report.md").exists():
        shutil.rmtree(DEMO)
    print("A GLM of a million weights learns bacterial proteins; all output is in demo/. To begin anew, delete demo/.")
    run(f"corpus examples/proteins.fasta.gz --out {DEMO}/corpus --valid-ratio 0.04")
    run_on_ranks(f"pretrain --corpus {DEMO}/corpus --out {DEMO}/run --steps {STEPS} {SETTINGS}")
    run(f"export {DEMO}/run {DEMO}/model")
    run(f"generate --model {DEMO}/model --num 16 --temperature 0.9 --top-p 0.8 --seed 0 --out {DEMO}/samples.fasta")

    from pretrain.curves import plot_curves

    metrics = DEMO / "run/metrics.jsonl"
    results = judge(DEMO / "model", DEMO / "corpus", valid_tokens=60_000)
    plot_curves(metrics, DEMO / "loss.png")
    samples = list(read_fasta(DEMO / "samples.fasta"))
    text = report(results, samples, speed(metrics), time.monotonic() - began)
    (DEMO / "report.md").write_text(text)
    print(f"\n{text}")
    failed = [result.objective for result in results if result.gain["unigram"].value <= 0]
    if failed:
        print(f"Not below the unigram's: the held-out loss of {', '.join(failed)}. The training did not work.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
