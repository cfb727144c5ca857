"""Answers that are given again when a client repeats a request under its idempotency key."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .database import Database
from .error import RegistryError

KEPT_SECONDS: Final = 24 * 3600


class KeyReused(RegistryError):
    """The idempotency key came before, with another request."""

    code = "idempotency_key_reused"


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What was answered; ``body`` is as it was sent.

    ``status`` None: the server died before it could say how the request ended.
    """

    status: int | None
    body: bytes = b""


class KeptAnswers:
    """Answers by key, for ``KEPT_SECONDS``. Safe to call from any thread; waits for the disk."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def begin(self, key: str, fingerprint: str) -> KeptAnswer | None:
        """The answer that was given before, or None: the caller is to find it, then ``finish``.

        ``fingerprint`` stands for everything the request asks. Raises ``KeyReused`` if the key came
        with another one.
        """
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM answer WHERE created <= ?", (self._oldest(),))
            row = connection.execute(
                "SELECT fingerprint, status, body FROM answer WHERE key = ?", (key,)
            ).fetchone()
            if row is None:
                connection.execute(
                    "INSERT INTO answer (key, fingerprint, created) VALUES (?, ?, ?)",
                    (key, fingerprint, int(self._clock())),
                )
                return None
        known, status, body = row
        if known != fingerprint:
            raise KeyReused(
                "this Idempotency-Key came before with another request; use a new key for a new "
                "request"
            )
        return KeptAnswer(status, body or b"")

    def finish(self, key: str, answer: KeptAnswer) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE answer SET status = ?, body = ? WHERE key = ?",
                (answer.status, answer.body, key),
            )

    def forget(self, key: str) -> None:
        """Let the key be used again: its request changed nothing."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM answer WHERE key = ? AND status IS NULL", (key,))

    def _oldest(self) -> int:
        return int(self._clock()) - KEPT_SECONDS
