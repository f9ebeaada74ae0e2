"""The protocol's arithmetic on toy callables and a toy clock; nothing here is timed."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.protocol import (
    FASTA,
    LENGTHS,
    NAMES,
    NUM_PROTEINS,
    Machine,
    Report,
    Spread,
    Timings,
    draw_names,
    interleave,
    list_proteins,
    padding_factor,
    stratified,
)
from xtrimo.errors import CorpusError

CORPUS = Path(__file__).resolve().parents[2] / FASTA


class Clock:
    """Stands still except when a variant spends time on it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


def run_toy(rounds: int) -> tuple[list[str], list[Timings]]:
    clock, calls = Clock(), []

    def variant(name: str, seconds: float):
        def run() -> None:
            calls.append(name)
            clock.spend(seconds * len(calls))  # the machine slows down all the time

        return run

    variants = {"slow": variant("slow", 3.0), "fast": variant("fast", 1.0), "peak": variant("peak", 0.5)}
    return calls, list(interleave(variants, rounds, clock=clock))


def test_every_round_calls_each_variant_once_in_changing_order():
    calls, timings = run_toy(rounds=20)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 21  # one untimed call of each comes first
    assert all(set(order) == {"slow", "fast", "peak"} for order in rounds)
    assert len(set(rounds)) > 3
    assert [t.num_rounds for t in timings] == list(range(1, 21))


def test_something_shorter_may_come_first():
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in ("slow", "fast")}
    (timings,) = interleave(variants, 1, clock=Clock(), warm={"short": lambda: calls.append("short")})
    assert calls[0] == "short" and sorted(calls[1:]) == ["fast", "slow"]
    assert set(timings.seconds) == {"slow", "fast"}


def test_finished_rounds_stay_as_they_were():
    _, timings = run_toy(rounds=5)
    for early, late in pairwise(timings):
        assert all(late.seconds[name][:-1] == values for name, values in early.seconds.items())


def test_ratios_are_taken_within_a_round():
    timings = Timings({"peer": [4.0, 40.0, 9.0], "ours": [2.0, 10.0, 3.0]})
    assert timings.speedup("ours", "peer") == Spread(3.0, 2.0, 4.0)
    assert timings.spread("peer") == Spread(9.0, 4.0, 40.0)
    assert str(timings.speedup("ours", "peer")) == "3 (2..4)"


def test_mfu_is_a_share_of_the_best_product():
    timings = Timings({"step": [2.0, 4.0, 3.0], "product": [2.0, 1.0, 5.0]})
    mfu = timings.share_of_peak("step", 60.0, "product", 50.0)  # 30, 15 and 20 a second, of 50
    assert (mfu.median, mfu.low, mfu.high) == pytest.approx((0.4, 0.3, 0.6))


def test_padding_factor_by_hand():
    assert padding_factor([10, 10, 10]) == 1
    assert padding_factor([10, 20, 30, 40], batch=2) == pytest.approx((2 * 20 + 2 * 40) / 100)
    assert padding_factor([10, 20, 30], batch=2) == pytest.approx((2 * 20 + 30) / 60)


@pytest.mark.parametrize("num", [16, 32, 96])
def test_subset_pads_and_spreads_like_the_whole(num):
    lengths = [40 + 7 * i * i % 953 for i in range(1000)]
    chosen = stratified(lengths, num)
    assert len(set(chosen)) == num
    subset = [lengths[i] for i in chosen]
    assert padding_factor(subset) == pytest.approx(padding_factor(lengths), rel=0.05)
    ranks = sorted(sorted(lengths).index(length) for length in subset)
    slices = [rank * num // 1000 for rank in ranks]
    assert all(abs(slice_ - i) <= 1 for i, slice_ in enumerate(slices))  # one of each, but for equal lengths
    assert chosen == stratified(lengths, num)


def test_the_list_of_names():
    names = NAMES.read_text().split()
    assert len(set(names)) == len(names) == NUM_PROTEINS


def write_fasta(path, lengths):
    path.write_text("".join(f">p{i}\n{'MKVL' * (n // 4) + 'W' * (n % 4)}\n" for i, n in enumerate(lengths)))
    return path


def test_the_draw_keeps_to_the_lengths_and_repeats(tmp_path):
    fasta = write_fasta(tmp_path / "all.fasta", [29, 1023, *(LENGTHS[i % 200] for i in range(1100))])
    names = draw_names(fasta)
    assert len(set(names)) == NUM_PROTEINS and not {"p0", "p1"} & set(names)
    assert names == draw_names(fasta) != sorted(names)


def test_proteins_come_in_the_order_of_the_list(tmp_path):
    fasta, names = write_fasta(tmp_path / "all.fasta", [40, 50, 60]), tmp_path / "names.txt"
    names.write_text("p2\np0\n")
    assert [len(record.sequence) for record in list_proteins(fasta, names)] == [60, 40]
    names.write_text("p2\nq\n")
    with pytest.raises(CorpusError, match="lacks 1 of the 2 proteins.*e.g. q"):
        list_proteins(fasta, names)


def test_a_report_says_the_same_in_both_files(tmp_path):
    machine = Machine(cpu="toy", cores=2, threads=1, load_average=0.25, versions={"torch": "0"})
    report = Report(
        title="Toy", machine=machine, setting={"num_proteins": 3}, timings=Timings({"a": [1.0, 2.0]}),
        header=("step", "CPU-s"), rows=[("a", "1.5")], notes=("a note",),
    )  # fmt: skip
    report.save(tmp_path / "new", "toy")
    facts = json.loads((tmp_path / "new" / "toy.json").read_text())
    assert facts["timings"]["seconds"] == {"a": [1.0, 2.0]} and facts["machine"]["cpu"] == "toy"
    table = (tmp_path / "new" / "toy.md").read_text()
    assert "| step | CPU-s |\n| --- | --- |\n| a | 1.5 |" in table and "* a note" in table
    assert "toy, 2 cores, 1 thread; torch 0; load 0.2" in table


def test_machine_facts():
    machine = Machine.here("numpy")
    assert machine.cpu and machine.cores >= 1 and set(machine.versions) == {"python", "torch", "numpy"}


@pytest.mark.skipif(not CORPUS.exists(), reason=f"{FASTA} is not on this machine")
def test_the_real_subsets_pad_like_the_real_list():
    lengths = [len(record.sequence) for record in list_proteins(CORPUS)]
    assert all(length in LENGTHS for length in lengths)
    for num in (16, 32, 96):
        subset = [lengths[i] for i in stratified(lengths, num)]
        assert padding_factor(subset) == pytest.approx(padding_factor(lengths), rel=0.05)
        assert sum(subset) / num == pytest.approx(sum(lengths) / len(lengths), rel=0.02)
