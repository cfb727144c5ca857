"""How many predictions are scored at once. Imports no torch."""

# float32 logits of a chunk; with their softmax and their form in the model's dtype up to four
# times as much.
CHUNK_BYTES = 64 << 20
MAX_CHUNK_ROWS = 1024


def chunk_rows(vocab_size: int) -> int:
    """Predictions per chunk."""
    return max(1, min(MAX_CHUNK_ROWS, CHUNK_BYTES // (4 * vocab_size)))
