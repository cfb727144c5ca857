"""From an uploaded file to a data set that the trainer can read, or to a report that says why not.

Blocks for as long as tokenizing takes, in bounded memory but for some tens of bytes per row; it is
to run in a worker.
"""

from collections.abc import Iterator
from pathlib import Path

from .config import DataConfig, Method
from .dataset import DatasetWriter, PreparedDataset
from .linter import Linter
from .problem import Problem, ProblemList, RowRejected
from .renderer import Renderer
from .report import DatasetRejected, Report, TokenTally
from .row import Row
from .row_encoder import RowEncoder
from .row_format import FORMATS, RowFormat
from .row_key import row_key
from .row_reader import RowReader


def prepare(
    file: Path,
    folder: Path,
    *,
    renderer: Renderer,
    config: DataConfig | None = None,
    training: PreparedDataset | None = None,
) -> PreparedDataset:
    """Read, check, render and tokenize ``file`` into the new ``folder``.

    With ``training``, the prepared training file, ``file`` is a validation file, and rows of it
    that were trained on are findings. Raises ``DatasetRejected`` with the whole report if any row
    cannot be trained on; ``OSError`` if the disk fails. No folder is left then.
    """
    config = config or DataConfig()
    with open(file, "rb") as source, DatasetWriter(folder, config) as writer:
        keys = training.row_keys() if training else None
        linter = Linter(renderer.tokenizer.special_tokens, training=keys)
        preparation = _Preparation(renderer, config, writer, linter)
        reader = RowReader(source)
        preparation.run(reader)
        report = preparation.report(reader.format)
        if not report.is_usable:
            param = "validation_file" if training else "training_file"
            raise DatasetRejected(report, param=param)
        writer.finish(report, fingerprint=renderer.fingerprint())
    return PreparedDataset.open(folder)


class _Preparation:
    def __init__(
        self, renderer: Renderer, config: DataConfig, writer: DatasetWriter, linter: Linter
    ) -> None:
        self._renderer = renderer
        self._config = config
        self._writer = writer
        self._linter = linter
        self._encoder = RowEncoder(renderer, config)
        self._tally = TokenTally(renderer.end_tokens)
        self._problems = ProblemList()

    def run(self, reader: RowReader) -> None:
        for each in reader:
            if isinstance(each, Problem):
                self._problems.add(each)
                continue
            if self._tally.num_rows == 0 and (misfit := self._misfit(reader.format)):
                # Every other row would only say the same.
                self._problems.add(misfit.at(each.line))
                return
            self._take(each)

    def report(self, row_format: RowFormat | None) -> Report:
        tally = self._tally
        return Report(
            format=row_format.name if row_format else None,
            num_rows=tally.num_rows,
            num_examples=tally.num_examples,
            num_tokens=tally.num_tokens,
            num_trained_tokens=tally.num_trained_tokens,
            num_split=tally.num_split,
            num_truncated=tally.num_truncated,
            num_endless=tally.num_endless,
            histogram=tally.histogram(),
            num_problems=self._problems.num_problems,
            problems=tuple(self._problems.first),
            findings=(*tally.findings(self._config.max_length), *self._linter.findings()),
        )

    def _take(self, row: Row) -> None:
        try:
            encoded = self._encoder.encode(row)
        except RowRejected as error:
            self._problems.add(error.at(row.line))
            return
        key = row_key(row)
        self._linter.add(row, key)
        self._writer.add_key(key, row.line)
        self._tally.add_row(len(encoded.items), is_truncated=encoded.is_truncated)
        for item in encoded.items:
            self._tally.add(item)
            self._writer.add(item)

    def _misfit(self, row_format: RowFormat | None) -> RowRejected | None:
        assert row_format is not None
        method = self._config.method
        if row_format.method != method:
            return RowRejected(
                "wrong_method",
                f"{row_format.name} rows are not for {method} training; it takes rows of "
                + ", ".join(_names(method)),
            )
        if row_format.is_chat and not self._renderer.has_template:
            return RowRejected(
                "no_chat_template",
                "this base has no chat template, so it takes rows of plain text only: "
                "prompt and completion, prompt, chosen and rejected, or text",
            )
        return None


def _names(method: Method) -> Iterator[str]:
    return (known.name for known in FORMATS if known.method == method)
