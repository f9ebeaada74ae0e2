"""The verb `finetune`: a head for a task, on a model that stays as it is, gets adapters, or learns as a whole.

    rows, cropped to what the model reads -> states, from a cache or a live model -> head -> training -> test rows

A protein longer than the task's max_length, or than what the model reads in one piece, is cut to its first residues;
num_cut says how many were. A run is a folder; killed, the same command goes on to the same numbers, and a finished one
is not repeated:

    settings.json      what was asked, with the hashes of model and data
    training/          checkpoint and metrics of the training loop
    head.json ...      the head and all it takes to predict with it (`head_directory`)
    predictions.npz    what it says of the test rows
    results.json       the task's metric with its 95 % interval, the same of simple baselines, leaks; written last

For contacts the head reads attention maps of the asked layers beside their states, and results.json has a second
figure, regression: that of the logistic regression of all attention maps (`contacts`), made of the model as it comes,
before anything is trained; what it says is in regression.npz.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import OmitArgPrefixes, Positional

from heads import baselines, contacts, metrics
from heads.head_directory import HeadFacts, save_head
from heads.leaks import find_leaks
from heads.metrics import METRICS
from heads.modules import HeadConfig, Pooling, Scale
from heads.molecules import NUM_BITS, kind_of
from heads.predictor import Predictor
from heads.rows import Dataset, data_hash, read
from heads.selection import batches, class_weights, cropped, fewer, proteins
from heads.tasks import Columns, Level, Target, Task, custom_task, task
from xtrimo.adaptation import Method, adapt, freeze_unused, shares_by_depth
from xtrimo.answer import give
from xtrimo.backbone import Backbone
from xtrimo.command import ModelOptions
from xtrimo.durable import write_json
from xtrimo.embedding import room
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import ConfigError, DataError
from xtrimo.log import warn_once
from xtrimo.model import GLM
from xtrimo.prepacking import prepack
from xtrimo.run_folder import RESULTS, TRAINING, claim
from xtrimo.states import LiveStates, num_maps
from xtrimo.states_file import CachedStates, CacheKey, cached_states
from xtrimo.training import fit, main_rank, ranks
from xtrimo.training_config import EngineOptions, TrainingConfig

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.npz"
REGRESSION = "regression.npz"
RATES: dict[Method, float] = {"probe": 1e-3, "lora": 1e-4, "full": 5e-5}
MOST_STEPS_UNSAVED = 500
# What changes how a result is reached, and not the result.
FREE = ("out", "cache", "data", "device", "baselines", "leaks", "corpus", "engine")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneOptions:
    """Train a head for a task, and the model under it if asked to; test it."""

    task: Positional[str]
    """One of the known tasks, or a file of labelled proteins, which --level and --target describe."""
    model: str
    """Model directory; a name on the Hugging Face Hub, org/name or org/name@revision; or antiberty."""
    method: Method = "probe"
    """probe leaves the model as it is, lora trains adapters beside its linear layers, full trains all of it."""
    out: Path
    """Folder of the run."""
    data: Path = Path("data")
    """Where a known task is: its file, or the folder that holds TASK.csv.gz or the like."""
    level: Level = "sequence"
    """What a label of your own file belongs to."""
    target: Target = "classes"
    """What a label of your own file is; preference learns a reward from pairs, of which the first is better."""
    metric: str | None = None
    """What your own task is judged by; accuracy, spearman, order or precision@L/5 by default."""
    second: str = ""
    """Column of the second protein or the molecule in your own file; of preferences the columns are better and
    worse."""
    label: str = "label"
    """Column of the label in your own file; of preferences, if there is one, how likely better is better."""
    max_rows: int = 0
    """At most so many rows of each split, drawn by the seed; 0 takes all."""
    pooling: Pooling = "mean"
    """How a protein's states become one: their mean, or weighed by what is learned."""
    layers: tuple[int, ...] = (-1,)
    """Whose states, and for pairs attention maps, are read, side by side: 0 is the embedding, -1 the last."""
    class_weights: bool = False
    """Let each class weigh the same in the loss, however rare."""
    epochs: float = 15.0
    """Passes over the training rows, at most."""
    batch_size: int = 16
    """Rows of a step, over all ranks."""
    learning_rate: float | None = None
    """By default 1e-3 for probe, 1e-4 for lora, 5e-5 for full."""
    layer_decay: float = 0.9
    """full: each block learns at so much of the rate of the block above."""
    rank: int = 16
    """lora: rank, and scale, of the adapters."""
    patience: int = 4
    """Epochs without a better validation figure before training ends; 0 never ends it early."""
    accumulate: int = 1
    """Pieces that a step's rows are computed in, to save memory."""
    seed: int = 0
    """Of the head, the adapters, the order of the rows, and dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products."""
    device: str = "cpu"
    """Where to run, such as cuda; under torchrun each rank takes its own."""
    cache: Path | None = None
    """probe: folder of hidden states, which other runs on the same proteins share; by default in the run."""
    baselines: bool = True
    """Put simple baselines beside the result."""
    leaks: bool = True
    """Look for test proteins among those trained on."""
    corpus: Path | None = None
    """Proteins that the model was pretrained on, to look for test proteins among them as well."""
    engine: OmitArgPrefixes[EngineOptions] = EngineOptions()
    """What computes the steps of training."""

    def training(self, num_rows: int) -> TrainingConfig:
        """The training loop's settings for so many rows."""
        per_epoch = math.ceil(num_rows / self.batch_size)
        return TrainingConfig(
            steps=max(1, round(self.epochs * per_epoch)), learning_rate=self.learning_rate or RATES[self.method],
            precision=self.precision if self.method != "probe" else "fp32", accumulate=self.accumulate,
            validate_every=per_epoch, patience=self.patience, seed=self.seed,
            save_every=min(per_epoch, MOST_STEPS_UNSAVED), log_every=min(per_epoch, 10), engine=self.engine,
        )  # fmt: skip

    def the_task(self) -> tuple[Task, Path]:
        """The task and where its rows are.

        Raises:
            ConfigError: a name that is neither a task nor a file, or no data for it.
        """
        path = Path(self.task)
        if path.exists() and (path.suffix or path.is_dir()):
            columns = Columns(second=self.second, label=self.label)
            if self.target == "preference":
                columns = replace(columns, sequence="better", second=self.second or "worse")
            name = path.name.partition(".")[0]
            return custom_task(name, level=self.level, target=self.target, metric=self.metric, columns=columns), path
        return task(self.task), find_data(self.data, self.task)


