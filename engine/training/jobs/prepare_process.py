"""The process in which a job's files are prepared: request on stdin, answer on stdout."""

import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from multiflora.adapters.resource_limit import ProcessLimits, restrict_process

from ...text.chat_template import chat_template_of
from ...text.tokenizer import load_tokenizer
from ..data.config import DataConfig
from ..data.prepare import prepare
from ..data.renderer import Renderer
from ..data.report import DatasetRejected
from .preparation import PrepareAnswer, PrepareRequest

# Serving comes first.
_NICENESS: Final = 10
_MAX_COMPLAINT_CHARS: Final = 8000


def main() -> None:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=PrepareRequest)
    # The limits allow no thread.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.nice(_NICENESS)
    restrict_process(ProcessLimits(**msgspec.structs.asdict(request.limits)))
    os.write(sys.stdout.fileno(), msgspec.json.encode(_prepare(request)))


def _prepare(request: PrepareRequest) -> PrepareAnswer:
    tokenizer = load_tokenizer(Path(request.base))
    renderer = Renderer(
        tokenizer, chat_template_of(tokenizer.folder), end_tokens=frozenset(request.end_tokens)
    )
    param: str | None = None
    try:
        with prepare(
            Path(request.training_file),
            Path(request.training),
            renderer=renderer,
            config=request.config,
        ) as training:
            if request.validation_file is not None and request.validation is not None:
                prepare(
                    Path(request.validation_file),
                    Path(request.validation),
                    renderer=renderer,
                    config=request.config,
                    training=training,
                ).close()
        for one in request.beside:
            param = one.param
            config = DataConfig(max_length=request.config.max_length)
            prepare(Path(one.file), Path(one.folder), renderer=renderer, config=config).close()
    except DatasetRejected as error:
        return PrepareAnswer(
            complaint=str(error)[:_MAX_COMPLAINT_CHARS], param=param or error.param
        )
    return PrepareAnswer()
