"""Idle KV blocks become adapter memory, within bounds, and come back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from multiflora.engine.kv_arena import KvArena
from multiflora.engine.kv_blocks import BlockPool
from multiflora.engine.kv_lender import KvLender
from multiflora.engine.models.config import ModelConfig
from multiflora.engine.models.registry import load_model_config

NUM_BLOCKS, BLOCK_SIZE = 17, 16


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tiny_config(model_folder: Callable[..., Path]) -> ModelConfig:
    return load_model_config(model_folder("llama"))


def make_arena(config: ModelConfig) -> KvArena:
    return KvArena(config, NUM_BLOCKS, BLOCK_SIZE, dtype=torch.float32, device=torch.device("cpu"))


def test_a_loan_is_memory_of_whole_blocks_that_no_other_block_sees(
    tiny_config: ModelConfig,
) -> None:
    arena, pool = make_arena(tiny_config), BlockPool(NUM_BLOCKS, BLOCK_SIZE)
    lender = KvLender(pool, arena, max_blocks=8)
    loan = lender.lend(arena.block_elements + 1, is_urgent=False)
    assert loan
    assert loan.buffer.shape == (arena.block_elements + 1,)
    assert pool.num_lent == 2
    loan.buffer.fill_(1.0)
    first, count = loan.owner_key
    for keys, values in arena.caches():
        for block in range(NUM_BLOCKS):
            page = block * arena.pages_per_block
            is_lent = first <= block < first + count
            assert is_lent or not (keys[page].any() or values[page].any())
    arena.clear(range(first, first + count))
    assert not arena.pages.any()
    lender.take_back(loan, is_called_in=False)
    assert pool.num_lent == 0


def test_pages_of_all_layers_and_blocks_are_apart(tiny_config: ModelConfig) -> None:
    arena = make_arena(tiny_config)
    caches = arena.caches()
    assert len(caches) == tiny_config.num_layers
    number = 0.0
    for keys, values in caches:
        for block in range(NUM_BLOCKS):
            for pages in (keys, values):
                number += 1
                pages[block * arena.pages_per_block].fill_(number)
    assert arena.pages.view(arena.pages.shape[0], -1).unique(dim=0).shape[0] == number


def test_bounds_hold_and_a_called_in_loan_makes_a_pause(tiny_config: ModelConfig) -> None:
    arena, pool, clock = make_arena(tiny_config), BlockPool(NUM_BLOCKS, BLOCK_SIZE), Clock()
    lender = KvLender(pool, arena, max_blocks=3, clock=clock)
    size = arena.block_elements
    assert lender.lend(4 * size, is_urgent=True) is None
    loan = lender.lend(2 * size, is_urgent=False)
    assert loan
    assert lender.lend(2 * size, is_urgent=True) is None
    lender.take_back(loan, is_called_in=True)
    assert lender.lend(size, is_urgent=True) is None, "not at once again"
    clock.now = 2.0
    assert lender.lend(size, is_urgent=True)


def test_some_blocks_stay_for_new_requests(tiny_config: ModelConfig) -> None:
    arena, pool = make_arena(tiny_config), BlockPool(NUM_BLOCKS, BLOCK_SIZE)
    lender = KvLender(pool, arena, max_blocks=NUM_BLOCKS)
    while lender.lend(arena.block_elements, is_urgent=True):
        pass
    assert pool.num_free == NUM_BLOCKS // 8
