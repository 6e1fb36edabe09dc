#!/usr/bin/env bash
# readme_snippet.sh SOURCE_DIR CC: compiles the first C block of README.md. Its statements become the body of a function
# whose parameters are the memory that an engine has; a block with a main of its own is compiled as it is.
set -euo pipefail
root=$1 cc=$2
parameters='const moi_weights *gate, const moi_weights *up, const moi_weights *down, const void *router, const void *x,
            const int32_t *ids, const float *weights, void *y, uint32_t n_tokens'
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
awk '/^```c$/ { inside = 1; next } inside && /^```/ { exit } inside' "$root/README.md" >"$dir/block"
[ -s "$dir/block" ] || { echo "README.md has no C block"; exit 1; }
if grep -q 'int main(' "$dir/block"; then
  cp "$dir/block" "$dir/snippet.c"
else
  {
    grep '^#include' "$dir/block" || true
    echo '#include <stdio.h>'
    echo '#include <stdlib.h>'
    echo "int snippet($parameters);"
    echo "int snippet($parameters) {"
    grep -v '^#include' "$dir/block"
    echo '  return 0;'
    echo '}'
  } >"$dir/snippet.c"
fi
"$cc" -std=c11 -Wall -Werror -I "$root/include" -c -o "$dir/snippet.o" "$dir/snippet.c" || {
  cat -n "$dir/snippet.c"
  exit 1
}
