#!/bin/sh
# Puts programs that some tests need beside the code: Debian's packages, unpacked, never installed
# and never started as services. `make components` runs it; tests that miss one say so by its name.
#
# MULTIFLORA_COMPONENTS is where they go; by default .components in the repository.
set -eu

PACKAGES="prometheus"

here=$(cd "$(dirname "$0")/.." && pwd)
target=${MULTIFLORA_COMPONENTS:-$here/.components}

for tool in apt-get dpkg; do
    command -v "$tool" > /dev/null || {
        echo "components: $tool is missing; this needs Debian, or something like it" >&2
        exit 1
    }
done

download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
chmod 755 "$download"
mkdir -p "$target"
cd "$download"
for package in $PACKAGES; do
    if [ -e "$target/$package.version" ]; then
        echo "components: $package $(cat "$target/$package.version") is there"
        continue
    fi
    apt-get download "$package" || {
        echo "components: apt-get knows no $package; run apt-get update as root first" >&2
        exit 1
    }
    dpkg -x "$package"_*.deb "$target"
    dpkg-deb -f "$package"_*.deb Version > "$target/$package.version"
    echo "components: $package $(cat "$target/$package.version") is in $target"
done
