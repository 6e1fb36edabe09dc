#!/usr/bin/env bash
# readme_tables.sh [--write] SOURCE_DIR MOIETY...: the tables of README.md and docs/results.md are what the program prints,
# between the lines "<!-- begin: COMMAND -->" and "<!-- end -->". Compares them, or with --write puts them there.
set -euo pipefail
write=
if [ "$1" = --write ]; then write=1; shift; fi
root=$1
shift
new=$(mktemp)
trap 'rm -f "$new"' EXIT
cd "$root"
status=0
for page in README.md docs/results.md; do
  inside=0
  while IFS= read -r line; do
    if [[ $line =~ ^'<!-- begin: moiety '(.*)' -->'$ ]]; then
      printf '%s\n' "$line"
      # shellcheck disable=SC2086  # words of a command line, globs among them
      "$@" ${BASH_REMATCH[1]}
      inside=1
    elif [ "$line" = '<!-- end -->' ]; then
      inside=0
      printf '%s\n' "$line"
    elif [ $inside = 0 ]; then
      printf '%s\n' "$line"
    fi
  done <"$page" >"$new"
  if [ -n "$write" ]; then cp "$new" "$page"; else diff -u "$page" "$new" || status=1; fi
done
exit $status
