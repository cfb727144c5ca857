"""Frames on a stream socket: a 4-byte big-endian length, then that many bytes."""

import asyncio
import socket
import struct
from typing import Final

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")


def write_frame(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(pack_frame(payload))


def pack_frame(payload: bytes) -> bytes:
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes is over {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


def read_frame(connection: socket.socket) -> bytes | None:
    """The next frame, or None at the end of the stream."""
    head = _read_exactly(connection, _LENGTH.size)
    return _read_exactly(connection, _LENGTH.unpack(head)[0]) if head else None


def _read_exactly(connection: socket.socket, count: int) -> bytes | None:
    content = bytearray()
    while len(content) < count:
        try:
            piece = connection.recv(count - len(content))
        except ConnectionResetError:
            return None
        if not piece:
            return None
        content += piece
    return bytes(content)


async def receive_frame(reader: asyncio.StreamReader) -> bytes | None:
    """As ``read_frame``, on an asyncio stream."""
    try:
        head = await reader.readexactly(_LENGTH.size)
        return await reader.readexactly(_LENGTH.unpack(head)[0])
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None
