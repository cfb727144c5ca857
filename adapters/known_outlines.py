"""Recipes of versions read lately, for those that differ from one of them in values alone.

A team's adapters come from few recipes. To check a header of hundreds of tensors and lay them out
keeps the interpreter for milliseconds, which steps wait for; to see that it is a known one does
not, and versions that share a layout hold it once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from multiflora.kernels.matrix_copy import MatrixCopies

from .flat_buffer import plan_copies
from .folder import AdapterFolder, TensorEntry
from .layout import FlatLayout

_MAX_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that versions of one outline share: ``copies`` take a file to a buffer of ``layout``."""

    entries: tuple[TensorEntry, ...]
    layout: FlatLayout
    copies: MatrixCopies


class KnownOutlines:
    """The last ``max_kept`` recipes, by ``AdapterFolder.outline``; loader threads share it.

    ``lay_out`` raises for folders that are no adapters of the base: of these nothing is kept.
    """

    def __init__(
        self, lay_out: Callable[[AdapterFolder], FlatLayout], *, max_kept: int = _MAX_KEPT
    ) -> None:
        self._lay_out = lay_out
        self._max_kept = max_kept
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Recipe] = OrderedDict()

    def recipe_of(self, folder: AdapterFolder) -> Recipe:
        """The folder's recipe; the entries of a known one are taken for the folder's own."""
        known = self._find(folder.outline)
        if known is None:
            layout = self._lay_out(folder)
            recipe = Recipe(folder.entries, layout, plan_copies(layout, folder))
            known = self._keep(folder.outline, recipe)
        folder.entries = known.entries
        return known

    def _find(self, outline: bytes) -> Recipe | None:
        with self._lock:
            if outline in self._known:
                self._known.move_to_end(outline)
            return self._known.get(outline)

    def _keep(self, outline: bytes, known: Recipe) -> Recipe:
        """What another thread may have kept meanwhile goes before ``known``."""
        with self._lock:
            kept = self._known.setdefault(outline, known)
            if len(self._known) > self._max_kept:
                self._known.popitem(last=False)
            return kept
