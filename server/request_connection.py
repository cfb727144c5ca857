"""h11's side of one connection: what a request's framing may cost, and why it was refused."""

from typing import Final

import h11

from multiflora.engine.errors import RequestRejected

from .errors import HeaderTooLarge

# Reading a chunk takes some 13 microseconds however small it is, and one read may bring 40,000.
_FREE_CHUNKS: Final = 2048
_LEAST_MEAN_BYTES: Final = 128
_TOO_LONG: Final = 431


class MalformedRequest(RequestRejected):
    """Bytes that are not a request of HTTP/1.1, or a waste of it."""

    code = "invalid_http"


class RequestConnection(h11.Connection):
    """``fault`` says what is wrong once an error of the protocol was raised."""

    def __init__(self, max_header_bytes: int) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self.fault: RequestRejected | None = None
        self._num_chunks = self._num_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == _TOO_LONG:
                self.fault = HeaderTooLarge("the headers never end")
            else:
                self.fault = MalformedRequest("this is no request of HTTP/1.1")
            raise
        if isinstance(event, h11.Data):
            self._count(len(event.data))
        elif isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
        return event

    def _count(self, num_bytes: int) -> None:
        self._num_chunks += 1
        self._num_bytes += num_bytes
        if self._num_chunks > _FREE_CHUNKS + self._num_bytes // _LEAST_MEAN_BYTES:
            self.fault = MalformedRequest(
                f"the body comes in {self._num_chunks} chunks for {self._num_bytes} bytes; send "
                "larger ones"
            )
            raise h11.RemoteProtocolError(str(self.fault))
