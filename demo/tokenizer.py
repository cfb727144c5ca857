"""Trains the demo's own byte-level BPE tokenizer on the demo's own text."""

from random import Random

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from .chat import BEGIN, CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS, base_conversation
from .tasks import TASKS

VOCABULARY_SIZE = 1792
MAX_POSITIONS = 2048
NUM_CONVERSATIONS = 60_000


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train on conversations of the base; every digit is a token of its own."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _texts(seed: int) -> list[str]:
    random = Random(f"tokenizer {seed}")
    weights = dict.fromkeys(TASKS, 1.0)
    texts: list[str] = []
    for _ in range(NUM_CONVERSATIONS):
        conversation = base_conversation(random, weights, style_share=0.4)
        texts += [conversation.system or ""]
        texts += [example.prompt for example in conversation.examples]
        texts += [text for answer in conversation.answers for text in (answer, answer.upper())]
    return texts
