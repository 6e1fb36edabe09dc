#!/usr/bin/env bash
# report.sh RESULTS_DIR MOIETY...: the command line of `moiety report`: where the page goes, and the exit status.
set -uo pipefail
results=$1
shift
moiety=("$@")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1

fail() {
  echo "report.sh: $*" >&2
  exit 1
}
refuses() { # STATUS WORDS ARGS...: this status, these words on stderr, nothing on stdout
  local status=$1 words=$2 got
  shift 2
  "${moiety[@]}" report "$@" >out 2>err
  got=$?
  [ $got = "$status" ] || fail "report $*: status $got, not $status"
  grep -qF -- "$words" err || fail "report $*: says \"$(cat err)\", not \"$words\""
  [ ! -s out ] || fail "report $*: writes to stdout"
}

"${moiety[@]}" report "$results"/*.json >one.html || fail "no page on stdout"
"${moiety[@]}" report -o two.html "$results"/*.json >out || fail "no page in a file"
[ ! -s out ] || fail "-o: writes to stdout"
[ -s one.html ] || fail "an empty page"
cmp one.html two.html || fail "the same files give other bytes"
tail -n 1 one.html | grep -qx '</html>' || fail "the page has no end"
"${moiety[@]}" report --help | grep -q -- '-o FILE.html' || fail "--help"

cp "$results/gpt-oss-20b.json" good.json
echo '{"context": {}}' >bad.json
echo kept >kept.html
refuses 2 "takes the JSON files"
refuses 2 "no option --output" --output x.html good.json
refuses 2 "is one of the results" good.json -o good.json
refuses 1 "missing.json: " missing.json
refuses 1 "bad.json: " good.json bad.json -o kept.html
refuses 1 "good.json: is given twice" good.json good.json -o kept.html
refuses 1 "none/page.html: " good.json -o none/page.html
[ "$(cat kept.html)" = kept ] || fail "a refused file costs the page that was there"
cmp -s "$results/gpt-oss-20b.json" good.json || fail "an input was changed"
if [ -w /dev/full ]; then
  "${moiety[@]}" report good.json >/dev/full 2>err && fail "a full disk is no error"
fi
exit 0
