"""How many predictions are scored at once. Imports no torch."""

# float32 logits of a chunk; with their softmax and their form in the model's dtype up to four
# times as much. A chunk is a quantum: a CPU, whose memory is as near to small chunks as to large
# ones, takes a layer's time for it.
CHUNK_BYTES = {"cpu": 8 << 20}
MOST_CHUNK_BYTES = 64 << 20
MAX_CHUNK_ROWS = 1024


def chunk_rows(vocab_size: int, kernels: str) -> int:
    """Predictions per chunk, by the name of the kernels."""
    num_bytes = CHUNK_BYTES.get(kernels, MOST_CHUNK_BYTES)
    return max(1, min(MAX_CHUNK_ROWS, num_bytes // (4 * vocab_size)))
