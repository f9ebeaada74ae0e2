"""What a layout may be, what it must not do, and what it must not change."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain import model, parallel
from pretrain.config import BatchConfig, ParallelConfig, PretrainConfig
from pretrain.parallel import process_groups
from pretrain.trainer import Trainer
from tests.pretrain.reference import STEPS, local_rows, make_config, make_rows
from xtrimo.config import PRESETS, preset
from xtrimo.errors import ConfigError
from xtrimo.testing import run_distributed, toy_config


@pytest.fixture(scope="module", autouse=True)
def toy_preset():
    PRESETS["toy"] = toy_config(ffn_size=96)  # no other size than the vocabulary's is 128
    yield
    del PRESETS["toy"]


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        (dict(sequence_parallel=True), "sequence_parallel splits tokens over the tensor ranks, and tensor_degree is 1"),
        (dict(virtual_stages=2), "virtual_stages 2 interleave a pipeline, and pipeline_degree is 1"),
        (dict(context_degree=0), "context_degree is 0; it must be at least 1"),
    ],
)
def test_a_layout_without_a_sense_is_refused(degrees, message):
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**degrees)


@pytest.mark.parametrize(
    ("name", "degrees", "message"),
    [
        ("proteinglm-1b", dict(tensor_degree=2), r"ffn_size 5461 = 2 x 2730 \+ 1: tensor_degree 2 cannot split it"),
        ("proteinglm-10b", dict(tensor_degree=2), r"ffn_size 11605 = 2 x 5802 \+ 1: tensor_degree 2 cannot split it"),
        ("proteinglm-10b", dict(pipeline_degree=2), r"num_layers 47 = 2 x 23 \+ 1: pipeline_degree 2 cannot"),
        ("glm-8m", dict(tensor_degree=8), r"num_heads 4 = 8 x 0 \+ 4: tensor_degree 8 cannot split it"),
        ("glm-8m", dict(pipeline_degree=2, virtual_stages=2), r"num_layers 10 = 4 x 2 \+ 2: .* virtual_stages = 4"),
    ],
)
def test_a_model_that_degrees_do_not_divide_is_refused(name, degrees, message):
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**degrees).check(preset(name))


def test_what_only_published_weights_have_is_not_trained(monkeypatch):
    monkeypatch.setitem(PRESETS, "converted", toy_config(output_bias=True, quantization="int4"))
    with pytest.raises(ConfigError, match=r"converted has .*'output_bias': True, 'quantization': 'int4'"):
        PretrainConfig(corpus=Path("none"), run=Path("none"), model="converted")


@pytest.mark.parametrize(
    ("rows", "degrees", "ranks", "message"),
    [
        (4, dict(tensor_degree=2, context_degree=2), 6, "6 ranks cannot hold tensor 2 x pipeline 1 x context 2 = 4"),
        (4, {}, 3, r"a batch of rows 4 = 3 x 1 \+ 1: data-parallel ranks 3 cannot split it"),
        (2, {}, 4, r"a batch of rows 2 = 4 x 0 \+ 2"),
        (6, dict(pipeline_degree=2, virtual_stages=2), 4, r"rows of one rank 3 = 2 x 1 \+ 1: an interleaved pipeline"),
    ],
)
def test_ranks_that_cannot_share_the_work_are_refused(rows, degrees, ranks, message):
    config = PretrainConfig(
        corpus=Path("none"), run=Path("none"), model="toy", batch=BatchConfig(rows=rows),
        parallel=ParallelConfig(**degrees),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        config.check_ranks(ranks)


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen |= {tuple(x.shape) for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)}
        return out


def widths(rank: int, degrees: dict) -> set[int]:
    """Last dimensions of the tensors that a step makes."""
    config = make_config(ParallelConfig(**degrees))
    with process_groups(config):
        trainer = Trainer(config)
        with Shapes() as shapes:
            trainer.step(make_rows(0))
    return {shape[-1] for shape in shapes.seen if len(shape) > 1}


def test_logits_are_never_gathered():
    vocab = toy_config().vocab_size
    assert vocab in run_distributed(widths, 1, {})[0]  # what the two would see if they gathered
    for seen in run_distributed(widths, 2, dict(tensor_degree=2)):
        assert vocab // 2 in seen and vocab not in seen


def train(rank: int, degrees: dict, dropout: float, batches: list[int]) -> list[tuple[float, float]]:
    config = make_config(ParallelConfig(**degrees), dropout=dropout)
    with process_groups(config):
        trainer = Trainer(config)
        results = [trainer.step(local_rows(0), batch) for batch in batches]
        return [(result.losses.loss, result.gradient_norm) for result in results]


@pytest.mark.parametrize("degrees", [{}, dict(tensor_degree=2, sequence_parallel=True)], ids=["alone", "tp2 sp"])
def test_recomputing_drops_the_same_values(degrees):
    ranks = degrees.get("tensor_degree", 1)
    steps = list(range(STEPS))
    kept = run_distributed(train, ranks, degrees, 0.1, steps)[0]
    assert kept[0] != run_distributed(train, ranks, degrees, 0.0, [0])[0][0]
    for recompute in ("full", "selective"):
        assert run_distributed(train, ranks, degrees | dict(recompute=recompute), 0.1, steps)[0] == kept


def test_dropout_is_a_function_of_the_place_in_the_data():
    """So that data-parallel ranks change nothing, and each batch, though of the same rows, drops others."""
    alone = run_distributed(train, 1, {}, 0.1, [0, 1])[0]
    np.testing.assert_allclose(run_distributed(train, 2, {}, 0.1, [0, 1])[0], alone, atol=1e-6, rtol=0)
    np.testing.assert_allclose(  # tensor ranks hold copies of what is dropped
        run_distributed(train, 2, dict(tensor_degree=2), 0.1, [0, 1])[0], alone, atol=1e-6, rtol=0
    )
    assert run_distributed(train, 1, {}, 0.1, [5])[0][0] != alone[0]


def train_with_one_stream(rank: int, degrees: dict) -> list[tuple[float, float]]:
    parallel.model_parallel_cuda_manual_seed = partial(parallel.model_parallel_cuda_manual_seed, tp_rank=0)
    return train(rank, degrees, 0.1, [0])


def test_sequence_parallel_ranks_drop_different_values():
    """Each holds other tokens: had they the same stream, a mask would repeat over the tokens."""
    degrees = dict(tensor_degree=2, sequence_parallel=True)
    repeated = run_distributed(train_with_one_stream, 2, degrees)[0]
    assert run_distributed(train, 2, degrees, 0.1, [0])[0] != repeated


def evaluate(rank: int, degrees: dict, num_rows: int) -> tuple[dict[str, float], int]:
    """Losses after one step and after two, on rows that the data-parallel ranks share unequally."""
    from megatron.core import parallel_state

    config = make_config(ParallelConfig(**degrees))
    with process_groups(config):
        trainer = Trainer(config)
        ranks, mine = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        trainer.step(local_rows(0))
        losses = trainer.evaluate(make_rows(1)[:num_rows][mine::ranks])
        trainer.step(local_rows(1))
        later = trainer.evaluate(make_rows(1)[:num_rows][mine::ranks])
    return losses.nats | {"all": losses.loss, "later": later.loss}, losses.num_tokens


@pytest.mark.parametrize(
    ("degrees", "ranks"),
    [
        (dict(distributed_optimizer=True, overlap=True), 2),
        (dict(pipeline_degree=2, virtual_stages=2), 2),
        (dict(context_degree=2, tensor_degree=2, sequence_parallel=True), 4),
        (dict(pipeline_degree=2), 4),
    ],
    ids=["dp2 distopt overlap", "pp2 vpp2", "tp2 sp cp2", "pp2 dp2"],
)
@pytest.mark.parametrize("num_rows", [1, 3])
def test_evaluation_does_not_depend_on_the_layout(degrees, ranks, num_rows):
    losses, num_tokens = run_distributed(evaluate, 1, {}, num_rows)[0]
    for others, other_tokens in run_distributed(evaluate, ranks, degrees, num_rows):
        assert others == pytest.approx(losses, abs=1e-6) and other_tokens == num_tokens


class Engine:
    """Stands for megatron's provider of Transformer Engine's classes, which are not there without a GPU."""

    layers = tuple(type(name, (), {}) for name in ("Column", "Row", "EngineNorm"))

    def column_parallel_linear(self) -> type:
        return self.layers[0]

    def row_parallel_linear(self) -> type:
        return self.layers[1]

    def layer_norm(self) -> type:
        return self.layers[2]


def test_transformer_engine_is_chosen_where_it_can_run(monkeypatch):
    local = model.parallel_layers()
    assert [layer.__module__.partition(".")[0] for layer in local] == ["megatron", "megatron", "pretrain"]
    monkeypatch.setattr(model, "HAVE_TE", True)
    monkeypatch.setattr(model, "TESpecProvider", Engine)
    assert model.parallel_layers() == local  # there is no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    layers = model.layer_spec().submodules
    chosen = (layers.mlp.submodules.linear_fc1, layers.self_attention.submodules.linear_proj, layers.input_layernorm)
    assert chosen == Engine.layers
