"""Kernels compiled for a GPU that need not be there, and what their machine code looks like.

Triton must be imported without ``TRITON_INTERPRET``: tests that run interpreted kernels compile in
a child process.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?P<text>[^;]+);")
_LABEL = re.compile(r"\s*(?P<name>\.L_x_\d+):")
_BRANCH = re.compile(r"BRA.*`\((?P<target>\.L_x_\d+)\)")
_OPERATION = re.compile(r"(?:@!?U?P\w+\s+)?(?P<name>[A-Z][A-Z0-9]*)")


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """``loops`` are the bodies that end in a backward branch, outer ones with what they contain."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: Counter[str]
    loops: tuple[Counter[str], ...]

    def loop_instructions(self, operation: str) -> Counter[str]:
        """The loop with the most of ``operation`` for its length: the innermost hot one."""
        return max(self.loops, key=lambda loop: loop[operation] / loop.total(), default=Counter())

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    arch: int,
    num_warps: int,
    num_stages: int,
    maxnreg: int | None = None,
) -> CompiledKernel:
    """``signature`` names the type of each run-time argument: ``*bf16``, ``i32``, ...

    A suffix ``:16`` promises a multiple of 16, as the launcher does for what is one; without it
    loads are a byte wide and all counts meaningless.
    """
    position = {name: index for index, name in enumerate(kernel.arg_names)}
    attributes = {
        (position[name],): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.endswith(":16")
    }
    types = {name: signature.get(name, "constexpr").removesuffix(":16") for name in position}
    values = {(position[name],): value for name, value in constants.items()}
    options: dict[str, Any] = {"num_warps": num_warps, "num_stages": num_stages}
    if maxnreg is not None:
        options["maxnreg"] = maxnreg
    source = ASTSource(kernel, types, values, attributes)
    out = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return _inspect(out.asm["cubin"], out.metadata.shared)


def _inspect(cubin: bytes, shared_bytes: int) -> CompiledKernel:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        listing = _run("nvdisasm", "-c", file.name)
    operations, loops = _read(listing)
    return CompiledKernel(
        registers=_largest(r"REG:(\d+)", usage),
        stack_bytes=_largest(r"STACK:(\d+)", usage),
        shared_bytes=shared_bytes,
        instructions=Counter(operations),
        loops=tuple(Counter(operations[first:last]) for first, last in loops),
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / tool, *arguments], check=True, capture_output=True, text=True
    ).stdout


def _largest(pattern: str, text: str) -> int:
    return max(int(number) for number in re.findall(pattern, text))


def _read(listing: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Operation names in order, and the ranges of them that backward branches close."""
    operations: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for kind, text in _lines(listing):
        if kind == "label":
            labels[text] = len(operations)
            continue
        match = _OPERATION.match(text)
        assert match, text
        operations.append(match["name"])
        branch = _BRANCH.search(text)
        # A branch to itself pads the end of every kernel.
        if branch and labels.get(branch["target"], len(operations)) < len(operations) - 1:
            loops.append((labels[branch["target"]], len(operations)))
    return operations, loops


def _lines(listing: str) -> Iterator[tuple[str, str]]:
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            yield "label", label["name"]
        elif instruction := _INSTRUCTION.match(line):
            yield "instruction", instruction["text"].strip()
