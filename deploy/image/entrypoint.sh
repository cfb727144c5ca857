#!/bin/sh
# Triton asks for a C compiler once, for the code that starts its kernels. The image has none, but
# that code, built beforehand: it is put where Triton looks first.
set -eu
mkdir -p "$TRITON_CACHE_DIR"
cp -R -n /opt/triton/. "$TRITON_CACHE_DIR"
exec multiflora "$@"
