"""The alignment example on toy families, and its figures against plain sums."""

import gzip
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from examples import align_families
from examples.align_figures import best_of_n, rows
from generate.drafts import Drafts
from generate.membership import bit_scores, read_hmms
from tests.generate.families import members, write_family
from tests.heads.generated import made_dataset
from tests.heads.test_finetune import csv_file
from xtrimo import checkpoint
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("align")
    files = write_family(folder)
    (folder / "families.hmm.gz").write_bytes(gzip.compress(files["hmm"].read_bytes()))
    write_fasta(folder / "sample.fasta.gz", (Record(f"r{i}", s) for i, s in enumerate(toy_sequences(100))))
    words = ("<rev>", "<family=kinase>", "<family=lyase>")
    checkpoint.save(GLM(toy_config(num_layers=2, max_length=600, control_words=words), seed=1), folder / "model")
    checkpoint.save(GLM(toy_config(num_layers=2, max_length=600), seed=2), folder / "judge")
    (folder / "tasks").mkdir()
    csv_file(made_dataset("sequence", "regression"), folder / "tasks/stability.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align_families, "PROBES", ("stability",))
        patch.setattr("generate.drafts.best_method", lambda: "3-mers and alignment")
        patch.setattr(align_families, "OTHERS", (align_families.Drafted(4, 3, 2),))
        patch.setattr(align_families, "MAX_LENGTH", 40)
        # random letters are of no family, so all bits would be 0
        patch.setattr(align_families, "family_bits", lambda hmms, name: toy_reward(read_hmms(hmms), name))
        args = [
            str(folder), "--model", str(folder / "model"), "--judge", str(folder / "judge"), "--out",
            str(folder / "out"), "--num", "8", "--rounds", "1", "--steps", "2", "--pool", "32",
            "--tasks", str(folder / "tasks"), "--max-rows", "24",
        ]  # fmt: skip
        assert align_families.main(args) == 0
        assert align_families.main(args) == 0  # read again
    return folder


def toy_reward(hmms: list, name: str):
    def reward(proteins):
        assert not bit_scores(hmms, members(1, 1)).max() < 20
        return np.array([p.count("KL"[name == "lyase"]) for p in proteins], dtype=float)

    return reward


def test_the_page_has_every_run(folder: Path) -> None:
    page = (folder / "out/align_families.md").read_text()
    facts = json.loads((folder / "out/figures.json").read_text())
    assert list(facts["runs"]) == ["rest", "dpo", "dno", "rest-4"]
    for name, standings in facts["runs"].items():
        assert [each["round"] for each in standings] == [0, 1] and f"| {name} |" in page
        assert standings[0]["gain"]["value"] == pytest.approx(0, abs=1e-9)
        assert set(standings[0]["replay"]) == {"mlm", "gmask", "smask"}
    steps = {name: json.loads((folder / "out" / name / "settings.json").read_text())["steps"] for name in facts["runs"]}
    assert steps == {"rest": 2, "dpo": 2, "dno": 2, "rest-4": 4}
    first = [standings[0]["reward"] for name, standings in facts["runs"].items() if name != "rest-4"]
    assert first[0] == first[1] == first[2]  # the same drafts
    assert "| stability, spearman |" in page and page.count("| rest |") == 5  # once in each table but best of n
    assert (folder / "out/align_families.png").stat().st_size > 10_000
    assert {point["by"] for point in facts["points"]} >= {"gold", "32 pairs"}


def test_best_of_n_is_in_deviations_of_each_prompt(folder: Path) -> None:
    pool = Drafts.load(folder / "out/pool.csv")
    points = {point.n: point for point in best_of_n(pool, "naturalness")}
    assert list(points) == [1, 2, 4, 8, 16] and points[1].gain == pytest.approx(0)
    expected, judged = [], []
    for prompt in ("<family=kinase>", "<family=lyase>"):
        own = pool.places(prompt)[16:]
        values = pool.rewards[own]
        assert values.std() > 0
        best = [max(pair, key=lambda place: (pool.rewards[place], place)) for pair in combinations(own, 2)]
        expected.append((np.mean([pool.rewards[place] for place in best]) - values.mean()) / values.std())
        judged.append(np.mean([pool.judges["naturalness"][place] for place in best]))
    assert points[2].gain == pytest.approx(np.mean(expected)) and points[2].judged == pytest.approx(np.mean(judged))
    assert rows([points[2]])[1][:2] == ["gold", "2"]
