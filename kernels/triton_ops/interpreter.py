"""Whether kernels run in Triton's interpreter: on any machine, slowly, for tests.

The interpreter knows no inline assembly and computes bfloat16 wrongly without an error, so kernels
take ``PERMUTE`` and ``UPCAST`` as compile-time parameters that follow this.
"""

from triton import knobs

INTERPRETED: bool = knobs.runtime.interpret
