"""Runs of `train-fold` as a section of docs/results.md."""

import json
from pathlib import Path
from typing import Any

from benchmarks.folding import Run, draw, section


def made(folder: Path, model: str, lddt: list[float]) -> Run:
    """A finished run whose chains have these figures; the last has no long range."""
    estimate = {"value": sum(lddt) / len(lddt), "low": 0.1, "high": 0.9}
    figures = dict.fromkeys(("lddt", "tm", "precision"), estimate)
    chains: list[dict[str, Any]] = [{"lddt": value, "tm": value / 2, "precision": 0.5} for value in lddt]
    chains[-1]["precision"] = None
    test = {"num_chains": len(lddt), "trained": figures, "untrained": figures, "correlation": 0.5, "chains": chains,
            "reliability": [{"low": 40, "high": 50, "num_residues": 7, "plddt": 45.0, "lddt": 41.0}]}  # fmt: skip
    (folder / "training").mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"model": model}))
    (folder / "results.json").write_text(json.dumps({"best_step": 500, "test": test}))
    lines = [{"split": "train", "step": 1, "loss": 3.0}, {"split": "valid", "step": 500, "figure": 0.3}]
    (folder / "training/metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return Run.read(folder)


def test_the_section_compares_the_same_chains(tmp_path: Path) -> None:
    runs = [made(tmp_path / "lm", "models/glm", [0.4, 0.6, 0.5]), made(tmp_path / "aa", "none", [0.3, 0.4, 0.3])]
    text = section(runs)
    assert "| glm | 500 | 0.500 (0.100 to 0.900) |" in text and "| amino acids alone | 500 | 0.333" in text
    assert "| untrained | 0 | 0.500" in text and "Means over 3 chains" in text
    assert "glm over amino acids alone, on the same chains: lDDT 0.167 (0.100 to 0.200), TM-score 0.083" in text
    draw(runs, tmp_path / "folding.png")
    assert (tmp_path / "folding.png").read_bytes().startswith(b"\x89PNG")
