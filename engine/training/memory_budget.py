"""The device memory that training jobs share."""


class MemoryBudget:
    """Counts bytes that jobs reserve before they allocate them."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._reserved: dict[str, int] = {}

    @property
    def used_bytes(self) -> int:
        return sum(self._reserved.values())

    def holds(self, job_id: str) -> bool:
        return job_id in self._reserved

    def has_room(self, job_id: str, num_bytes: int) -> bool:
        """Whether the job's reservation can become ``num_bytes``."""
        others = self.used_bytes - self._reserved.get(job_id, 0)
        return others + num_bytes <= self.capacity_bytes

    def reserve(self, job_id: str, num_bytes: int) -> None:
        """Make the job's reservation ``num_bytes``; there must be room."""
        assert self.has_room(job_id, num_bytes)
        self._reserved[job_id] = num_bytes

    def release(self, job_id: str) -> None:
        """Without effect if the job has no reservation."""
        self._reserved.pop(job_id, None)
