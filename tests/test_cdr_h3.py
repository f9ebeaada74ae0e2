"""The example's parts by hand, and the whole of it on a short chain."""

from pathlib import Path

import numpy as np
import pytest

from examples import cdr_h3 as example
from generate.prompt import Gap
from xtrimo import antiberty
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, write_fasta
from xtrimo.scoring import score

CHAIN = example.Chain("QVQLVETAVYYC", "ARDGYYFDY", "WGQGTLV")


def test_the_loop_of_trastuzumab() -> None:
    chain = example.find_loop(example.TRASTUZUMAB)
    assert chain.loop == "SRWGGDGFYAMDY"  # IMGT 105 to 117
    assert chain.holding(chain.loop) == example.TRASTUZUMAB
    assert example.find_loop(CHAIN.holding("ACWGGCY")).loop == "ACWGGCY"
    with pytest.raises(DataError, match="no CDR-H3"):
        example.find_loop("MQIFVKTLTGKTITLEVEPSD")


def test_what_each_mode_changes() -> None:
    rng = np.random.default_rng(0)
    hidden, changed = set(), set()
    for _ in range(200):
        prompt = example.short_prompt(CHAIN, rng)
        (gap,) = prompt.gaps
        assert prompt.is_exact and prompt.shortest == len(CHAIN.holding(CHAIN.loop))
        before, after = (piece.residues for piece in prompt.pieces if not isinstance(piece, Gap))
        assert before.startswith(CHAIN.before) and after.endswith(CHAIN.after)
        hidden.add((gap.shortest, len(before) - len(CHAIN.before)))
        loop = example.mutated(CHAIN.loop, rng)
        changed.add(sum(a != b for a, b in zip(loop, CHAIN.loop, strict=True)))
    assert hidden == {(n, start) for n in range(3, 7) for start in range(len(CHAIN.loop) - n + 1)}
    assert changed == {3, 4, 5, 6}
    assert str(example.whole_prompt(CHAIN, Gap(9, 9))) == "QVQLVETAVYYC[9]WGQGTLV"
    assert len(set(example.random_loop(4000, rng))) == 20


def test_nats_of_a_loop_are_those_of_its_residues_in_the_chain() -> None:
    judge = antiberty.load(antiberty.installed())
    loops = [CHAIN.loop, "ARWGY", CHAIN.loop]
    scores = score(judge, [CHAIN.holding(loop) for loop in loops], method="pseudo")
    first = len(CHAIN.before)
    expected = [s.residue_nll[first : first + len(loop)].mean() for s, loop in zip(scores, loops, strict=True)]
    np.testing.assert_allclose(example.loop_nats(judge, CHAIN, loops), expected, rtol=1e-4)


def test_retrieval_draws_from_the_loops_of_the_user(tmp_path: Path) -> None:
    known = {"ARDY", "TTGGFDY"}
    write_fasta(tmp_path / "loops.fasta", [Record(loop, loop) for loop in known])
    options = example.Options(loops=tmp_path / "loops.fasta", out=tmp_path, num=20)
    loops = example.retrieved(options, antiberty.load(antiberty.installed()), CHAIN)
    assert len(loops) == 20 and set(loops) == known
    mode = example.Mode(name="retrieval", loops=loops, nats=np.ones(20))
    assert "Retrieval: loops.fasta" in example.report(options, CHAIN, [mode], 1.0)


def test_the_command_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fasta(tmp_path / "chain.fasta", [Record("short", CHAIN.holding(CHAIN.loop))])
    assert example.main(["--chain", str(tmp_path / "chain.fasta"), "--num", "2", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "cdr_h3.md").read_text()
    assert page in capsys.readouterr().out
    first = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    modes = ["short mask, antiberty", "whole mask, antiberty", "mutation", "retrieval", "random"]
    assert first == ["mode", "---", *modes, "mode", "---", *modes]
    assert "Retrieval: loops sampled from AntiBERTy, of no antibody" in page
    assert (tmp_path / "loops.fasta").read_text().count("sampled from AntiBERTy; of no antibody") == 2
    assert (tmp_path / "cdr_h3.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("loop", ["ARXY", "ARUY", "A" * 36])
def test_loops_that_cannot_be_judged(loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told before any model runs."""
    monkeypatch.setattr(example, "load", lambda _: pytest.fail("a model was loaded"))
    write_fasta(tmp_path / "loops.fasta", [Record("good", "ARDY"), Record("odd", loop)])
    with pytest.raises(DataError, match=r"loops.fasta: odd .*(X|U|36 residues)"):
        example.main(["--loops", str(tmp_path / "loops.fasta"), "--out", str(tmp_path / "out")])
    with pytest.raises(DataError, match="expected the 20 amino acids|36 residues"):
        example.loop_nats(None, CHAIN, ["ARDY", loop])  # type: ignore[arg-type]


def test_a_chain_whose_loop_has_an_unknown_residue() -> None:
    with pytest.raises(DataError, match="ARXY"):
        example.find_loop(CHAIN.holding("ARXY"))


def test_models_of_one_name_are_kept_apart() -> None:
    assert example.labels(("antiberty", "a/final", "b/final/", "c/glm")) == ["antiberty", "a/final", "b/final", "glm"]
    assert example.labels(("antiberty", "x/antiberty")) == ["antiberty", "x/antiberty"]
    with pytest.raises(ConfigError, match="a/final is there twice"):
        example.Options(models=("a/final", "a/final/"))
