"""One flat buffer holds every factor at its real rank."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multiflora.adapters.flat_buffer import factor_views, fill_buffer, plan_copies
from multiflora.adapters.folder import WEIGHTS_NAME, AdapterFolder
from multiflora.adapters.inspection import inspect_adapter
from multiflora.adapters.layout import ALIGNMENT, plan_layout
from multiflora.adapters.target import Projection

MODULES = ("q_proj", "v_proj", "up_proj", "down_proj")


def test_views_reproduce_every_tensor(
    write_adapter: Callable[..., Path], projections: tuple[Projection, ...]
) -> None:
    folder = write_adapter(modules=MODULES, rank=5)
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = inspect_adapter(AdapterFolder(folder), projections)
    layout = plan_layout(projections, modules)
    buffer = fill_buffer(layout, tensors.__getitem__, torch.float32)
    views = factor_views(layout, buffer)
    seen = 0
    for planned in layout.projections:
        factors = views[planned.index]
        for part, view in zip(planned.parts, factors.parts, strict=True):
            a = factors.a[view.first_rank : view.first_rank + 5]
            assert torch.equal(a, tensors[part.module.a_name])
            assert torch.equal(view.b, tensors[part.module.b_name].T)
            assert view.scale == 8 / 5
            assert view.b.data_ptr() >= buffer.data_ptr(), "a view, not a copy"
            seen += 1
    assert seen == len(modules) == 2 * len(MODULES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_copies_of_the_file_give_the_same_buffer(
    dtype: torch.dtype, write_adapter: Callable[..., Path], projections: tuple[Projection, ...]
) -> None:
    folder = AdapterFolder(write_adapter(modules=MODULES, rank=5))
    layout = plan_layout(projections, inspect_adapter(folder, projections))
    file = folder.path / WEIGHTS_NAME
    expected = fill_buffer(layout, load_file(file).__getitem__, dtype)
    buffer = torch.zeros(layout.num_elements, dtype=dtype)
    content = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
    plan_copies(layout, folder).run(content, buffer)
    assert torch.equal(buffer, expected)
    assert expected.any()


def test_columns_follow_the_stacked_projection(
    write_adapter: Callable[..., Path], projections: tuple[Projection, ...]
) -> None:
    modules = inspect_adapter(AdapterFolder(write_adapter(modules=MODULES)), projections)
    qkv = plan_layout(projections, modules).projections[0]
    assert [(part.first_rank, part.first_column, part.width) for part in qkv.parts] == [
        (0, 0, 64),
        (4, 96, 32),
    ]


def test_nothing_is_padded_but_the_start_of_a_matrix(
    write_adapter: Callable[..., Path], projections: tuple[Projection, ...]
) -> None:
    modules = inspect_adapter(AdapterFolder(write_adapter(modules=MODULES, rank=1)), projections)
    layout = plan_layout(projections, modules)
    starts = [p.a_offset for p in layout.projections]
    starts += [part.b_offset for p in layout.projections for part in p.parts]
    assert all(start % ALIGNMENT == 0 for start in starts)
    real = sum(
        p.num_ranks * p.in_features + sum(part.module.rank * part.width for part in p.parts)
        for p in layout.projections
    )
    assert real <= layout.num_elements < real + ALIGNMENT * len(starts)
