"""A batch draws what each row's definition says, whoever the neighbours are, and waits once."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from multiflora.engine import sampler
from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.draw_plan import uniform
from multiflora.engine.request import GenerationRequest, SamplingParams
from multiflora.engine.sampler import NonFiniteLogits, sample
from multiflora.kernels import cpu_ops, torch_ops
from multiflora.kernels.ops import Ops


def make_request(
    prompt: tuple[int, ...] = (1,), answer: tuple[int, ...] = (), **sampling: Any
) -> ActiveRequest:
    parameters = SamplingParams(**{"max_tokens": 10, **sampling})
    active = ActiveRequest(GenerationRequest(id="r", prompt=prompt, sampling=parameters), 0)
    active.tokens += answer
    return active


def tokens_of(
    logits: Tensor, requests: list[ActiveRequest], ops: Ops = torch_ops
) -> list[int | None]:
    return [drawn.token for drawn in sample(logits, requests, ops)]


# The definition of a draw: one row, one full sort, nothing clever.


def defined_token(logits: Tensor, request: ActiveRequest, shift: float = 0.0) -> int | None:
    sampling = request.request.sampling
    if not logits.isfinite().all():
        return None
    logits = penalized(logits, request)
    logits = (logits - logits.max()).clamp(min=torch.finfo(logits.dtype).min)
    if request.num_generated < sampling.min_tokens and sampling.stop_token_ids:
        logits[list(sampling.stop_token_ids)] = -torch.inf
    if sampling.is_greedy:
        return int(logits.argmax())
    temperature = max(sampling.temperature, 1e-260)
    sampling = replace(sampling, temperature=temperature)
    probabilities, ids = candidates(logits, sampling)
    cumulative = probabilities.cumsum(0)
    point = (uniform(sampling.seed, len(request.tokens)) + shift) * cumulative[-1]
    place = int(torch.searchsorted(cumulative, point, right=True))
    return int(ids[min(place, len(ids) - 1)])


def penalized(logits: Tensor, request: ActiveRequest) -> Tensor:
    sampling = request.request.sampling
    seen = torch.tensor(sorted(set(request.tokens)))
    values = logits[seen]
    penalty = sampling.repetition_penalty
    changed = torch.where(values > 0, values / penalty, values * penalty)
    limit = torch.finfo(logits.dtype).max
    logits = logits.index_copy(0, seen, changed.clamp(-limit, limit))
    counts = Counter(request.tokens[request.num_prompt :])
    times = torch.tensor(list(counts.values()), dtype=logits.dtype)
    amounts = sampling.frequency_penalty * times + sampling.presence_penalty
    return logits.index_add(0, torch.tensor(list(counts), dtype=torch.int64), -amounts)


def candidates(logits: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Probabilities that may be drawn and their token ids; equals in the order of their ids."""
    probabilities = (logits.double() / sampling.temperature).softmax(0)
    if not sampling.top_k and sampling.top_p == 1 and not sampling.min_p:
        return probabilities, torch.arange(len(logits))
    values, ids = logits.sort(descending=True, stable=True)
    probabilities = probabilities[ids]
    if sampling.top_k:
        probabilities = (values[: sampling.top_k].double() / sampling.temperature).softmax(0)
    before = probabilities.cumsum(0) - probabilities
    kept = (before < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[0])
    return probabilities[kept], ids[: len(kept)][kept]


def mostly(usual: Any, others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(usual), others)


PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-310, 1e-5, 0.3, 0.8, 1.0, 2.0]),
        "top_k": mostly(0, st.sampled_from([1, 2, 20, 63, 64, 65, 1023, 1024, 1025, 2000, 9999])),
        "top_p": mostly(1.0, st.sampled_from([1e-6, 0.3, 0.9, 0.95, 0.999])),
        "min_p": mostly(0.0, st.sampled_from([1e-4, 0.05, 0.5, 1.0])),
        "repetition_penalty": mostly(1.0, st.floats(0.5, 2)),
        "frequency_penalty": mostly(0.0, st.floats(-2, 2)),
        "presence_penalty": mostly(0.0, st.floats(-2, 2)),
        "min_tokens": st.integers(0, 4),
        "stop_token_ids": st.lists(st.integers(0, 4), max_size=3, unique=True).map(tuple),
        "seed": st.integers(-(2**63), 2**63 - 1),
    }
)
TOKENS = st.lists(st.integers(0, 4), max_size=5).map(tuple)
REQUESTS = st.builds(
    lambda prompt, answer, params: make_request((1, *prompt), answer, **params),
    TOKENS,
    TOKENS,
    PARAMS,
)
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "wide": lambda noise: noise,
    "peaked": lambda noise: 5 * noise,
    "rounded": lambda noise: (8 * noise).bfloat16().float(),
    "ties": lambda noise: (2 * noise).round(),
    "flat": torch.zeros_like,
    "huge": lambda noise: 1e38 * noise.clamp(-3, 3),
    "nan": lambda noise: noise.index_fill(0, torch.tensor([0]), torch.nan),
    "inf": lambda noise: noise.index_fill(0, torch.tensor([len(noise) - 1]), torch.inf),
    "-inf": lambda noise: noise.index_fill(0, torch.tensor([len(noise) // 2]), -torch.inf),
}


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(REQUESTS, st.sampled_from(sorted(SHAPES))), min_size=1, max_size=9),
    vocab_size=st.sampled_from([7, 65, 500, 1025, 1026, 3000]),
    seed=st.integers(0, 2**31),
)
def test_a_batch_draws_what_each_row_defines(
    rows: list[tuple[ActiveRequest, str]], vocab_size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(rows), vocab_size, generator=generator)
    logits = torch.stack([SHAPES[shape](row) for row, (_, shape) in zip(noise, rows, strict=True)])
    original = logits.clone()
    requests = [request for request, _ in rows]
    pairs = list(zip(logits, requests, strict=True))
    expected = [defined_token(row, request) for row, request in pairs]
    assert tokens_of(logits, requests) == expected
    assert [tokens_of(row[None], [request])[0] for row, request in pairs] == expected
    # The core's weights are float32: a point this close to a border may fall on either side.
    drawn = tokens_of(logits, requests, cpu_ops)
    assert [tokens_of(row[None], [request], cpu_ops)[0] for row, request in pairs] == drawn
    for token, (row, request) in zip(drawn, pairs, strict=True):
        assert token in {defined_token(row, request, shift) for shift in (-1e-6, 0.0, 1e-6)}
    assert torch.equal(logits, original) or logits.isnan().any()


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.5}])
@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e-5])
def test_a_banned_best_token_leaves_the_next_best(
    temperature: float, filters: dict[str, Any]
) -> None:
    banned = {"min_tokens": 1, "stop_token_ids": (0,), "temperature": temperature}
    requests = [make_request(**banned, **filters)]
    assert tokens_of(torch.tensor([[9.0, 1.0, 3.0, 2.0]]), requests) == [2]


