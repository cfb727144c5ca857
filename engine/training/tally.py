"""Weighted means that are collected over micro-batches."""

from collections.abc import Mapping


class Tally:
    """Sums and weights by name."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, total: float, weight: float) -> None:
        """Count ``total``, the sum of values of together ``weight``."""
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def merge(self, other: "Tally") -> None:
        for name, total in other._sums.items():
            self.add(name, total, other._weights[name])

    def renamed(self, prefix: str) -> "Tally":
        """The same under names that begin with ``prefix``."""
        found = Tally()
        for name, total in self._sums.items():
            found.add(f"{prefix}{name}", total, self._weights[name])
        return found

    def means(self) -> Mapping[str, float]:
        """Mean by name; a name without any weight is left out."""
        return {
            name: total / self._weights[name]
            for name, total in self._sums.items()
            if self._weights[name]
        }
