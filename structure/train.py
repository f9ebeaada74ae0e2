"""Chains with coordinates and a language model to a folding model: what the verb `train-fold` does.

The language model's states of all chains are computed once, into a file; a step reads windows of them. FAPE is not
clamped at first: a model that is clamped from the start does not find the fold of even one protein. What is validated
and kept is a moving average of the weights.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from structure.calibration import apply_temperature, calibrate
from structure.config import FoldConfig
from structure.data import Crop, CropSampler, Example, Split, read_split
from structure.features import Protein, collate
from structure.fold_directory import FoldFacts, name_of, read_facts, read_model, save_fold, with_lm
from structure.judging import judge, judge_chain, mean_lddt
from structure.losses import BACKBONE_SLOTS, Truth, terms, total
from structure.model import FoldModel
from structure.openfold import constants
from structure.reader import Reader
from structure.train_command import NO_MODEL, TrainFoldOptions
from xtrimo.backbone import Backbone
from xtrimo.command import ModelOptions, check_device
from xtrimo.durable import differences, write_json
from xtrimo.embedding_file import fingerprint, fingerprint_of
from xtrimo.errors import ConfigError, DataError
from xtrimo.model import counted_from_start
from xtrimo.run_folder import RESULTS, TRAINING, claim
from xtrimo.states import num_maps
from xtrimo.states_file import CacheKey, cached_states
from xtrimo.training import fit, main_rank

logger = logging.getLogger(__name__)

VIOLATION_WEIGHT = 0.1
TEST_RATIO = 0.1
"""Of the clusters of chains whose source has no split."""
FREE = ("out", "data", "start_from", "cache", "device", "engine")
"""What changes how a result is reached, and not the result."""


def train_fold(options: TrainFoldOptions) -> dict[str, Any]:
    """Train, judge and save; what is in results.json, on the main rank, which alone judges.

    Raises:
        DataError: no chain to learn from, or no side chain where these are asked for.
        ConfigError: a folder with a run of other settings, or what `fit` refuses.
    """
    check_device(options.device)
    lm = None if options.model == NO_MODEL else _load(options)
    split = shorter(read_split(options.data, test_ratio=TEST_RATIO), lm)
    logger.info(
        "%s: %d chains to train on, %d to validate, %d to test; left out: %s", options.data, len(split.train),
        len(split.valid), len(split.test), dict(split.left_out) or "none",
    )  # fmt: skip
    if not split.valid:
        raise DataError(f"{options.data} has no chain to validate on; expected at least two clusters of chains")
    layers = tuple(counted_from_start(options.layers or tuple(range(lm.num_layers + 1)), lm.num_layers)) if lm else ()
    maps = num_maps(lm, layers, letters(split.train[0])) if lm and options.maps else 0
    if options.maps and not maps:
        raise ConfigError(
            f"layers {layers} of {options.model} have no attention maps; leave out --maps, or take others"
        )
    config = replace(with_lm(options.shape(), lm, layers, maps), side_chains=_side_chains(split.train, options))
    facts = FoldFacts(config=config, lm=options.model if lm else "", lm_hash=fingerprint(lm) if lm else "",
                      lm_layers=layers)  # fmt: skip
    model = _begun(facts, options)
    if finished := claim(options.out, _settings(options, facts, split, model)):
        return finished
    reader = _cached_reader(split, lm, facts, options)
    del lm  # its states are in a file now
    model.to(options.device)
    sampler = CropSampler(
        split.train, options.crop_length, options.seed, clamp_from=round(options.clamp_from_ratio * options.steps),
        max_recycles=config.max_recycles,
    )  # fmt: skip
    violations_from = round(options.violations_from_ratio * options.steps)
    trainer = Trainer(reader, split, config)
    progress = fit(
        model, trainer.loss, lambda step: trainer.items(sampler, step, options.batch_size, step >= violations_from),
        options.training(), options.out / TRAINING,
        validate=lambda module: mean_lddt(module, split.valid[: options.valid_chains], trainer.protein),
    )  # fmt: skip
    if not main_rank():
        return {}
    watched = split.valid[: options.valid_chains]
    calibration = calibrate([judge_chain(model.eval(), example, trainer.protein) for example in watched])
    apply_temperature(model, calibration.temperature)
    training = _told(options) | {"steps": progress.best_step, "calibration": str(calibration)}
    save_fold(options.out / "model", model, replace(facts, config=model.config, training=training))
    held_out = (split.test or split.valid)[: options.test_chains]
    untrained = _new(config, options.seed).to(options.device)
    results = {
        "valid_lddt": progress.best, "best_step": progress.best_step, "num_train": len(split.train),
        "left_out": dict(split.left_out), "judged_on": "test" if split.test else "valid",
        "calibration": calibration.to_dict(),
        "test": judge(model, untrained, held_out, trainer.protein, temperature=calibration.temperature),
    }  # fmt: skip
    write_json(options.out / RESULTS, results)
    return results


def _load(options: TrainFoldOptions) -> Backbone:
    return ModelOptions(model=options.model, precision="fp32", device=options.device).load()


def shorter(split: Split, lm: Backbone | None) -> Split:
    """Without chains longer than the rows that the language model was trained on: its states there are no states."""
    if lm is None:
        return split
    most = lm.max_length - sum(lm.words_around)
    parts = {name: getattr(split, name) for name in ("train", "valid", "test")}
    kept = {name: tuple(each for each in part if len(each) <= most) for name, part in parts.items()}
    num = sum(map(len, parts.values())) - sum(map(len, kept.values()))
    left_out = {**split.left_out, f"longer than the {most:,} residues the language model reads": num}
    return Split(**kept, left_out=left_out) if num else split


class Trainer:
    """What the training loop asks for: the items of a step, and their loss.

    Args:
        reader: gives the language model's states of whole chains.
        split: the chains.
        config: of the model.
    """

    def __init__(self, reader: Reader, split: Split, config: FoldConfig) -> None:
        self.reader, self.split, self.config = reader, split, config

    def items(self, sampler: CropSampler, step: int, batch_size: int, violations: bool) -> list[tuple[Crop, bool]]:
        """The crops of a step, and whether violations cost."""
        return [(crop, violations) for crop in sampler.batch(step, batch_size)]

    def loss(self, module: nn.Module, items: Sequence[tuple[Crop, bool]]) -> tuple[Tensor, float]:
        """The sum of the crops' losses and their number; crops go one by one, so that none is padded."""
        losses = [self._loss(module, crop, violations) for crop, violations in items]
        return torch.stack(losses).sum(), float(len(losses))

    def _loss(self, module: nn.Module, crop: Crop, violations: bool) -> Tensor:
        device = next(module.parameters()).device
        features = collate([self._cropped(crop)]).to(device)
        folded = module(features, num_recycles=crop.num_recycles)
        truth = Truth.of([crop], device=device)
        found = terms(folded, truth, side_chains=self.config.side_chains, violations=violations)
        return total(found, VIOLATION_WEIGHT if violations else 0.0)[0]

    def _cropped(self, crop: Crop) -> Protein:
        """A window, with what the language model says of it inside the whole chain."""
        whole = self.protein(self.split.train[crop.chain])
        part = slice(crop.start, crop.start + len(crop.example))
        return Protein(
            aatype=whole.aatype[part], index=whole.index[part], states=whole.states[part],
            maps=whole.maps[part, part],
        )  # fmt: skip

    def protein(self, example: Example) -> Protein:
        """A whole chain; gaps of its numbering are gaps of the index."""
        return replace(self.reader.read(letters(example), name=example.name), index=example.index)


