"""A server around a scripted engine, in process."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import numpy
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from multiflora.adapters.registry import Registry
from multiflora.adapters.target import Projection, TargetModule
from multiflora.engine.client import EngineClient
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.text.chat_template import ChatTemplate, chat_template_of
from multiflora.engine.text.tokenizer import Tokenizer, load_tokenizer
from multiflora.engine.training.data.file_registry import FileRegistry
from multiflora.engine.training.gate.text_side import TextSide
from multiflora.engine.training.jobs.training_jobs import TrainingJobs
from multiflora.engine.training.learning.learner import Learner
from multiflora.server.access.key_registry import KeyRegistry
from multiflora.server.access.keyring import Keyring
from multiflora.server.app import create_app
from multiflora.server.catalog import Catalog
from multiflora.server.file_checker import FileChecker
from multiflora.server.http_server import HttpServer
from multiflora.server.job_publishing import JobPublishing
from multiflora.server.learning import make_learner
from multiflora.server.listener import bind, url_of
from multiflora.server.merging import Merger
from multiflora.server.metrics import Metrics
from multiflora.server.pinning import Pinning
from multiflora.server.publishing import Publisher
from multiflora.server.service import Service
from multiflora.server.training import TrainedBase, make_training_jobs

from .fake_engine import FakeEngine

CHAT_TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
DIGESTS = {"json": "a" * 64, "loud:one": "b" * 64}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE with a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


def write_tokenizer(folder: Path) -> None:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    roles = [f"<|{role}|>" for role in ("system", "user", "assistant", "tool")]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", *roles],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(["hello world, how are you today?"] * 4, trainer)
    fast.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture
def model(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A model folder that is fine but for its weights."""
    folder = tmp_path / "model"
    shutil.copytree(tokenizer_folder, folder)
    (folder / "config.json").write_text(json.dumps(MODEL_CONFIG))
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


@pytest.fixture(scope="session")
def projections() -> tuple[Projection, ...]:
    """One projection of a tiny base."""
    return (Projection(0, "o", (TargetModule("model.layers.0.self_attn.o_proj", 8, 8),)),)


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """``write_adapter("name", seed=1)`` -> a PEFT folder for ``projections``."""

    def write(name: str = "adapter", *, seed: int = 1, size: int = 8, **changes: Any) -> Path:
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True, exist_ok=True)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        draw = numpy.random.default_rng(seed).standard_normal
        path = "base_model.model.model.layers.0.self_attn.o_proj"
        tensors = {
            f"{path}.lora_A.weight": draw((2, size)).astype("float32"),
            f"{path}.lora_B.weight": draw((size, 2)).astype("float32"),
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return write


@dataclass
class LocalRenderer:
    """Renders here and now what servers render in a process of its own."""

    template: ChatTemplate

    async def render(self, messages: Any, **options: Any) -> str:
        return self.template.render(messages, **options)


@pytest.fixture
def chat_template(tokenizer: Tokenizer) -> LocalRenderer:
    return LocalRenderer(chat_template_of(tokenizer.folder))


@pytest.fixture
def engine(tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    for name, digest in DIGESTS.items():
        registry.publish(name, digest)
    yield registry
    registry.close()


@pytest.fixture
def publisher(registry: Registry) -> Iterator[Publisher]:
    publisher = Publisher(registry)
    yield publisher
    publisher.close()


@pytest.fixture
def stored_registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty registry on the disk, for modules whose ``registry`` keeps real adapters."""
    registry = Registry.open(tmp_path / "data", reserved={"base"})
    yield registry
    registry.close()


@pytest.fixture
def stored_publisher(
    stored_registry: Registry, projections: tuple[Projection, ...]
) -> Iterator[Publisher]:
    publisher = Publisher(stored_registry, projections)
    yield publisher
    publisher.close()


@pytest.fixture
def file_checker(registry: Registry, tmp_path: Path) -> Iterator[FileChecker]:
    checker = FileChecker(FileRegistry(registry.database, tmp_path / "data"))
    yield checker
    checker.close()


@pytest.fixture
def merger(registry: Registry, publisher: Publisher) -> Iterator[Merger]:
    merger = Merger(registry, publisher)
    yield merger
    merger.close()


@pytest.fixture
def jobs(
    engine: FakeEngine,
    registry: Registry,
    publisher: Publisher,
    file_checker: FileChecker,
    model: Path,
    tokenizer: Tokenizer,
    tokenizer_folder: Path,
    tmp_path: Path,
) -> TrainingJobs:
    client = cast(EngineClient, engine)
    pinning = Pinning(registry, client, publisher.match)
    return make_training_jobs(
        tmp_path / "data",
        TrainedBase(
            name="base", path="base", folder=tokenizer_folder, config=load_model_config(model)
        ),
        client=client,
        registry=registry,
        files=file_checker.files,
        publishing=JobPublishing(registry, publisher, pinning, Metrics(client)),
        end_tokens=frozenset({1}),
        text=TextSide(tokenizer, chat_template_of(tokenizer.folder)),
        judges={},
    )


@pytest.fixture
def learner(
    engine: FakeEngine,
    registry: Registry,
    publisher: Publisher,
    file_checker: FileChecker,
    jobs: TrainingJobs,
) -> Learner:
    client = cast(EngineClient, engine)
    return make_learner(
        registry,
        files=file_checker.files,
        jobs=jobs,
        pinning=Pinning(registry, client, publisher.match),
        metrics=Metrics(client),
    )


@pytest.fixture
def service(
    engine: FakeEngine,
    tokenizer: Tokenizer,
    chat_template: LocalRenderer,
    registry: Registry,
    publisher: Publisher,
    merger: Merger,
    file_checker: FileChecker,
    jobs: TrainingJobs,
    learner: Learner,
) -> Service:
    end = tokenizer.token_id("</s>")
    assert end is not None
    return Service(
        client=cast(EngineClient, engine),
        tokenizer=tokenizer,
        chat_template=chat_template,
        catalog=Catalog("base", registry, created=1_700_000_000),
        metrics=Metrics(cast(EngineClient, engine), registry, census=jobs.census, fresh_seconds=0),
        registry=registry,
        publisher=publisher,
        pinning=Pinning(registry, cast(EngineClient, engine), publisher.match),
        merger=merger,
        file_checker=file_checker,
        jobs=jobs,
        learner=learner,
        keyring=Keyring(KeyRegistry(registry.database)),
        end_tokens=frozenset({end}),
    )


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.fixture
async def url(service: Service, engine: FakeEngine) -> AsyncIterator[str]:
    """A real server on a loopback port."""
    listener = bind("127.0.0.1", 0)
    server = HttpServer(
        create_app(service), drain=service.drain, drain_timeout_seconds=1, stop_engine=engine.stop
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield url_of(listener)
    server.close_gently()
    await serving


@pytest.fixture
def complete(client: httpx.AsyncClient) -> Callable[..., Any]:
    """POST /v1/completions with the usual fields filled in."""

    async def post(**fields: Any) -> httpx.Response:
        return await client.post(
            "/v1/completions", json={"model": "base", "prompt": "hi", **fields}
        )

    return post


@pytest.fixture
def chat(client: httpx.AsyncClient) -> Callable[..., Any]:
    """POST /v1/chat/completions with the usual fields filled in."""

    async def post(**fields: Any) -> httpx.Response:
        body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], **fields}
        return await client.post("/v1/chat/completions", json=body)

    return post


@pytest.fixture
def read_events() -> Callable[[httpx.Response], list[Any]]:
    """The events of a stream; the closing mark is the string itself."""

    def read(response: httpx.Response) -> list[Any]:
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    return read
