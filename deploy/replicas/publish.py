"""Publishes adapters for all replicas: python -m deploy.replicas.publish --store URL NAME=FOLDER

Every adapter is checked against the base as a server would check it, stored under the digest of its
content, and then the name points at it. Replicas follow within seconds.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from multiflora.adapters.error import AdapterRejected, RegistryError
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.errors import StartupError
from multiflora.server.adapter_source import AdapterSource, parse_adapter
from multiflora.server.base_model import read_base_model
from multiflora.server.settings import ServeSettings

from .common_store import CommonStore


def publish(store: CommonStore, adapters: list[AdapterSource], *, model: str | None) -> list[str]:
    """Returns the digests. Raises ``AdapterRejected``, ``InvalidName``, ``StartupError``."""
    base = read_base_model(ServeSettings(model=model))
    projections = base.config.adapter_projections()
    digests = []
    with tempfile.TemporaryDirectory() as scratch:
        kept = AdapterStore(Path(scratch))
        for adapter in adapters:
            digest = import_adapter(adapter.path, projections=projections, store=kept)
            store.put(digest, kept.open(digest).path)
            store.point(adapter.name, digest)
            digests.append(digest)
    return digests


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.replicas.publish")
    parser.add_argument("adapters", nargs="+", type=parse_adapter, metavar="NAME=FOLDER")
    parser.add_argument("--store", required=True, help="file:///folder or s3://bucket/prefix")
    parser.add_argument("--model", help="base that the replicas serve; default: the demo")
    options = parser.parse_args()
    try:
        digests = publish(CommonStore(options.store), options.adapters, model=options.model)
    except (AdapterRejected, RegistryError, StartupError, OSError, ValueError) as error:
        print(f"publish: error: {error}", file=sys.stderr)
        return 1
    for adapter, digest in zip(options.adapters, digests, strict=True):
        print(adapter.name, digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
