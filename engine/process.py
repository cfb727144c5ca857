"""The engine as a process of its own: msgpack frames over a local socket, one loop, one reader.

Run as ``python -m multiflora.engine.process SOCKET_FD``. It ends when its parent closes the socket,
however the parent died.
"""

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import msgspec

from .errors import StartupError
from .frame import read_frame, write_frame
from .log_line import inherit_logging
from .loop import EngineLoop
from .messages import Command, Configure, Ready, Report, StartFailed

_SWITCH_SECONDS = 0.0002

logger = logging.getLogger(__name__)


def main(descriptor: int) -> None:
    # The API process decides when to stop; a terminal's Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A step takes the interpreter's lock back after every op; at the default of 5 ms, threads that
    # load adapters would hold it for longer than the op took.
    sys.setswitchinterval(_SWITCH_SECONDS)
    connection = socket.socket(fileno=descriptor)
    decoder = msgspec.msgpack.Decoder(Command)
    encoder = msgspec.msgpack.Encoder()

    def report(message: Report) -> None:
        write_frame(connection, encoder.encode(message))

    first = decoder.decode(read_frame(connection) or b"")
    assert isinstance(first, Configure)
    loop = _build(first, report)
    if loop is None:
        return
    threading.Thread(target=_read, args=(connection, decoder, loop), daemon=True).start()
    try:
        loop.run()
    except (BrokenPipeError, ConnectionResetError):
        logger.info("the API process is gone")


def _build(first: Configure, report: Callable[[Report], None]) -> EngineLoop | None:
    from .assembly import build_engine

    try:
        loop = build_engine(first.config, report)
    except StartupError as error:
        report(StartFailed(error.code, str(error)))
        return None
    # What lives as long as the engine is not looked through again: a full collection over the
    # modules of torch stops every stream for 200 ms, and loads bring many small objects.
    gc.collect()
    gc.freeze()
    report(Ready(loop.info))
    return loop


def _read(
    connection: socket.socket, decoder: "msgspec.msgpack.Decoder[Command]", loop: EngineLoop
) -> None:
    while frame := read_frame(connection):
        loop.inbox.put(decoder.decode(frame))
    # Nobody is left to answer to, and a step under way may still run for long.
    os._exit(0)


if __name__ == "__main__":
    inherit_logging()
    main(int(sys.argv[1]))
