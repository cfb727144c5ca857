"""Text to token ids and back, from a Hugging Face tokenizer folder, without transformers.

Importing transformers takes seconds and brings torch along; the API process wants neither.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.pre_tokenizers import Metaspace

from ..errors import InvalidCheckpoint
from .quotation import Quotation
from .token_bytes import TokenBytes
from .tokenizer_folder import LlamaPrefix, SpecialToken, TokenizerFolder, read_tokenizer_folder

_SPACE: Final = "\u2581"
# What text inside a text is put after; the second is for text that merges with a line break.
_ANCHORS: Final = ("\n", "x")
_MANY: Final = 10_000


class Tokenizer:
    """A fast tokenizer with the special tokens and the templates of its folder.

    ``special_ids`` are the ids that ``skip_special_tokens`` leaves out; ``special_tokens`` are what
    they stand for.
    """

    def __init__(self, fast: FastTokenizer, folder: TokenizerFolder) -> None:
        added = fast.get_added_tokens_decoder()
        self.folder = folder
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.special_tokens = frozenset(t.content for t in added.values() if t.special)
        self._fast = fast
        # The texts of tokens alone, with special tokens (False) and without (True).
        self._alone: dict[bool, dict[int, str]] = {False: {}, True: {}}
        self._quotation = Quotation(self.special_tokens)
        self._quoted: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; a model's embedding may have more rows."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token(self) -> str | None:
        return self.folder.special_text("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.folder.special_text("eos_token")

    @cached_property
    def longest_token_chars(self) -> int:
        """No token stands for more characters than this, so length bounds the number of tokens."""
        return max(map(len, self._fast.get_vocab(with_added_tokens=True)), default=1)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """What each id stands for."""
        return TokenBytes(self._fast)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encode as transformers' fast tokenizer does.

        Only the post-processor in tokenizer.json adds BOS and EOS; transformers ignores
        ``add_bos_token`` and ``add_eos_token`` of tokenizer_config.json beside such a file.
        """
        return _ids(self._fast, text, add_special_tokens=add_special_tokens)

    def quote(self, data: Any) -> Any:
        """Mark the special tokens in JSON data that users wrote, for ``encode_chat``."""
        return self._quotation.quote(data)

    def encode_chat(self, text: str, *, continues: bool = False) -> list[int]:
        """Encode rendered chat text, in which the template has written its special tokens.

        Special tokens that ``quote`` marked are encoded as ordinary text. Text that ``continues``
        follows tokens that are settled, as an answer follows its prompt.
        """
        (first, _), *rest = self._quotation.split(text)
        ids = (
            self.continuation(first) if continues else self.encode(first, add_special_tokens=False)
        )
        for piece, is_quoted in rest:
            ids += (
                self._encode_quoted(piece) if is_quoted else self._encode_inside(piece, self._fast)
            )
        return ids

    def continuation(self, text: str) -> list[int]:
        """Encode text that follows settled tokens: it never merges with them, nothing is added."""
        return self._encode_inside(text, self._fast)

    def identity(self) -> str:
        """The whole tokenizer as JSON: equal for tokenizers that encode and decode alike."""
        return self._fast.to_str()

    def _encode_quoted(self, token: str) -> list[int]:
        """Encode a special token as text; a prompt may hold millions, of few kinds."""
        if token not in self._quoted:
            self._quoted[token] = self._encode_inside(token, self._without_special_tokens)
        return self._quoted[token]

    def _encode_inside(self, piece: str, fast: FastTokenizer) -> list[int]:
        """Encode a piece that does not begin the text: some tokenizers put a space before that."""
        if not piece:
            return []
        for anchor in _ANCHORS:
            before = _ids(fast, anchor)
            ids = _ids(fast, anchor + piece)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return _ids(fast, piece)

    @cached_property
    def _without_special_tokens(self) -> FastTokenizer:
        """A copy to which special tokens are text; most servers never need it."""
        copy = FastTokenizer.from_str(self._fast.to_str())
        copy.encode_special_tokens = True
        return copy

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if len(tokens) == 1:
            return self._decode_alone(tokens[0], skip_special_tokens=skip_special_tokens)
        if len(tokens) < _MANY:
            return self._fast.decode(tokens, skip_special_tokens=skip_special_tokens)
        # As for texts in _ids; a few tokens cost less in the plain way.
        (text,) = self._fast.decode_batch([tokens], skip_special_tokens=skip_special_tokens)
        return text

    def _decode_alone(self, token: int, *, skip_special_tokens: bool) -> str:
        """Streamed answers ask for every one of their tokens alone."""
        known = self._alone[skip_special_tokens]
        if (text := known.get(token)) is None:
            text = self._fast.decode([token], skip_special_tokens=skip_special_tokens)
            known[token] = text
        return text

    def token_name(self, token: int) -> str:
        """How the vocabulary spells a token; empty for an id that it does not know."""
        return self._fast.id_to_token(token) or ""

    def token_id(self, token: str) -> int | None:
        return self._fast.token_to_id(token)


def _ids(fast: FastTokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """As ``encode``, which holds the interpreter's lock and so stops all threads meanwhile."""
    (encoding,) = fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return encoding.ids


def load_tokenizer(path: Path) -> Tokenizer:
    """Read the tokenizer of a model folder. Raises ``InvalidCheckpoint``."""
    # Texts come one at a time; threads of the library's own could not share the work.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = read_tokenizer_folder(path)
    fast = _read_fast_tokenizer(path / "tokenizer.json")
    fast.no_truncation()
    fast.no_padding()
    if folder.llama_prefix is not None and not _is_byte_level(fast):
        _write_spaces_as_llama(fast, folder.llama_prefix)
    _add_missing_tokens(fast, folder)
    return Tokenizer(fast, folder)


def _read_fast_tokenizer(path: Path) -> FastTokenizer:
    try:
        return FastTokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for every malformed file
        raise InvalidCheckpoint(
            f"{path} cannot be read as a tokenizer ({error}); download the file again"
        ) from None


def _is_byte_level(fast: FastTokenizer) -> bool:
    return "ByteLevel" in str(fast.pre_tokenizer)


def _write_spaces_as_llama(fast: FastTokenizer, prefix: LlamaPrefix) -> None:
    """Do what transformers' `LlamaTokenizer` does, whatever tokenizer.json says about spaces."""
    fast.normalizer = None  # pyright: ignore[reportAttributeAccessIssue]
    fast.pre_tokenizer = Metaspace(replacement=_SPACE, prepend_scheme=prefix, split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    fast.decoder = decoders.Sequence(steps)


def _add_missing_tokens(fast: FastTokenizer, folder: TokenizerFolder) -> None:
    """Add the tokens that only tokenizer_config.json names, in the order of their ids."""
    known = {token.content for token in fast.get_added_tokens_decoder().values()}
    missing = [token for token in folder.added_tokens if token.content not in known]
    for token in missing:
        fast.add_tokens([_added_token(token)])


def _added_token(token: SpecialToken) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
