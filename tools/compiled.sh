#!/usr/bin/env bash
# A copy of the checkout with the hot modules compiled, beside it: tools/compiled.sh FOLDER PYTHON. Nothing happens where it is up to date.
set -euo pipefail
folder=$1 python=$2
command -v cc >/dev/null || { echo "epp: compiling needs a C compiler; on Debian: apt-get install gcc" >&2; exit 1; }
mkdir -p "$folder"
sources=$(git ls-files -co --exclude-standard | while read -r file; do [ -f "$file" ] && echo "$file"; done)
stamp=$(echo "$sources" | xargs -d '\n' sha256sum | sha256sum)
[ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ] || exit 0
echo "epp: compiling into $folder (once, half a minute)"
find "$folder" -mindepth 1 -delete
echo "$sources" | tar -cf - -T - | tar -xf - -C "$folder"
(cd "$folder" && EPP_COMPILE=1 "$python" setup.py -q build_ext --inplace >compile.log 2>&1) || { tail -20 "$folder/compile.log" >&2; exit 1; }
echo "$stamp" >"$folder/.stamp"
