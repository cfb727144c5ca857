"""Which versions leave a tier so that another can come in."""

from collections.abc import Iterable


def choose_victims(idle: Iterable[tuple[str, int]], missing_bytes: int) -> tuple[str, ...] | None:
    """The digests that leave; None if all of ``idle`` together are too few.

    ``idle`` are (digest, bytes), least recently used first. The oldest are taken until there is
    room; then each of them that the others make superfluous is spared, the youngest first. So a
    large version among the victims saves the small ones that were listed before it.
    """
    chosen: list[tuple[str, int]] = []
    for digest, num_bytes in idle:
        if missing_bytes <= 0:
            break
        chosen.append((digest, num_bytes))
        missing_bytes -= num_bytes
    if missing_bytes > 0:
        return None
    surplus = -missing_bytes
    for candidate in reversed(chosen[:]):
        if candidate[1] <= surplus:
            surplus -= candidate[1]
            chosen.remove(candidate)
    return tuple(digest for digest, _ in chosen)
