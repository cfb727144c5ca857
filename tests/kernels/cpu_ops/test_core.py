"""The compiled core equals torch, keeps its bits, and its absence is only slower."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.kernels import cpu_ops, nf4, torch_ops
from multiflora.kernels.cpu_ops import build
from multiflora.kernels.cpu_ops import core as core_module
from multiflora.kernels.cpu_ops import nf4 as cpu_nf4
from multiflora.kernels.ops import (
    DenseWeight,
    LoraFactors,
    LoraInput,
    LoraPart,
    Ops,
    Segment,
    Weight,
)
from multiflora.kernels.quantize import quantize

CORE = core_module.load_core()
needs_core = pytest.mark.skipif(CORE is None, reason="the core is not built or not supported here")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_factors(num_columns: int, num_features: int) -> LoraFactors:
    parts = (
        LoraPart(random(3, num_features - 8, seed=5), 0, 0, 0.5),
        LoraPart(random(5, 7, seed=6), 3, num_features - 7, 2.0),
    )
    return LoraFactors(random(8, num_columns, seed=4), parts)


@needs_core
@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 140),
    num_tiles=st.integers(1, 5),
    num_blocks=st.integers(1, 4),
)
def test_nf4_matmul_equals_the_decoded_matrix(
    num_rows: int, num_tiles: int, num_blocks: int
) -> None:
    x = random(num_rows, 64 * num_blocks)
    canonical = quantize(random(16 * num_tiles, 64 * num_blocks, seed=1))
    packed = cpu_nf4.pack_nf4(canonical, torch.float32)
    assert packed.layout == cpu_nf4.TILES_LAYOUT
    expected = x.double() @ nf4.dequantize(canonical).double().T
    torch.testing.assert_close(
        cpu_ops.linear(x, packed, None, None).double(), expected, atol=1e-4, rtol=1e-5
    )


@needs_core
@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 140),
    num_tiles=st.integers(1, 9),
    num_blocks=st.integers(1, 4),
)
def test_what_flows_back_equals_the_decoded_matrix_and_keeps_its_bits(
    num_rows: int, num_tiles: int, num_blocks: int
) -> None:
    dy = random(num_rows, 16 * num_tiles)
    canonical = quantize(random(16 * num_tiles, 64 * num_blocks, seed=1))
    packed = cpu_nf4.pack_nf4(canonical, torch.float32)
    found = cpu_ops.input_gradient(dy, packed)
    expected = dy.double() @ nf4.dequantize(canonical).double()
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(cpu_ops.input_gradient(dy[-1:], packed), found[-1:])


@needs_core
@pytest.mark.parametrize("num_columns", [64, 192, 72])
@pytest.mark.parametrize("num_features", [1, 63, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_flow_back_through_unquantized_matrices_of_any_shape(
    dtype: torch.dtype, num_features: int, num_columns: int
) -> None:
    weight = random(num_features, num_columns, seed=1).to(dtype)
    for num_rows in (1, 6, 300):
        dy = random(num_rows, num_features)
        found = cpu_ops.input_gradient(dy, DenseWeight(weight))
        expected = dy.double() @ weight.double()
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


@needs_core
@pytest.mark.parametrize("num_features", [1, 2, 7, 33])
@pytest.mark.parametrize("num_columns", [1, 7, 8, 67, 128])
@pytest.mark.parametrize("num_rows", [1, 3, 4, 9])
def test_dense_matmul_and_deltas_take_any_shape(
    lora_input: Callable[..., LoraInput], num_rows: int, num_columns: int, num_features: int
) -> None:
    width = num_features + 8
    x, weight = random(num_rows, num_columns), DenseWeight(random(width, num_columns, seed=1))
    table, segments = [make_factors(num_columns, width)], [Segment(0, (num_rows + 1) // 2, 0, 0.75)]

    def run(ops: Ops) -> torch.Tensor:
        lora = lora_input(ops, table, segments, widths=[width], num_rows=num_rows)
        return ops.linear(x, weight, None, lora)

    torch.testing.assert_close(run(cpu_ops), run(torch_ops), atol=1e-4, rtol=1e-4)


@needs_core
@pytest.mark.parametrize("count", [1, 15, 4097, 300_001])
def test_rounding_is_that_of_torch(count: int) -> None:
    assert CORE is not None
    # Every pattern of bits is as likely: subnormal numbers, infinities and NaN among them.
    bits = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(count))
    x = bits.to(torch.int32).view(torch.float32)
    x[:1] = torch.tensor(0x3F808000, dtype=torch.int32).view(torch.float32)  # between two, a tie
    torch.testing.assert_close(CORE.round(x), x.bfloat16(), atol=0, rtol=0, equal_nan=True)


@needs_core
@pytest.mark.parametrize("num_columns", [7, 16, 67])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_bfloat16_matrix_gives_the_bits_of_its_float32_copy(
    num_rows: int, num_columns: int
) -> None:
    x, weight = random(num_rows, num_columns), random(31, num_columns, seed=1).bfloat16()
    found = cpu_ops.linear(x, DenseWeight(weight), None, None)
    assert torch.equal(found, cpu_ops.linear(x, DenseWeight(weight.float()), None, None))


@needs_core
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_keeps_its_bits_for_any_number_of_rows_and_threads(threads: int) -> None:
    x = random(97, 192)
    canonical = quantize(random(64, 192, seed=1))
    weights = [cpu_nf4.pack_nf4(canonical, torch.float32), DenseWeight(random(37, 192, seed=2))]
    before = torch.get_num_threads()
    whole = [cpu_ops.linear(x, weight, None, None) for weight in weights]
    torch.set_num_threads(threads)
    try:
        for start, stop in ((0, 1), (5, 8), (63, 97), (96, 97)):
            for weight, expected in zip(weights, whole, strict=True):
                part = cpu_ops.linear(x[start:stop], weight, None, None)
                assert torch.equal(part, expected[start:stop])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("num_rows", [1, 16, 40])
def test_without_the_core_torch_computes_the_same(
    lora_input: Callable[..., LoraInput],
    quantized: bool,
    num_rows: int,
    request: pytest.FixtureRequest,
) -> None:
    x = random(num_rows, 128)
    canonical = quantize(random(48, 128, seed=1))
    dense = DenseWeight(nf4.dequantize(canonical))
    table = [make_factors(128, 48)]

    def run(rows: slice, weight: Weight) -> torch.Tensor:
        taken = x[rows]
        segments = [Segment(0, min(len(taken), (num_rows + 1) // 2), 0, 0.75)]
        lora = lora_input(cpu_ops, table, segments, widths=[48], num_rows=len(taken))
        return cpu_ops.linear(taken, weight, None, lora)

    every = slice(0, num_rows)
    with_core = run(every, dense)
    request.getfixturevalue("without_core")
    weight = cpu_nf4.pack_nf4(canonical, torch.float32) if quantized else dense
    without = run(every, weight)
    torch.testing.assert_close(without, with_core, atol=1e-4, rtol=1e-4)
    for rows in (slice(0, 1), slice(0, (num_rows + 1) // 2)):
        assert torch.equal(run(rows, weight), without[rows])


def test_the_core_is_rebuilt_when_its_source_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, sources)
    monkeypatch.setattr(build, "SOURCES", sources)
    found = {build.core_path(tier) for tier in build.TIERS}
    for source in sorted(sources.iterdir()):
        source.write_text(source.read_text() + "\n// changed\n")
        found |= {build.core_path(tier) for tier in build.TIERS}
    assert len(found) == len(build.TIERS) * (1 + len(list(sources.iterdir())))
    assert {path.parent for path in found} == {tmp_path}


def test_a_missing_compiler_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "core_path", lambda tier: tmp_path / f"{tier}.so")
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    build.main()
    message = capsys.readouterr().err
    assert "no C++ compiler found; install g++" in message
    assert message.count("\n") == 1


def test_loading_never_compiles(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "def refuse(*a, **k): raise SystemExit('compiled during a start')\n"
        "subprocess.run = subprocess.Popen = refuse\n"
        "from multiflora.kernels.cpu_ops import build, core\n"
        "from pathlib import Path\n"
        f"core.core_path = lambda tier: Path({str(tmp_path)!r}) / 'none.so'\n"
        "assert core.load_core() is None"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
