"""Model directories: exact round trips, refusals that name the file, and saves that happen wholly or not at all."""

import json
import pickle
from pathlib import Path

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file, save_file

from xtrimo import checkpoint
from xtrimo.checkpoint import load, read_config, save, save_state
from xtrimo.config import GLMConfig
from xtrimo.errors import CheckpointError
from xtrimo.model import GLM

CONFIG = GLMConfig(num_layers=2, hidden_size=16, num_heads=2, ffn_size=12, licence="CC-BY-4.0", source="a test")
OTHER = GLMConfig(num_layers=1, hidden_size=16, num_heads=2, ffn_size=12)


@pytest.fixture(autouse=True)
def _as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our own checks answer: what a file holds reaches them without the tests' type checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def model() -> GLM:
    """Random everywhere, so that no two weights of a shape are alike."""
    model, generator = GLM(CONFIG), torch.Generator().manual_seed(0)
    for weight in model.state_dict().values():
        weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture
def saved(model, tmp_path) -> Path:
    return save(model, tmp_path / "model")


def same(a: GLM, b: GLM) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def edit(directory: Path, **changes) -> None:
    """Rewrite keys of config.json; None removes one."""
    path = directory / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refile(directory: Path, change) -> None:
    """Change the weights of a directory and state the new file's size and digest: only the content is wrong then."""
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors")
    path = directory / "model.safetensors"
    facts = {"bytes": path.stat().st_size, "sha256": checkpoint._sha256(path), "weights": list(state)}
    edit(directory, files={"model.safetensors": facts})


# ---- round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_exact(model, tmp_path, dtype):
    model.to(dtype)
    path = save(model, tmp_path / "deep" / "model")
    loaded = load(path)
    assert same(loaded, model) and loaded.dtype == dtype and loaded.config == CONFIG
    assert not loaded.training and all(weight.requires_grad for weight in loaded.parameters())
    assert sorted(contents(path)) == ["MODEL_CARD.md", "config.json", "model.safetensors"]
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]  # no work directory is left
    tokens, positions = torch.arange(1, 6), torch.stack([torch.arange(5), torch.zeros(5, dtype=torch.int64)], 1)
    row = (tokens, positions, torch.tensor([[0, 5, 5]]))
    assert torch.equal(loaded(*row), model(*row))


@pytest.mark.parametrize("as_text", [False, True])
def test_path_may_be_a_string(model, tmp_path, as_text):
    path = tmp_path / "model"
    assert save(model, str(path) if as_text else path).samefile(path)
    assert same(load(str(path) if as_text else path), model)


def test_sharded_round_trip(model, tmp_path, monkeypatch):
    limit = 3000
    monkeypatch.setattr(checkpoint, "MAX_SHARD_BYTES", limit)
    path = save(model, tmp_path / "model")
    files = sorted(file.name for file in path.glob("*.safetensors"))
    assert len(files) > 3
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    names = []
    for file in files:
        state = load_file(path / file)
        names += state
        assert len(state) == 1 or sum(weight.nbytes for weight in state.values()) <= limit
    assert sorted(names) == sorted(model.state_dict())
    assert same(load(path), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_cast_on_load(saved, model, dtype):
    loaded = load(saved, dtype=dtype, device="cpu")
    assert same(loaded, model.to(dtype))


def test_a_state_may_be_strided(model, tmp_path):
    """An exporter hands in transposes."""
    state = {name: w.t().contiguous().t() if w.dim() == 2 else w for name, w in model.state_dict().items()}
    assert same(load(save_state(state, CONFIG, tmp_path / "model")), model)


def test_loaded_weights_are_a_private_copy(saved, model):
    """Weights are memory-mapped: training them must not reach the file, replacing the file must not reach them."""
    loaded = load(saved)
    before = contents(saved)
    with torch.no_grad():
        for weight in loaded.parameters():
            weight.add_(1)
    assert contents(saved) == before and same(load(saved), model)
    loaded = load(saved)
    save(GLM(OTHER), saved)
    assert same(loaded, model)
    save(loaded, saved)  # onto the directory it came from
    assert same(load(saved), model)


def test_card_and_config_tell_the_facts(model, tmp_path):
    path = save(model, tmp_path / "model", notes="Trained for a test.")
    card = (path / "MODEL_CARD.md").read_text()
    for fact in (f"{CONFIG.num_params:,}", "CC-BY-4.0", "a test", "mlm, gmask, smask", "<rev>", "Trained for a test."):
        assert fact in card
    config, files = read_config(path)
    assert config == CONFIG and set(files) == {"model.safetensors"}
    assert json.loads((path / "config.json").read_text())["rotary"] == "2d"


def test_no_pickle(model, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "dump"), (pickle, "dumps"),
                         (pickle, "Pickler"), (pickle, "Unpickler"), (torch, "load"), (torch, "save")):  # fmt: skip
        monkeypatch.setattr(module, name, refuse)
    assert same(load(save(model, tmp_path / "model")), model)


# ---- refusals


