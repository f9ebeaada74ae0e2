"""The demo, with too few proteins and steps to learn anything: it writes its files, and says that it failed."""

import itertools
import subprocess
import sys
from pathlib import Path

from xtrimo.fasta import read_fasta, write_fasta

ROOT = Path(__file__).resolve().parents[1]
TINY = """
import pathlib, sys
import demo
demo.ROOT, demo.STEPS = pathlib.Path.cwd(), 2
demo.SETTINGS = "--model glm-1m --batch.row-length 1280 --batch.rows 2 --valid-tokens 1000"
sys.exit(demo.main())
"""


def test_an_untrained_model_fails_the_demo(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    records = itertools.islice(read_fasta(ROOT / "examples/proteins.fasta.gz"), 120)
    write_fasta(tmp_path / "examples/proteins.fasta.gz", records)
    (tmp_path / "demo/model").mkdir(parents=True)
    (tmp_path / "demo/model/of_an_earlier_demo").touch()  # a finished one, which gives way
    (tmp_path / "demo/report.md").touch()

    path = {"PYTHONPATH": str(ROOT / "examples"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", TINY], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Not below the unigram's: the held-out loss of mlm, gmask, smask" in done.stdout
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert [line.partition("xtrimo ")[2].split()[0] for line in commands] == [
        "corpus",
        "pretrain",
        "export",
        "generate",
    ]

    demo = tmp_path / "demo"
    assert (demo / "report.md").read_text() in done.stdout
    assert {"samples.fasta", "loss.png", "report.md", "model"} <= {path.name for path in demo.iterdir()}
    assert not (demo / "model/of_an_earlier_demo").exists()
    samples = list(read_fasta(demo / "samples.fasta"))
    assert len(samples) == 16 and all(sample.description.startswith("nll=") for sample in samples)
