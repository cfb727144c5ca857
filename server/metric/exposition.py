"""Prometheus' classic text format 0.0.4, written fast enough to be read twenty times a second.

The client library takes several times as long; tests hold what is written here against its parser
and its writer, and ``benchmarks.serving.bench_metrics`` measures both.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from multiflora.adapters.histogram import Distribution

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def labels(**values: str) -> str:
    """``adapter="a",kind="b"``: what stands between the braces of a sample."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in values.items())


class Exposition:
    """A page in the making. ``samples`` are pairs of ``labels(...)`` and a value."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def gauge(self, name: str, text: str, samples: Iterable[tuple[str, float]]) -> None:
        self._head(name, "gauge", text)
        self._samples(name, samples)

    def counter(self, name: str, text: str, samples: Iterable[tuple[str, float]]) -> None:
        """``name`` comes without its ``_total``."""
        self._head(f"{name}_total", "counter", text)
        self._samples(f"{name}_total", samples)

    def histogram(self, name: str, text: str, samples: Iterable[tuple[str, Distribution]]) -> None:
        self._head(name, "histogram", text)
        for own, found in samples:
            prefix = f'{name}_bucket{{{own}{"," if own else ""}le="'
            reached = 0
            for bound, count in zip(_bounds(found.bounds), found.counts, strict=True):
                reached += count
                self._lines.append(f'{prefix}{bound}"}} {reached}.0')
            braced = f"{{{own}}}" if own else ""
            self._lines.append(f"{name}_count{braced} {reached}.0")
            self._lines.append(f"{name}_sum{braced} {float(found.total)}")

    def content(self) -> bytes:
        return "".join(f"{line}\n" for line in self._lines).encode()

    def _head(self, name: str, kind: str, text: str) -> None:
        assert "\n" not in text
        self._lines.append(f"# HELP {name} {text}")
        self._lines.append(f"# TYPE {name} {kind}")

    def _samples(self, name: str, samples: Iterable[tuple[str, float]]) -> None:
        for own, value in samples:
            braced = f"{{{own}}}" if own else ""
            self._lines.append(f"{name}{braced} {float(value)}")


@lru_cache(maxsize=64)
def _bounds(bounds: Sequence[float]) -> tuple[str, ...]:
    return (*(str(float(bound)) for bound in bounds), "+Inf")
