"""What trains models of transformers, trains GLMs: Trainer, and peft's adapters."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DataCollatorForLanguageModeling, Trainer, TrainingArguments

import xtrimo.huggingface  # noqa: F401 (registers the models)
from tests.xtrimo.test_huggingface import batch, toy
from xtrimo import checkpoint
from xtrimo.backbone import load
from xtrimo.huggingface_generation import XtrimoForCausalLM
from xtrimo.huggingface_model import XtrimoForMaskedLM, XtrimoForSequenceClassification
from xtrimo.huggingface_tokenizer import build_tokenizer
from xtrimo.testing import toy_sequences

LAYERS = ["qkv", "dense", "up", "down"]
PROTEINS = toy_sequences(16, min_length=10)
IS_RICH = [int(protein.count("K") / len(protein) > 0.05) for protein in PROTEINS]


def trained(model: torch.nn.Module, inputs, num_steps: int, **labels: Tensor) -> list[float]:
    """The loss of each step of plain AdamW on one batch."""
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=5e-3)
    losses = []
    for _ in range(num_steps):
        loss = model(**inputs, **labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def run_trainer(model: torch.nn.Module, folder: Path, examples: list, collator) -> Trainer:
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=1e-3, report_to="none", use_cpu=True, logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=settings, train_dataset=examples, data_collator=collator)
    trainer.train()
    return trainer


def test_trainer_on_masks(tmp_path) -> None:
    glm = toy()
    tokenizer = build_tokenizer(glm.config)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    before = glm.blocks[0].attention.qkv.weight.clone()
    examples = [tokenizer(protein) for protein in PROTEINS]
    trainer = run_trainer(XtrimoForMaskedLM.from_glm(glm), tmp_path, examples, collator)
    assert trainer.state.global_step == 3 and not torch.equal(glm.blocks[0].attention.qkv.weight, before)
    assert all(0 < row["loss"] < 20 for row in trainer.state.log_history if "loss" in row)
    trainer.save_model(str(tmp_path / "out"))
    assert torch.equal(load(tmp_path / "out").embedding.weight, glm.embedding.weight)


def test_trainer_on_generation(tmp_path) -> None:
    glm = toy()
    tokenizer = build_tokenizer(glm.config)
    examples = [tokenizer(f"<gmask><sop><eos>{x}<eos>", add_special_tokens=False) for x in PROTEINS]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    model = XtrimoForCausalLM.from_glm(glm)
    whole = collator(examples)
    trainer = run_trainer(model, tmp_path, examples, collator)
    log = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(log) == 3 and log[0] == pytest.approx(XtrimoForCausalLM.from_glm(toy())(**whole).loss.item(), rel=0.1)
    assert model(**whole).loss < log[0]


def test_adapters_train_and_go_away_again(tmp_path) -> None:
    glm = toy()
    model = XtrimoForSequenceClassification.from_glm(glm, num_labels=2)
    settings = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=LAYERS, lora_dropout=0.0)
    torch.manual_seed(0)
    adapted = get_peft_model(model, settings)
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 4 * glm.num_layers
    inputs, labels = batch(glm, PROTEINS), torch.tensor(IS_RICH)
    assert 3 < sum(IS_RICH) < 13
    losses = trained(adapted, inputs, 30, labels=labels)
    assert losses[-1] < 0.3 < losses[0]
    fresh = toy().state_dict()
    for name, weight in glm.state_dict().items():
        if "lora" not in name:  # what was pretrained stays as it was
            assert torch.equal(weight, fresh[name.replace(".base_layer", "")]), name
    expected = adapted(**inputs).logits
    adapted.save_pretrained(tmp_path / "adapter")

    model.config.architectures = None
    XtrimoForSequenceClassification.from_glm(toy(), num_labels=2).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=1e-6)

    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, expected, rtol=0, atol=1e-4)
    checkpoint.save(merged.glm, tmp_path / "merged")  # a plain GLM once more
    assert torch.equal(load(tmp_path / "merged").blocks[0].mlp.up.weight, merged.glm.blocks[0].mlp.up.weight)


def test_adapters_of_a_generator() -> None:
    glm = toy()
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    adapted = get_peft_model(XtrimoForCausalLM.from_glm(glm), settings)
    wrapped = {
        name.rpartition(".lora_A")[0].split(".")[-1] for name, _ in adapted.named_parameters() if "lora_A" in name
    }
    assert wrapped == set(LAYERS)  # and not the output layer
    inputs = batch(glm, [f"<gmask><sop><eos>{x}<eos>" for x in PROTEINS[:4]], add_special_tokens=False)
    losses = trained(adapted, inputs, 15, labels=inputs.input_ids)
    assert losses[-1] < losses[0] - 0.1
    prompt = batch(glm, ["<gmask><sop><eos>MK"], add_special_tokens=False)
    written = [adapted.generate(**prompt, do_sample=False, max_new_tokens=9, use_cache=x) for x in (True, False)]
    assert torch.equal(*written)
