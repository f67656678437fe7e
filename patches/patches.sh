#!/bin/sh
# The sources of ggml and llama.cpp: from the Go module that go.mod pins, with
# the patches of this folder.
#
#   patches.sh source DIR   bring DIR up to date: module + patches, files only
#                           (a file that is right already keeps its time)
#   patches.sh pristine DIR the module without the patches, in a new or empty folder
#   patches.sh edit DIR     make DIR a git repository with one commit for each
#                           patch, to change them in
#   patches.sh save DIR     write the commits of DIR back as patches
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
module=github.com/ollama/ollama

# pristine DIR: ggml/ and llama/ as the module has them
pristine() {
    (cd "$root" && go mod download "$module")
    from=$(cd "$root" && go list -m -f '{{.Dir}}' "$module")
    mkdir -p "$1/ggml" "$1/llama"
    cp -R "$from/ml/backend/ggml/ggml/src" "$from/ml/backend/ggml/ggml/include" "$from/ml/backend/ggml/ggml/LICENSE" "$1/ggml/"
    cp -R "$from/llama/llama.cpp/src" "$from/llama/llama.cpp/include" "$from/llama/llama.cpp/LICENSE" "$1/llama/"
    chmod -R u+w "$1" # the module cache is read-only, its folders too
    find "$1" -name '*.go' -exec rm -f {} +
}

command=${1:-}
dir=${2:-}
[ -n "$dir" ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

case $command in
source)
    new=$dir.new
    [ ! -e "$new" ] || chmod -R u+w "$new" # what an interrupted run left
    rm -rf "$new"
    pristine "$new"
    for patch in "$here"/*.patch; do
        # outside of any repository, or git would look for the files in ours
        (cd "$new" && GIT_CEILING_DIRECTORIES=$(dirname "$new") git apply --whitespace=nowarn "$patch") ||
            { echo "patches.sh: $patch does not apply" >&2; exit 1; }
    done
    (cd "$new" && find . -type f) | while read -r file; do
        cmp -s "$new/$file" "$dir/$file" || { mkdir -p "$(dirname "$dir/$file")"; cp "$new/$file" "$dir/$file"; }
    done
    (cd "$dir" && find . -type f) | while read -r file; do
        [ -e "$new/$file" ] || rm -f "$dir/$file"
    done
    rm -rf "$new"
    ;;
pristine | edit)
    [ -z "$(ls -A "$dir")" ] || { echo "patches.sh: $dir is not empty" >&2; exit 2; }
    pristine "$dir"
    [ "$command" = edit ] || exit 0
    cd "$dir"
    git init -q
    git config user.name llsteer
    git config user.email llsteer@localhost
    git add -A
    git commit -q -m 'the module as it is'
    git tag pristine
    for patch in "$here"/*.patch; do
        git am -q --whitespace=nowarn "$patch"
    done
    echo "change and commit in $dir, one purpose for each commit; then: $0 save $dir"
    ;;
save)
    cd "$dir"
    rm -f "$here"/*.patch
    git format-patch -q --zero-commit --no-signature --no-stat --no-numbered -o "$here" pristine..HEAD
    # what changes without a change of the patch
    sed -i -e '/^From 0\{40\} /d' -e '/^Date: /d' -e '/^index [0-9a-f]*\.\.[0-9a-f]*/d' "$here"/*.patch
    ls "$here"/*.patch
    ;;
*)
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
