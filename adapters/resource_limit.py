"""What a process gives up before it reads what strangers made."""

import resource


def lower_limit(kind: int, soft: int, hard: int) -> None:
    """Lower a resource limit of this process for good; one that is lower already stays."""
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))
