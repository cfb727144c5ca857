"""multiflora: one NF4 base, many LoRA adapters.

The code lives in four top-level folders (kernels, adapters, engine, server); the links beside this
file make them importable as ``multiflora.kernels`` and so on.
"""

__version__ = "0.1.0"