def find_data(data: Path, name: str) -> Path:
    """The file or folder of a task's rows.

    Raises:
        ConfigError: there is none.
    """
    if data.is_file():
        return data
    found = sorted(data.glob(f"{name}.*")) + ([data / name] if (data / name).is_dir() else [])
    if not found:
        raise ConfigError(
            f"{data} holds no {name}.* and no folder {name}; give the folder of the tasks' files in --data"
        )
    return found[0]


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo finetune`."""
    import tyro

    options = tyro.cli(FinetuneOptions, prog="xtrimo finetune", args=args)
    which, path = options.the_task()
    with ranks(options.device) as (rank, world):
        options.engine.check_batch(options.batch_size, world)
        dataset = read(path, which, seed=options.seed)
        logger.info("%s", dataset)
        model = load_plain(options.model, options.device)
        results = finetune_on(dataset, model, options)
    if rank == 0:
        low, high = results["low"], results["high"]
        text = f"{which.name}: {which.metric} {results['value']:.3f} ({low:.3f} to {high:.3f})  {options.out / RESULTS}"
        give(results, text)


def load_plain(model: str, device: str) -> Backbone:
    """A model in fp32, as heads are trained on.

    Raises:
        CheckpointError, ConfigError: no such model or device.
    """
    return ModelOptions(model=model, precision="fp32", device=device).load()


def finetune_on(dataset: Dataset, model: Backbone, options: FinetuneOptions) -> dict[str, Any]:
    """Train and test a head; what is in results.json. The model is used up.

    Raises:
        ConfigError: a folder with a run of other settings, no rows to train on or to test, or what `fit` refuses.
    """
    out, model_hash = options.out, fingerprint(model)
    dataset = fewer(cropped(dataset, room(model)), options.max_rows, options.seed)
    if not dataset.train or not dataset.test:
        raise ConfigError(
            f"{len(dataset.train)} rows to train on and {len(dataset.test)} to test; expected some of each"
        )
    settings = settings_of(options, dataset, model_hash)
    if finished := claim(out, settings):
        return finished
    regression = _regression(dataset, model, options) if main_rank() else {}
    predictor = build(dataset, model, model_hash, options)
    config = options.training(len(dataset.train))
    shares = _shares(predictor, options)
    rows_of = batches(dataset.train, min(options.batch_size, len(dataset.train)), options.seed)
    fit(
        predictor, lambda _, rows: predictor.loss(rows), rows_of, config, out / TRAINING,
        validate=_validation(dataset, predictor) if dataset.valid else None, rate_of=lambda name: shares.get(name, 1.0),
    )  # fmt: skip
    return _finish(dataset, predictor, settings, options, regression)


def settings_of(options: FinetuneOptions, dataset: Dataset, model_hash: str) -> dict[str, Any]:
    """All that decides the result, as JSON has it."""
    asked = {name: getattr(options, name) for name in options.__slots__ if name not in (*FREE, "task", "model")}
    asked |= {"layers": list(options.layers), "model": str(options.model)}
    return {"task": dataset.task.name, **asked, "model_hash": model_hash, "data_hash": data_hash(dataset)}


def build(dataset: Dataset, model: Backbone, model_hash: str, options: FinetuneOptions) -> Predictor:
    """The head on its source of states, ready to be trained."""
    which, train = dataset.task, dataset.train
    pooled = options.pooling == "mean" and which.level in ("sequence", "molecule")
    assert isinstance(model, torch.nn.Module)
    source: LiveStates | CachedStates
    maps = num_maps(model, options.layers, train[0].sequence) if which.level == "pair" else 0
    if which.level == "pair" and not maps:
        warn_once(logger, "layers %s of %s have no attention maps; the pair head reads states alone",
            options.layers, options.model)  # fmt: skip
    if options.method == "probe":
        dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        key = CacheKey(model_hash=model_hash, dtype=str(dtype), layers=options.layers, pooled=pooled)
        everything = proteins(which, [row for rows in dataset.splits.values() for row in rows])
        source = cached_states(options.cache or options.out / "states", model.to(dtype), key, everything, num_maps=maps)
    else:
        adapt(model, options.method, rank=options.rank, alpha=options.rank, seed=options.seed)
        source = LiveStates(model, options.layers, pooled, maps=maps > 0)
    config = HeadConfig(
        level=which.level, width=model.width * len(options.layers), pooling=options.pooling,
        num_outputs=len(dataset.classes) if which.target == "classes" and which.level != "pair" else 1,
        num_maps=maps, num_bits=NUM_BITS if which.level == "molecule" else 0,
    )  # fmt: skip
    molecule = which.level == "molecule"
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        predictor = Predictor(
            which, source, config,
            scale=Scale.fit([row.label for row in train]) if which.target == "regression" else None,
            molecules=kind_of([row.second for row in train]) if molecule else None,
            class_weights=class_weights(dataset) if options.class_weights and which.target == "classes" else None,
        ).to(model.device)  # fmt: skip
    if options.method == "probe":
        predictor.measure(proteins(which, train))
    freeze_unused(predictor, lambda: predictor.loss(train[:2])[0])
    return predictor


def _shares(predictor: Predictor, options: FinetuneOptions) -> dict[str, float]:
    if options.method != "full" or not isinstance(predictor.source, LiveStates):
        return {}
    by_depth = shares_by_depth(predictor.source.backbone, options.layer_decay)
    return {f"source.backbone.{name}": share for name, share in by_depth.items()}


def _validation(dataset: Dataset, predictor: Predictor) -> Callable[[torch.nn.Module], float]:
    sign = 1.0 if METRICS[dataset.task.metric].larger_is_better else -1.0
    return lambda _: sign * metrics.figure(dataset.task.metric, predictor.predict(dataset.valid))


def _regression(dataset: Dataset, model: Backbone, options: FinetuneOptions) -> dict[str, Any]:
    """The figure of the regression of all attention maps, for results.json; empty where there is nothing to regress."""
    which, layers = dataset.task, tuple(range(1, model.num_layers + 1))
    if which.level != "pair" or not num_maps(model, layers, dataset.train[0].sequence):
        return {}
    reader = prepack(model) if isinstance(model, GLM) else model
    try:
        predictions, note = contacts.regress(
            reader, dataset, lambda said: metrics.figure(which.metric, said), seed=options.seed
        )
    except DataError as error:
        logger.warning("no regression of attention maps: %s", error)
        return {}
    predictions.save(options.out / REGRESSION)
    return {
        **asdict(metrics.evaluate(which.metric, predictions)), "num_test": len(dataset.test), "note": note,
        "predictions": REGRESSION,
    }  # fmt: skip


def _finish(
    dataset: Dataset,
    predictor: Predictor,
    settings: dict[str, Any],
    options: FinetuneOptions,
    regression: dict[str, Any],
) -> dict[str, Any]:
    """Test, and write all that is kept; on the main rank."""
    which, out = dataset.task, options.out
    predictions = predictor.predict(dataset.test)
    results = {
        **{name: settings[name] for name in ("task", "model", "model_hash", "method", "seed", "data_hash")},
        "metric": which.metric, **asdict(metrics.evaluate(which.metric, predictions)),
        "num_train": len(dataset.train), "num_test": len(dataset.test), "left_out": dataset.left_out,
        "num_cut": dataset.num_cut, "split_rule": dataset.split_rule, "proxy": which.proxy, "partial": which.partial,
        "classes": list(dataset.classes), "predictions": PREDICTIONS,
    }  # fmt: skip
    if regression:
        results["regression"] = regression
    if main_rank():
        save_head(out, HeadFacts.of(dataset, predictor, settings), predictor)
        predictions.save(out / PREDICTIONS)
        results["baselines"] = floors(dataset, options.seed) if options.baselines else {}
        results["leaks"] = find_leaks(dataset, corpus=options.corpus).to_dict() if options.leaks else {}
        write_json(out / RESULTS, results)
    read_back: dict[str, Any] = json.loads(json.dumps(results))
    return read_back


def floors(dataset: Dataset, seed: int) -> dict[str, dict[str, Any]]:
    """What the baselines of the task reach on the test rows."""
    found = {}
    for name in baselines.for_task(dataset):
        answer = baselines.run(name, dataset, seed=seed)
        found[name] = {**asdict(metrics.evaluate(dataset.task.metric, answer.predictions)), "note": answer.note}
    return found
