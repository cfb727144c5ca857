"""Turns conversations into padded tensors whose labels cover the answers alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .chat import ASSISTANT, END, render
from .corpus import Group

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Token rows padded on the right, and what each position should predict."""

    tokens: Tensor  # [B, T]
    labels: Tensor  # [B, T]


class Batcher:
    """Cuts a group, sorted by length, into batches with little padding, in random order."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, batch_size: int) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._assistant = cast(int, tokenizer.convert_tokens_to_ids(ASSISTANT))
        self._end = cast(int, tokenizer.convert_tokens_to_ids(END))
        self._pad = cast(int, tokenizer.pad_token_id)
        self._batch_size = batch_size

    def __call__(self, group: Group) -> Iterator[Batch]:
        texts = [render(conversation) for conversation in group.conversations]
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        rows = sorted((encoding.ids for encoding in encoded), key=len)
        size = self._batch_size
        starts = range(0, len(rows), size)
        batches = [self._batch(rows[start : start + size]) for start in starts]
        group.random.shuffle(batches)
        yield from batches

    def _batch(self, rows: list[list[int]]) -> Batch:
        width = max(map(len, rows))
        tokens = [row + [self._pad] * (width - len(row)) for row in rows]
        labels = [self._labels(row) + [IGNORED] * (width - len(row)) for row in rows]
        return Batch(torch.tensor(tokens), torch.tensor(labels))

    def _labels(self, row: list[int]) -> list[int]:
        labels: list[int] = []
        answering = False
        for token in row:
            labels.append(token if answering else IGNORED)
            answering = token == self._assistant or (answering and token != self._end)
        return labels
