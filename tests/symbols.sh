#!/usr/bin/env bash
# symbols.sh LIBRARY SOVERSION HEADER...: the shared library exports the functions of the headers and nothing else, needs
# nothing but the C library, and carries the right SONAME. NM and READELF: the tools, if not the system's.
set -euo pipefail
library=$1 soversion=$2
shift 2
status=0

# From each MOI_API to the parenthesis that opens the parameters; the last word before it is the name.
declared=$(grep -hv '^ *#' "$@" | tr '\n' ' ' |
  grep -oE 'MOI_API [^();]*\(' | sed -E 's/ *\($//; s/.*[ *]//' | sort -u)
exported=$("${NM:-nm}" -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort -u)
[ "$(wc -l <<<"$declared")" -ge 20 ] || { echo "only these declarations were found in $*: $declared"; exit 1; }
if [ "$declared" != "$exported" ]; then
  echo "declared in $* (<) and exported by $library (>) differ:"
  diff <(echo "$declared") <(echo "$exported") || true
  status=1
fi

dynamic=$("${READELF:-readelf}" -dW "$library")
needed=$(sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p' <<<"$dynamic")
extra=$(grep -vE '^(lib(c|m|dl|pthread)\.so\.[0-9]+|ld-linux.*)$' <<<"$needed" || true)
[ -z "$extra" ] || { echo "needs $extra"; status=1; }
soname=$(sed -nE 's/.*\(SONAME\).*\[(.*)\]/\1/p' <<<"$dynamic")
[ "$soname" = "libmoiety.so.$soversion" ] || { echo "SONAME $soname, not libmoiety.so.$soversion"; status=1; }
if grep -q TEXTREL <<<"$dynamic"; then echo "has text relocations"; status=1; fi
stack=$("${READELF:-readelf}" -lW "$library" | awk '$1 == "GNU_STACK" { print $7 }')
[ "$stack" = RW ] || { echo "its stack is $stack"; status=1; }
exit $status
