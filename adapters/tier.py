"""Where a version is. Imports no torch: the API process speaks of tiers too."""

from enum import StrEnum


class Tier(StrEnum):
    """The fastest place that holds a version completely.

    On a CPU the two memories are the same kind of memory under two budgets.
    """

    DISK = "disk"
    HOST = "host"
    DEVICE = "device"
