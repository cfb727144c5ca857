"""TRL's side of the comparison, run by the interpreter that TRL is installed for.

It is asked once, with the work and whether linears are decoded and activations checkpointed.
"""

import tempfile
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from datasets import Dataset
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ..peer_process import answer_questions
from .ragged_rows import RATE, Work
from .step_meter import StepMeter


def train(
    work_fields: Mapping[str, Any], is_decoded: bool, gradient_checkpointing: bool
) -> dict[str, Any]:
    work = Work.of(work_fields)
    model = _lora_model(work, is_decoded=is_decoded)
    meter = StepMeter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=_settings(work, folder, gradient_checkpointing=gradient_checkpointing),
            train_dataset=_dataset(work),
            processing_class=transformers.AutoTokenizer.from_pretrained(work.base),
            callbacks=[_StepWatch(meter)],
        )
        trainer.train()
    return meter.figures(work)


def _lora_model(work: Work, *, is_decoded: bool) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        work.base, dtype=torch.float32, device_map="cpu"
    )
    if is_decoded:
        _decode(model)
    # Checkpoints with a quantization keep the dtype of their other tensors, whatever is asked for.
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    model = get_peft_model(model, LoraConfig(**{**work.lora, "inference_mode": False}))
    loaded: Any = set_peft_model_state_dict(model, load_file(work.start))
    assert not loaded.unexpected_keys
    return model


def _decode(model: Any) -> None:
    """Put a plain linear of equal weights in the place of each NF4 one."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            parent, _, child = name.rpartition(".")
            stored: Any = module.weight
            exact = dequantize_4bit(stored.data, stored.quant_state).float()
            has_bias = module.bias is not None
            plain = torch.nn.Linear(exact.shape[1], exact.shape[0], bias=has_bias, device="meta")
            plain.weight = torch.nn.Parameter(exact, requires_grad=False)
            if has_bias:
                plain.bias = torch.nn.Parameter(module.bias.float(), requires_grad=False)
            setattr(model.get_submodule(parent), child, plain)


def _settings(work: Work, folder: str, *, gradient_checkpointing: bool) -> SFTConfig:
    return SFTConfig(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=work.rows_per_step,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        train_sampling_strategy="sequential",
        gradient_checkpointing=gradient_checkpointing,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        max_length=None,
        dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def _dataset(work: Work) -> Dataset:
    rows = work.rows()
    labels = [
        [token if weight else -100 for token, weight in zip(row.ids, row.weights, strict=True)]
        for row in rows
    ]
    return Dataset.from_dict({"input_ids": [list(row.ids) for row in rows], "labels": labels})


class _StepWatch(TrainerCallback):
    def __init__(self, meter: StepMeter) -> None:
        self._meter = meter

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self._meter.step(logs["loss"])


if __name__ == "__main__":
    answer_questions(train)
