"""Which versions can run on the base that is served."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from multiflora.engine.models.config import ModelConfig

# Two checkpoints of one model may differ in these.
_FORM: Final = ("checkpoint_dtype", "prequantized", "eos_token_ids", "bos_token_id")


def base_fingerprint(config: ModelConfig) -> str:
    """sha256 of the architecture that adapters attach to; known before any weight is read.

    A base and its fine-tunes share it, as they share adapters in practice.
    """
    fields = {name: value for name, value in asdict(config).items() if name not in _FORM}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class BaseMatch:
    """Tells versions that were checked against another base; those are kept, but not served.

    ``bases`` are the fingerprints of all versions by digest; an unknown one, empty, is served.
    """

    def __init__(self, base: str = "", bases: Mapping[str, str] | None = None) -> None:
        self.base = base
        self._foreign = {digest for digest, made in (bases or {}).items() if made not in ("", base)}

    def accepts(self, digest: str) -> bool:
        return digest not in self._foreign

    def accept(self, digest: str) -> None:
        """Note that the version passed the check against this base."""
        self._foreign.discard(digest)

    def reason(self, digest: str) -> str:
        """Why a version that is not accepted is not served, and what to do."""
        return (
            f"version {digest[:12]} was made for another base than the one that is served; "
            "upload one for this base, or start the server with the other base"
        )
