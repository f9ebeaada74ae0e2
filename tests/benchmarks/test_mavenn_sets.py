"""The sets of mavenn, from a made-up wheel."""

import gzip
import zipfile
from pathlib import Path

from benchmarks.mavenn_sets import MEMBER, read, to_assay
from heads.proteingym import read_assay, write_assay


def test_a_set_becomes_an_assay(tmp_path: Path) -> None:
    rows = ["set,dist,y,dy,x", *(f"training,1,{i}.5,0,{x}" for i, x in enumerate(("AKV", "MKA", "MGV", "MK*", "MKL")))]
    with zipfile.ZipFile(tmp_path / "mavenn.whl", "w") as archive:
        archive.writestr(MEMBER.format("tdp43"), gzip.compress("\n".join(rows).encode()))
    assay, num_stops = to_assay("tdp43", list(read(tmp_path / "mavenn.whl", "tdp43")))
    assert (assay.wild_type[:2], num_stops, assay.selection) == ("MK", 1, "OrganismalFitness")
    rows = [*read(tmp_path / "mavenn.whl", "tdp43"), ("MKV", 9.0)]
    assay, _ = to_assay("tdp43", rows)
    assert assay.wild_type == "MKV"
    assert [variant.mutant for variant in assay.variants] == ["M1A", "V3A", "K2G", "V3L"]
    assert [variant.score for variant in assay.variants] == [-0.5, -1.5, -2.5, -4.5], "toxicity turned around"
    assert [variant.is_fit for variant in assay.variants] == [True, True, True, False]
    write_assay(tmp_path / "tdp43.csv", assay)
    assert read_assay(tmp_path / "tdp43.csv").variants == assay.variants
