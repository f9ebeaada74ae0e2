"""Domains and loops against those that the literature gives for trastuzumab, and naturalness of the parts."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from xtrimo.antibodies import DOMAIN, REGIONS, main, naturalness, regions_of
from xtrimo.checkpoint import save
from xtrimo.errors import SequenceError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.scoring import score
from xtrimo.testing import toy_config

HEAVY = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSR"
    "WGGDGFYAMDYWGQGTLVTVSS"
)
LIGHT = "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK"
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
CDRS = {
    "imgt": ["GFNIKDTY", "IYPTNGYT", "SRWGGDGFYAMDY", "QDVNTA", "SAS", "QQHYTTPPT"],
    "kabat": ["DTYIH", "RIYPTNGYTRYADSVKG", "WGGDGFYAMDY", "RASQDVNTAVA", "SASFLYS", "QQHYTTPPT"],
}


@pytest.mark.parametrize("scheme", CDRS)
def test_loops_of_trastuzumab(scheme: str) -> None:
    """As two chains, and as one with a tag, a linker and a bit of constant domain."""
    for chains in ([HEAVY, LIGHT], ["MGSS" + HEAVY + "GGGGSGGGGSGGGGS" + LIGHT + "RTVAAPS"]):
        found = [(chain, region) for chain in chains for region in regions_of(chain, scheme=scheme)]
        assert [region.chain for _, region in found if region.name == DOMAIN] == ["H", "K"]
        loops = [chain[region.first - 1 : region.last] for chain, region in found if region.name.startswith("cdr")]
        assert loops == CDRS[scheme]
        whole = [chain[region.first - 1 : region.last] for chain, region in found if region.name == DOMAIN]
        assert whole == [HEAVY, LIGHT]
        parts = [chain[region.first - 1 : region.last] for chain, region in found if region.name in REGIONS]
        assert "".join(parts) == HEAVY + LIGHT


def test_what_is_no_antibody() -> None:
    for sequence in (UBIQUITIN, "MKV"):
        with pytest.raises(SequenceError, match="u: no variable domain of an antibody"):
            regions_of(sequence, name="u")


def test_naturalness_is_of_the_domain_alone() -> None:
    torch.manual_seed(0)
    model = GLM(toy_config()).eval()
    found = {
        (own.region.chain, own.region.name): own for own in naturalness(model, Record("s", "MGSS" + HEAVY + "ASTK"))
    }
    (alone,) = score(model, [HEAVY])
    assert found["H", DOMAIN].nll == pytest.approx(alone.nll, abs=1e-6)
    loop = HEAVY.index(CDRS["imgt"][2])
    expected = alone.residue_nll[loop : loop + len(CDRS["imgt"][2])].mean()
    assert found["H", "cdr3"].nll == pytest.approx(float(expected), abs=1e-6)
    assert found["H", "cdr3"].ppl == pytest.approx(float(np.exp(expected)), rel=1e-6)


def test_the_verb(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(GLM(toy_config(licence="Apache-2.0")), tmp_path / "model")
    write_fasta(tmp_path / "a.fasta", [Record("a", HEAVY), Record("b", LIGHT)])
    args = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "a.csv")]
    main([str(tmp_path / "a.fasta"), *args])
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["chain"], row["region"]) for row in rows] == [
        (name, chain, region) for name, chain in (("a", "H"), ("b", "K")) for region in (DOMAIN, *REGIONS)
    ]
    assert rows[6]["residues"] == CDRS["imgt"][2] and (rows[6]["first"], rows[6]["last"]) == ("97", "109")
    write_fasta(tmp_path / "u.fasta", [Record("a", HEAVY), Record("u", UBIQUITIN)])
    with pytest.raises(SequenceError, match="u: no variable domain"):  # before any work
        main([str(tmp_path / "u.fasta"), *args])
