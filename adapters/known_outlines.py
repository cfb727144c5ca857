"""Layouts of versions read lately, for those that differ from one of them in values alone.

A team's adapters come from few recipes. To check a header of hundreds of tensors and lay them out
keeps the interpreter for milliseconds, which steps wait for; to see that it is a known one does
not, and versions that share a layout hold it once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .folder import AdapterFolder, TensorEntry
from .layout import FlatLayout

_MAX_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class _Known:
    entries: tuple[TensorEntry, ...]
    layout: FlatLayout


class KnownOutlines:
    """The last ``max_kept`` layouts, by ``AdapterFolder.outline``; loader threads share it.

    ``lay_out`` raises for folders that are no adapters of the base: of these nothing is kept.
    """

    def __init__(
        self, lay_out: Callable[[AdapterFolder], FlatLayout], *, max_kept: int = _MAX_KEPT
    ) -> None:
        self._lay_out = lay_out
        self._max_kept = max_kept
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def layout_of(self, folder: AdapterFolder) -> FlatLayout:
        """The folder's layout; the entries of a known folder are taken for its own."""
        known = self._find(folder.outline)
        if known is None:
            known = self._keep(folder.outline, _Known(folder.entries, self._lay_out(folder)))
        folder.entries = known.entries
        return known.layout

    def _find(self, outline: bytes) -> _Known | None:
        with self._lock:
            if outline in self._known:
                self._known.move_to_end(outline)
            return self._known.get(outline)

    def _keep(self, outline: bytes, known: _Known) -> _Known:
        """What another thread may have kept meanwhile goes before ``known``."""
        with self._lock:
            kept = self._known.setdefault(outline, known)
            if len(self._known) > self._max_kept:
                self._known.popitem(last=False)
            return kept
