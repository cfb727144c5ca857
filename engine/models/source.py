"""Where a base model comes from: a local folder, or a Hugging Face hub id. Imports no torch."""

import re
from pathlib import Path

from ..errors import BaseNotFound, InvalidCheckpoint

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "merges.txt", "vocab.*"]
# Second copies in other formats that some repositories carry beside the standard one.
UNWANTED_FILES = ["consolidated*", "original/*", "onnx/*", "*.bin", "*.bin.index.json"]


def resolve_model(model: str, revision: str | None) -> Path:
    """Return the folder of ``model``, downloading a hub id unless it is cached.

    Only safetensors, JSON, templates and tokenizer files are fetched; ``HF_HUB_OFFLINE`` and the
    hub's own cache are respected. Raises `BaseNotFound`, or `InvalidCheckpoint` for a folder
    without config.json or safetensors.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise BaseNotFound(f"{model} is a local folder; it has no revision {revision!r}")
        return _check_folder(path)
    if path.is_file():
        raise BaseNotFound(f"{model} is a file; give the folder that holds it and config.json")
    if not HUB_ID.fullmatch(model) or model.startswith("."):
        raise BaseNotFound(f"{model} is neither an existing folder nor a hub id like owner/name")
    return _check_folder(_download(model, revision))


def _check_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InvalidCheckpoint(f"{folder} is an adapter, not a base; pass it with --adapter")
        raise InvalidCheckpoint(f"{folder} has no config.json; is it a Hugging Face model folder?")
    if not any(folder.glob("*.safetensors")):
        raise InvalidCheckpoint(
            f"{folder} has no *.safetensors; convert the model first "
            "(pickled .bin and .gguf weights are not read)"
        )
    return folder


def _download(model: str, revision: str | None) -> Path:
    # Imported late: the demo base and local folders need no hub client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            model,
            revision=revision,
            allow_patterns=WANTED_FILES,
            ignore_patterns=UNWANTED_FILES,
        )
    except GatedRepoError as error:
        raise BaseNotFound(
            f"{model} is gated: accept its licence on the hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise BaseNotFound(f"{model} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise BaseNotFound(
            f"{model} is neither an existing folder nor a hub repository this token can see"
        ) from error
    except LocalEntryNotFoundError as error:
        raise BaseNotFound(
            f"{model} is not in the local hub cache and the hub cannot be reached "
            "(offline mode or no network); give a local folder instead"
        ) from error
    except HFValidationError as error:
        raise BaseNotFound(f"{model} is not a valid hub id: {error}") from error
    except HfHubHTTPError as error:
        raise BaseNotFound(f"the hub refused {model}: {error}") from error
    return Path(folder)
