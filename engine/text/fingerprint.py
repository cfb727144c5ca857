"""What the text side of a base is, as a digest: training and serving must agree on it."""

import hashlib
import json
from collections.abc import Collection

from .tokenizer import Tokenizer


def text_fingerprint(tokenizer: Tokenizer, end_tokens: Collection[int]) -> str:
    """A sha256 of the tokenizer, its chat templates and the ids that end an answer.

    An adapter that was trained under another fingerprint has learnt to answer prompts that are
    never sent, or to stop where nobody stops.
    """
    folder = tokenizer.folder
    parts = {
        "tokenizer": tokenizer.identity(),
        "templates": dict(folder.chat_templates),
        "special_tokens": {name: token.content for name, token in folder.special_tokens.items()},
        "end_tokens": sorted(end_tokens),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
