"""What transformers and PEFT say of the served base: the oracle of the outside clients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from multiflora.kernels import nf4
from multiflora.kernels.quantize import quantize

# Between the best two logits; closer ones are a matter of the order of additions.
_CLEAR_MARGIN = 1e-3


def served_base(folder: Path) -> Any:
    """The checkpoint in float32 with the weights that a server decodes from NF4."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = nf4.dequantize(quantize(module.weight.data))
    return model


class Reference:
    """One model at a time, chosen by name; ``base`` is the base."""

    def __init__(self, folder: Path, adapters: Mapping[str, Path]) -> None:
        from peft import PeftModel

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model: Any = None
        self._places = {name: str(place) for place, name in enumerate(adapters)}
        base = served_base(folder)
        for name, path in adapters.items():
            place = self._places[name]
            if self._model is None:
                self._model = PeftModel.from_pretrained(base, str(path), adapter_name=place).eval()
            else:
                self._model.load_adapter(str(path), adapter_name=place)

    @torch.no_grad()
    def score(self, name: str, context: str, continuation: str) -> float:
        """The natural logarithm of the probability of ``continuation``, all tokens together."""
        before = self.tokenizer.encode(context)
        whole = self.tokenizer.encode(context + continuation)
        return self._score(name, whole, len(before))

    def score_text(self, name: str, text: str) -> float:
        """The same of a whole text behind one end token."""
        return self._score(name, [self.tokenizer.eos_token_id, *self.tokenizer.encode(text)], 1)

    @torch.no_grad()
    def _score(self, name: str, tokens: Sequence[int], first: int) -> float:
        self._model.set_adapter(self._places[name])
        logits = self._model(torch.tensor([tokens])).logits[0].double()
        scores = torch.log_softmax(logits, dim=-1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])
        return float(scores[first - 1 :].sum())

    @torch.no_grad()
    def continued(self, name: str, prompt: Sequence[int], count: int) -> str | None:
        """``count`` greedy tokens as text; None where that is not clear or not all characters."""
        self._model.set_adapter(self._places[name])
        tokens = list(prompt)
        for _ in range(count):
            best = self._model(torch.tensor([tokens])).logits[0, -1].topk(2)
            if best.values[0] - best.values[1] < _CLEAR_MARGIN:
                return None
            tokens.append(int(best.indices[0]))
            if tokens[-1] == self.tokenizer.eos_token_id:
                return None
        text = self.tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)
        return text if text.isascii() and text.isprintable() else None

    def chat_tokens(self, question: str) -> list[int]:
        """A question as the chat route sends it."""
        messages = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer.encode(text)
