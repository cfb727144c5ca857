"""Who may reach a server that has no keys."""

from pathlib import Path

import pytest

from multiflora.adapters.registry import Registry
from multiflora.engine.errors import StartupError
from multiflora.server.access.api_key import KeyWish
from multiflora.server.access.caller import Scope
from multiflora.server.access.key_file import KeyFile
from multiflora.server.access.key_registry import KeyRegistry
from multiflora.server.serve import open_keyring
from multiflora.server.settings import ServeSettings

WISH = KeyWish(name="root", scopes=frozenset({Scope.ADMIN}))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.3.2.1"])
def test_without_keys_the_loopback_address_is_open(host: str) -> None:
    assert open_keyring(ServeSettings(host=host), Registry()).is_open


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_without_keys_a_wider_address_is_refused(host: str) -> None:
    with pytest.raises(StartupError, match="multiflora keys create"):
        open_keyring(ServeSettings(host=host), Registry())


def test_a_wider_address_can_be_forced(caplog: pytest.LogCaptureFixture) -> None:
    assert open_keyring(ServeSettings(host="0.0.0.0", insecure=True), Registry()).is_open
    assert "everybody" in caplog.text


def test_a_key_opens_every_address(tmp_path: Path) -> None:
    registry = Registry()
    KeyRegistry(registry.database).create(WISH)
    assert not open_keyring(ServeSettings(host="0.0.0.0"), registry).is_open

    path = tmp_path / "keys.jsonl"
    KeyFile(path).create(WISH)
    settings = ServeSettings(host="0.0.0.0", api_key_file=path)
    assert not open_keyring(settings, Registry()).is_open
    path.write_text("{")
    with pytest.raises(StartupError, match="line 1"):
        open_keyring(settings, Registry())
