"""Which sinks a job may have: those that the server allows and whose library is installed."""

from collections.abc import Collection, Iterable
from importlib.util import find_spec
from typing import Final

from ....errors import RequestRejected
from .message import SINKS, SinkName

NOWHERE: Final = "none"


class TrackingUnavailable(RequestRejected):
    """A sink that this server does not allow, or whose library it lacks."""

    code = "tracking_unavailable"


def read_sinks(given: object) -> tuple[SinkName, ...]:
    """``report_to`` as Hugging Face's trainers take it: a name or a list. ``none`` is no sink.

    Raises ``ValueError``.
    """
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list):
        raise ValueError("it must be a name or a list of names")
    for name in names:
        if name not in (*SINKS, NOWHERE):
            known = ", ".join((*SINKS, NOWHERE))
            raise ValueError(f"{str(name)[:64]!r} is none of {known}")
    return tuple(sink for sink in SINKS if sink in names)


def check_sinks(sinks: Iterable[SinkName], *, allowed: Collection[str], param: str) -> None:
    """Raises ``TrackingUnavailable``."""
    for sink in sinks:
        if complaint := complaint_about(sink, allowed=allowed):
            raise TrackingUnavailable(complaint, param=param)


def complaint_about(sink: SinkName, *, allowed: Collection[str]) -> str | None:
    """Why metrics cannot go to the sink, with the remedy; None if they can."""
    if sink not in allowed:
        others = ",".join((*allowed, sink))
        return f"this server sends no metrics to {sink}; start it with --tracking {others}"
    spec = find_spec(sink)
    # A folder of that name, such as wandb makes for its files, is no library.
    if spec is None or spec.origin is None:
        return f"{sink} is not installed here; run pip install {sink}"
    return None