def refused(directory: Path, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    for word in (str(directory), *words):
        assert word in str(caught.value)
    return str(caught.value)


def test_not_a_model_directory(tmp_path):
    refused(tmp_path / "nowhere", "config.json")
    refused(tmp_path, "config.json")


def test_truncated_weights(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(saved, "model.safetensors", "cut", str(path.stat().st_size), str(path.stat().st_size + 1))


@pytest.mark.parametrize("where", [0, 8, 100, -1])
def test_altered_weights(saved, where):
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[where] ^= 1
    (saved / "model.safetensors").write_bytes(data)
    refused(saved, "model.safetensors", "altered")


def test_missing_weights_file(saved):
    (saved / "model.safetensors").unlink()
    refused(saved, "model.safetensors", "missing")


def test_missing_shard(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_SHARD_BYTES", 3000)
    path = save(model, tmp_path / "model")
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.unlink()
    refused(path, shard.name, "missing")


def test_foreign_weights_file(saved):
    """A file with the right size and digest that is no safetensors file."""
    path = saved / "model.safetensors"
    path.write_bytes(b"not safetensors at all" * 10)
    edit(saved, files={path.name: {"bytes": 220, "sha256": checkpoint._sha256(path), "weights": []}})
    refused(saved, "model.safetensors", "not a safetensors file")


def test_misshaped_missing_and_unexpected_weights(saved):
    def change(state):
        state["blocks.0.mlp.up.weight"] = torch.zeros(3, 5)
        del state["final_norm.bias"]
        state["blocks.9.mlp.up.bias"] = torch.zeros(3)

    refile(saved, change)
    refused(
        saved,
        "blocks.0.mlp.up.weight has shape (3, 5), the config says (24, 16)",
        "missing final_norm.bias",
        "unexpected blocks.9.mlp.up.bias",
    )


def test_only_the_first_ten_wrong_weights_are_named(saved):
    refile(saved, lambda state: [state.pop(name) for name in list(state) if name.startswith("blocks")])
    assert refused(saved).count("missing blocks") == 10


def test_weights_of_another_shape(saved):
    edit(saved, num_layers=3)
    assert refused(saved).count("missing blocks.2.") == 10
    edit(saved, num_layers=1)
    refused(saved, "unexpected blocks.1.")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_experts": 8}, "num_experts"),
        ({"format": 2}, "format"),
        ({"format": None}, "format"),
        ({"files": None}, "files"),
        ({"num_layers": None}, "num_layers"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 3}, "num_heads"),
        ({"objectives": ["denoising"]}, "objectives"),
        ({"directions": []}, "directions"),
        ({"directions": ["sideways"]}, "directions"),
        ({"rotary": "3d"}, "rotary"),
    ],
)
def test_config_from_the_future_or_out_of_range(saved, changes, word):
    edit(saved, **changes)
    refused(saved, "config.json", word)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_layers": 2.5}, "num_layers"),
        ({"hidden_size": "16"}, "hidden_size"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"rotary_base": -1.0}, "rotary_base"),
        ({"vocab_size": 36}, "vocab_size"),
    ],
)
def test_config_values_that_cannot_work(saved, changes, word):
    edit(saved, **changes)
    refused(saved, "config.json", word)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"model"', "\x00\x01"])
def test_config_that_is_no_config(saved, text):
    (saved / "config.json").write_text(text)
    refused(saved, "config.json")


@pytest.mark.parametrize("files", [[], "model.safetensors", {"model.safetensors": {}}, {"model.safetensors": None}])
def test_malformed_list_of_files(saved, files):
    edit(saved, files=files)
    refused(saved, "config.json")


# ---- saving


def test_overwriting_a_model_replaces_all_of_it(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_SHARD_BYTES", 3000)
    other = GLM(OTHER)
    save(other, saved)
    assert same(load(saved), other) and not (saved / "model.safetensors").exists()
    monkeypatch.undo()
    save(other, saved)
    assert sorted(contents(saved)) == ["MODEL_CARD.md", "config.json", "model.safetensors"]
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("where", ["save_file", "card", "_sha256"])
def test_a_failed_save_changes_nothing(saved, monkeypatch, where):
    before = contents(saved)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, where, full)
    for target in (saved, saved.parent / "new"):
        with pytest.raises(OSError, match="no space"):
            save(GLM(OTHER), target)
    assert contents(saved) == before
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"]


def test_a_failed_swap_puts_the_old_model_back(saved, monkeypatch):
    before, rename = contents(saved), Path.rename

    def fail_on_the_new_one(self, target):
        if self.name.endswith(".tmp"):
            raise OSError("interrupted")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises(OSError, match="interrupted"):
        save(GLM(OTHER), saved)
    assert contents(saved) == before
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"]


def test_work_left_by_a_killed_save_is_in_nobodys_way(saved, model):
    """Half-written directories are hidden, and never read."""
    (saved.parent / ".model.12345.tmp").mkdir()
    save(model, saved)
    assert same(load(saved), model)


def test_a_directory_of_something_else_is_not_overwritten(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not a model directory"):
        save(model, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_another_kind_of_model_is_not_overwritten(model, tmp_path):
    """Many programs write a config.json."""
    theirs = {"config.json": b'{"model_type": "esm"}', "pytorch_model.bin": b"weights"}
    for name, data in theirs.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="pytorch_model.bin|config.json"):
        save(model, tmp_path)
    assert contents(tmp_path) == theirs


def test_a_model_directory_with_the_users_own_files_is_not_overwritten(saved, model):
    (saved / "results.csv").write_text("hours of work")
    before = contents(saved)
    with pytest.raises(CheckpointError, match="results.csv"):
        save(model, saved)
    assert contents(saved) == before


def test_a_file_is_not_overwritten(model, tmp_path):
    path = tmp_path / "model"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="not a model directory"):
        save(model, path)
    assert path.read_text() == "mine"


def test_an_empty_directory_is_taken(model, tmp_path):
    (tmp_path / "model").mkdir()
    assert same(load(save(model, tmp_path / "model")), model)


def test_saving_through_a_link_keeps_the_link(saved, model):
    link = saved.parent / "latest"
    link.symlink_to(saved, target_is_directory=True)
    other = GLM(OTHER)
    save(other, link)
    assert link.is_symlink() and same(load(link), other) and same(load(saved), other)


def test_saving_into_the_working_directory(model, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    save(model, ".")
    assert same(load(tmp_path / "model"), model)