def test_a_penalty_that_overflows_still_draws() -> None:
    logits = torch.tensor([[1.0, 3e38, -3e38]])
    request = make_request((1, 2), repetition_penalty=0.01, top_p=0.9)
    assert tokens_of(logits, [request]) == [1]


MIXED = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.0},
    {"top_k": 20, "top_p": 0.9},
    {"top_k": 300},
    {"min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": 0.1},
    {"min_tokens": 9, "stop_token_ids": (3, 4), "top_p": 0.8},
]


def mixed_batch(size: int = 2 * len(MIXED)) -> tuple[Tensor, list[ActiveRequest]]:
    logits = 6 * torch.randn(size, 5000, generator=torch.Generator().manual_seed(size))
    chosen = [MIXED[row % len(MIXED)] for row in range(size)]
    requests = [make_request((1, 2), (3, 3), seed=row, **s) for row, s in enumerate(chosen)]
    return logits, requests


@pytest.mark.parametrize("chunk_elements", [1, 5000, 15000])
def test_chunks_change_no_draw(chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, requests = mixed_batch()
    whole = tokens_of(logits, requests)
    monkeypatch.setattr(sampler, "_CHUNK_ELEMENTS", {"cpu": chunk_elements})
    assert tokens_of(logits, requests) == whole


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_disturbs_no_neighbour(poison: float) -> None:
    logits, requests = mixed_batch()
    clean = tokens_of(logits, requests)
    for row in range(0, len(requests), 3):
        logits[row] = poison
    draws = sample(logits, requests)
    for row, drawn in enumerate(draws):
        if row % 3:
            assert drawn.token == clean[row]
        else:
            assert drawn.token is None
            assert isinstance(drawn.error, NonFiniteLogits)


def test_no_requests_need_no_device() -> None:
    assert sample(torch.empty(0, 9), []) == []


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.1}, {"min_p": 1.0}])
def test_of_equal_logits_the_lower_id_comes_first(filters: dict[str, Any]) -> None:
    logits = torch.zeros(1, 5000)
    logits[0, 700:1000] = 20.0
    requests = [make_request(seed=seed, temperature=0.5, **filters) for seed in range(50)]
    found = set(tokens_of(logits.expand(50, -1), requests))
    allowed = {"top_k": 3, "top_p": 31, "min_p": 300}[next(iter(filters))]
    assert found <= set(range(700, 700 + allowed))


class Watch(TorchDispatchMode):
    """Counts operators, and those for which a host would wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        has_mask = name in {"index", "index_put", "index_put_"} and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if has_mask or name in WAITING:
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


WAITING = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "allclose",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
    "bincount",
}


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Counts ``tolist`` of int64 tensors as a wait of its own; any other is a failure."""
    watch = Watch()
    tolist = torch.Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        assert tensor.dtype == torch.int64
        assert tensor.dim() == 1
        watch.calls["tolist"] += 1
        return tolist(tensor)

    with monkeypatch.context() as patch, watch:
        patch.setattr(torch.Tensor, "tolist", counted)
        yield watch


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: bool(x.isfinite().all()),
        lambda x: int(x.argmax()),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
    ],
)
def test_the_watch_sees_a_host_that_waits(
    wait: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as watch:
        wait(torch.ones(3))
    assert watch.waits


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_mixed_step_waits_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, requests = mixed_batch(size)
    with watched(monkeypatch) as watch:
        sample(logits, requests)
    assert not watch.waits
    assert watch.calls["tolist"] == 1


@pytest.mark.parametrize("params", MIXED)
def test_every_kind_of_row_waits_once(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = 6 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    with watched(monkeypatch) as watch:
        sample(logits, [make_request((1, 2), (3,), **params) for _ in range(2)])
    assert not watch.waits
    assert watch.calls["tolist"] == 1


def test_a_wide_nucleus_waits_once_more_for_all_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, requests = mixed_batch(8)
    logits[2] = logits[7] = 0.0
    with watched(monkeypatch) as watch:
        drawn = tokens_of(logits, requests)
    assert not watch.waits
    assert watch.calls["tolist"] == 2
    assert drawn == [defined_token(*pair) for pair in zip(logits, requests, strict=True)]


def test_a_greedy_step_is_one_check_and_one_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, _ = mixed_batch(6)
    with watched(monkeypatch) as watch:
        sample(logits, [make_request(temperature=0.0) for _ in range(6)])
    assert not watch.waits
    assert watch.calls["argmax"] == watch.calls["tolist"] == 1
    assert not watch.calls.keys() & {"index_select", "sort", "topk", "_softmax", "clone"}
