"""DeepSpeed's engine learns what torch's does, survives kills, compiles nothing, and refuses what is not for it."""

import copy
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.heads.generated import made_dataset
from tests.heads.test_finetune import model as toy_model
from tests.heads.test_finetune import options as finetune_options
from tests.xtrimo.test_training import CONFIG, batches, loss, losses, make_module, total_loss
from xtrimo import deepspeed_engine, training_config
from xtrimo.engine import trained
from xtrimo.errors import ConfigError, MissingExtraError, StoppedError
from xtrimo.stopping import STOP
from xtrimo.testing import run_distributed
from xtrimo.training import Progress, fit
from xtrimo.training_config import EngineOptions, TrainingConfig
from xtrimo.training_log import read_metrics

pytestmark = [
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra deepspeed is not installed"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]

RUN = replace(
    CONFIG, steps=8, clip_norm=0.1, accumulate=3, average=0.5, validate_every=2, save_every=3, weight_decay=0.1
)
"""Pieces of two items, one and one, which weigh 1 to 3 each."""


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Once, and not in each rank: they are forks of this process."""
    importlib.import_module("deepspeed")


PATIENCE = 280.0  # seconds that a machine busy with other things may need


def zero(stage: Any, **changes: Any) -> EngineOptions:
    return EngineOptions(name="deepspeed", zero=stage, **changes)


def partly_frozen() -> nn.Module:
    module = make_module(0.3)
    module[0].bias.requires_grad_(False)
    return module


def run(module: nn.Module, folder: Path, config: TrainingConfig, batch: int = 8) -> Progress:
    return fit(
        module, loss, lambda step: batches(step)[:batch], config, folder,
        validate=lambda module: -total_loss(module), rate_of=lambda name: 0.5 if name.startswith("0.") else 1.0,
    )  # fmt: skip


def weights_of(module: nn.Module) -> list[np.ndarray]:
    return [weight.detach().numpy().copy() for weight in module.parameters()]


def figures(folder: Path) -> list[float]:
    return [line["figure"] for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "valid"]


def is_plain(module: nn.Module, start: nn.Module) -> bool:
    """Whether a module is of torch's own kinds, asks for the same gradients, and may be copied and trained on."""
    again = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(trained(again).values(), lr=0.1)
    loss(again, [0, 1])[0].backward()
    optimizer.step()
    kinds = {type(weight) for weight in module.parameters()} | {type(each._parameters) for each in module.modules()}
    return (
        kinds == {nn.Parameter, type(start._parameters)} and module.state_dict().keys() == start.state_dict().keys()
        and list(trained(module)) == list(trained(start)) and not module.training
    )  # fmt: skip


def parity(rank: int, folder: Path, engines: Sequence[EngineOptions]) -> list[Any]:
    """Torch's run, and one of each engine, stopped in the middle and gone on with from its files."""
    results: list[Any] = []
    for number, engine in enumerate([EngineOptions(), *engines]):
        config, out = replace(RUN, engine=engine), folder / str(number)
        if engine.name == "deepspeed":
            out.mkdir(parents=True, exist_ok=True)
            (out / STOP).touch()
            with pytest.raises(StoppedError, match="after step 1 of 8"):
                run(partly_frozen(), out, config)
        module = partly_frozen()
        progress = run(module, out, config)
        results.append((weights_of(module), progress.best_step, is_plain(module, partly_frozen())))
    return results


@pytest.mark.parametrize(
    "engines",
    [[zero(1), zero(2)], [zero(3)], [zero(2, offload="optimizer"), zero(3, offload="weights")]],
    ids=["zero 1 and 2", "zero 3", "offload"],
)
def test_it_learns_what_torch_does(tmp_path: Path, engines: list[EngineOptions], monkeypatch: Any) -> None:
    """With dropout, clipping, decay, averages, rates by name, a frozen weight, and going on from files in between."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    first, second = run_distributed(parity, 2, tmp_path, engines, timeout=PATIENCE)
    assert all(line["gradient_norm"] > 0.1 for line in read_metrics(tmp_path / "0/metrics.jsonl") if "rate" in line)
    for number, (weights, best_step, plain) in enumerate(first):
        assert plain and best_step == first[0][1]
        for mine, theirs, others in zip(weights, first[0][0], second[number][0], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(mine, others)
        for told in (losses, figures):
            np.testing.assert_allclose(told(tmp_path / str(number)), told(tmp_path / "0"), rtol=0, atol=1e-6)
    assert len(losses(tmp_path / "0")) == 8 and len(figures(tmp_path / "0")) == 4
    assert not (tmp_path / "extensions").exists(), "something was compiled"


def uneven(rank: int, folder: Path) -> list[Any]:
    """Seven items: four on one rank, three on the other; and the same by ZeRO 3, which cannot."""
    weights = []
    for number, engine in enumerate([EngineOptions(), zero(1), zero(2)]):
        module = make_module()
        run(module, folder / str(number), replace(RUN, engine=engine, steps=5), batch=7)
        weights.append(weights_of(module))
    with pytest.raises(ConfigError, match="7 items for 2 ranks that share the weights out"):
        run(make_module(), folder / "3", replace(RUN, engine=zero(3)), batch=7)
    with pytest.raises(ConfigError, match="another engine.*zero 1 to 2"):
        run(make_module(), folder / "1", replace(RUN, engine=zero(2), steps=5), batch=7)
    with pytest.raises(ConfigError, match="another engine.*deepspeed to torch"):
        run(make_module(), folder / "1", replace(RUN, steps=5), batch=7)
    with pytest.raises(ConfigError, match="another engine.*torch to deepspeed"):
        run(make_module(), folder / "0", replace(RUN, engine=zero(2), steps=5), batch=7)
    with pytest.raises(ConfigError, match="trained other weights"):
        run(partly_frozen(), folder / "1", replace(RUN, engine=zero(1), steps=5), batch=7)
    return weights


def test_ranks_of_uneven_shares_and_runs_of_others(tmp_path: Path) -> None:
    for found in run_distributed(uneven, 2, tmp_path, timeout=PATIENCE):
        for other in found[1:]:
            for a, b in zip(found[0], other, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def killed_while_saving(rank: int, folder: Path, stage: int, save: int) -> list[np.ndarray]:
    """Rank 0 is killed when DeepSpeed has written its part of a checkpoint, and this loop has not."""
    own = deepspeed_engine.DeepSpeedEngine._own

    def kill(self: Any, folder: Path, step: int) -> Path:
        if rank == 0 and step == save and not self.job.module.training:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, folder, step)

    deepspeed_engine.DeepSpeedEngine._own = kill  # type: ignore[method-assign]
    module = partly_frozen()
    run(module, folder, replace(RUN, engine=zero(stage), validate_every=1))  # so that it is in eval mode when saved
    return weights_of(module)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_kill_in_the_middle_of_saving(tmp_path: Path, stage: int) -> None:
    whole, _ = run_distributed(killed_while_saving, 2, tmp_path / "whole", stage, -1, timeout=PATIENCE)
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="rank 0 ended with exit code -9"):
        run_distributed(killed_while_saving, 2, folder, stage, 6, timeout=PATIENCE)
    assert {path.name for path in (folder / "deepspeed").glob("step-*")} == {"step-00000003", "step-00000006"}
    assert torch.load(folder / "training.pt", weights_only=True)["progress"]["step"] == 3
    again, _ = run_distributed(killed_while_saving, 2, folder, stage, -1, timeout=PATIENCE)
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert {path.name for path in (folder / "deepspeed").glob("step-*")} == {"step-00000008"}
    assert losses(folder) == losses(tmp_path / "whole")


def finetuned(rank: int, folder: Path, engine: EngineOptions) -> dict[str, Any]:
    made = made_dataset("sequence", "classes", num=32)
    asked = finetune_options(folder, method="lora", epochs=1.0, batch_size=8, engine=engine)
    from heads.finetune import finetune_on

    return finetune_on(made, toy_model(), asked)


def test_a_head_and_adapters(tmp_path: Path) -> None:
    """`finetune` with ZeRO 3: the frozen model is shared out as well, and results are those of torch's engine."""
    theirs, _ = run_distributed(finetuned, 2, tmp_path / "torch", EngineOptions(), timeout=PATIENCE)
    ours, others = run_distributed(finetuned, 2, tmp_path / "zero", zero(3), timeout=PATIENCE)
    assert ours["value"] == theirs["value"] and others["value"] == ours["value"]
    for told in (losses, figures):
        np.testing.assert_allclose(told(tmp_path / "zero/training"), told(tmp_path / "torch/training"), atol=1e-5)
    assert (tmp_path / "zero/adapter/adapter_model.safetensors").exists()
    size = sum(path.stat().st_size for path in (tmp_path / "zero/training/deepspeed").rglob("*.pt"))
    assert size < 3e6, "frozen weights are in the checkpoint"


ALONE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.xtrimo import test_deepspeed as t
for number, stage in enumerate((2, 3)):
    module = t.make_module()
    t.run(module, Path({folder!r}) / str(number), t.replace(t.RUN, engine=t.zero(stage)))
"""


def test_one_process_twice(tmp_path: Path) -> None:
    """Without a launcher; nothing is said on stdout, and the settings are in the folder."""
    run(make_module(), tmp_path / "torch", RUN)
    code = ALONE.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path))
    env = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "DS_ACCELERATOR")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
    for number in ("0", "1"):
        np.testing.assert_allclose(losses(tmp_path / number), losses(tmp_path / "torch"), rtol=0, atol=1e-6)
    content = json.loads((tmp_path / "1/deepspeed.json").read_text())
    assert content["gradient_clipping"] == 0.1 and content["gradient_accumulation_steps"] == 3
    assert content["zero_optimization"] == {"stage": 3, "stage3_param_persistence_threshold": 0}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_settings_of_a_user(tmp_path: Path) -> None:
    """They go over ours, section by section."""
    file = write(tmp_path / "mine.json", {"zero_optimization": {"overlap_comm": False}, "wall_clock_breakdown": True})
    config = replace(RUN, engine=zero(2, offload="optimizer", deepspeed_json=file))
    job = deepspeed_engine.Job(module=make_module(), config=config, rate_of=lambda name: 1.0, rank=0, world=1)
    content = deepspeed_engine.settings(job)
    assert content["zero_optimization"] == {
        "stage": 2, "offload_optimizer": {"device": "cpu"}, "overlap_comm": False
    }  # fmt: skip
    assert content["wall_clock_breakdown"] is True and content["zero_allow_untested_optimizer"] is True


@pytest.mark.parametrize(
    "content, words",
    [
        ({"train_batch_size": 8}, "sets train_batch_size, which is not for it: .* --batch-size"),
        ({"optimizer": {"type": "Adam"}}, "sets optimizer.type, .* AdamW is the loop's"),
        ({"zero_optimization": {"stage": 1}}, "sets zero_optimization.stage, .* --zero sets it"),
        ({"zero_optimization": "auto"}, "sets zero_optimization, which is not for it"),
        ({"bf16": {"enabled": True}}, "--precision sets it"),
        ({"gradient_clipping": 1.0}, "clip norm"),
        ([1], "holds list; expected one JSON object"),
    ],
)
def test_settings_that_are_not_a_users(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        zero(2, deepspeed_json=write(tmp_path / "mine.json", content))


def test_impossible_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="give --engine deepspeed too"):
        EngineOptions(zero=3)
    with pytest.raises(ConfigError, match="offload weights with zero 2"):
        zero(2, offload="weights")
    with pytest.raises(ConfigError, match="no file of DeepSpeed's settings"):
        zero(2, deepspeed_json=tmp_path / "none.json")
    monkeypatch.setattr(training_config.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xtrimo\[deepspeed\]'"):
        zero(2)
