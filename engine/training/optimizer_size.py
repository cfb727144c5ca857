"""How many factors an optimizer moves at once, and what it keeps of them. Imports no torch."""

from typing import Final

from .config import OptimizerSettings

# A multiple of the blocks of 8-bit moments.
CHUNK_ELEMENTS: Final = 1 << 20
BLOCK: Final = 256


def moment_bytes(settings: OptimizerSettings, num_elements: int) -> int:
    """Of both moments."""
    if not settings.is_8bit:
        return 8 * num_elements
    num_blocks = -(-num_elements // BLOCK)
    return 2 * num_blocks * (BLOCK + 4)


def scratch_bytes(settings: OptimizerSettings, num_elements: int) -> int:
    """Beside the gradient, while a chunk moves: both moments in float32, and for 8 bits one of them
    padded and scaled, with what finds its codes."""
    per_element = 8 * settings.is_paged if not settings.is_8bit else 30
    return per_element * min(num_elements, CHUNK_ELEMENTS)