def letters(example: Example) -> str:
    """Its residues, X where unknown."""
    return "".join(constants.restypes_with_x[number] for number in example.aatype)


def _side_chains(examples: Sequence[Example], options: TrainFoldOptions) -> bool:
    """Whether to train on atoms beyond C-beta: as asked, else where most of the chains have some.

    Raises:
        DataError: asked for, and no chain has any.
    """
    num = sum(bool(example.seen[:, BACKBONE_SLOTS:].any()) for example in examples)
    if options.side_chains and not num:
        raise DataError(
            f"side_chains is asked for, and none of the {len(examples):,} chains to train on has an atom beyond C-beta;"
            " leave it out, or give mmCIF or PDB files"
        )
    return num > len(examples) / 2 if options.side_chains is None else options.side_chains


def _new(config: FoldConfig, seed: int) -> FoldModel:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return FoldModel(config)


def _begun(facts: FoldFacts, options: TrainFoldOptions) -> FoldModel:
    """What training begins with: new weights, or those of a model that was trained before.

    Raises:
        ConfigError: that model has another shape, or reads another language model.
        CheckpointError: no folding model is there.
    """
    if options.start_from is None:
        return _new(facts.config, options.seed)
    ours, theirs = _built(facts), _built(read_facts(options.start_from))
    if changed := differences(theirs, ours):
        raise ConfigError(
            f"{options.start_from} is not the model that these options describe ({'; '.join(changed)}); give the"
            " preset, trunk, language model, layers and maps that it was trained with"
        )
    return read_model(options.start_from, facts.config)


def _built(facts: FoldFacts) -> dict[str, Any]:
    """What weights are tied to; side chains are learned where there are some, and the temperature is found anew."""
    return asdict(replace(facts.config, side_chains=False, lddt_temperature=1.0)) | {
        "lm_hash": facts.lm_hash, "lm_layers": facts.lm_layers,
    }  # fmt: skip


def _told(options: TrainFoldOptions) -> dict[str, Any]:
    """What the model's card says of its training, of what was known before."""
    began = {"started_from": name_of(options.start_from)} if options.start_from else {}
    return {"data": options.data.name, "crop_length": options.crop_length} | began


def _cached_reader(split: Split, lm: Backbone | None, facts: FoldFacts, options: TrainFoldOptions) -> Reader:
    """A reader of the file of all chains' states, which is computed first if need be."""
    if lm is None:
        return Reader(None, facts.config)
    chains = list(
        dict.fromkeys(letters(example) for part in (split.train, split.valid, split.test) for example in part)
    )
    key = CacheKey(model_hash=facts.lm_hash, dtype=str(torch.float32), layers=facts.lm_layers, pooled=False)
    folder = options.cache or options.out / "states"
    folder.mkdir(parents=True, exist_ok=True)
    return Reader(cached_states(folder, lm, key, chains, num_maps=facts.config.num_lm_maps), facts.config)


def _settings(options: TrainFoldOptions, facts: FoldFacts, split: Split, model: FoldModel) -> dict[str, Any]:
    """All that decides the result."""
    asked = {name: getattr(options, name) for name in options.__slots__ if name not in FREE}
    known = asdict(facts)
    del known["config"]["lddt_temperature"]  # which training finds
    began = fingerprint_of(model, {}) if options.start_from else ""
    return {**asked, **known, "chains": _fingerprint(split), "start_weights": began}


def _fingerprint(split: Split) -> str:
    """Of all chains, and of which part each is in."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("train", "valid", "test"):
        for example in getattr(split, name):
            digest.update(f"{name} {letters(example)}\n".encode())
            digest.update(example.atoms.tobytes())
    return digest.hexdigest()
