#!/usr/bin/env bash
# Builds everything for 64-bit Windows with mingw-w64 and checks it under wine:
#
#   tests/windows.sh            build, ctest, `moiety check` with every level of instruction set, bench, embedding
#   tests/windows.sh --full     the same with all cases and rows of every `moiety check`
#   ... --no-install            installs no packages
#
# The build is build/windows, the libraries of the other system are build/windows-root, logs are in build/logs-windows. The
# last line is "N passed, N failed"; the exit status is not 0 if anything failed.
set -uo pipefail
export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export LC_ALL=C
unset MOI_DEBUG
exec </dev/null
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1

. "$root/tests/steps.sh"
begin_cross windows x86_64-w64-mingw32.cmake "$@"

# gcc aligns no stack on 64-bit Windows: an aligned move of more than 16 bytes to or from it would fault now and then.
aligned_moves() {
  local found
  found=$(x86_64-w64-mingw32-objdump -d "$build/lib/libmoiety.a" |
    grep -E 'vmov(ap[sd]|dqa(32|64)?) ' | grep -E '%[yz]mm' | grep -F '(' | head -n 5)
  [ -z "$found" ] || { echo "aligned moves:"; echo "$found"; return 1; }
}

check() { # LEVEL ARGS...
  local level=$1
  shift
  [ "$level" = all ] || export MOI_DEBUG=cpu=$level
  "$wine" "$build/bin/moiety.exe" check "$@"
}

# A short measurement, and its page.
measure() {
  "$wine" "$build/bin/moiety.exe" bench --op all --tokens 1,32 --kv 256 --batch 1 --min-time 0.01 --memory 2 \
    --json "$logs/bench.json" && "$wine" "$build/bin/moiety.exe" report "$logs/bench.json" -o "$logs/report.html" &&
    grep -q '</html>' "$logs/report.html"
}

# An engine outside of this tree: C with the DLL and with the archive.
embed() {
  local prefix=$build/embed kind linked
  rm -rf "$prefix"
  cmake --install "$build" --prefix "$prefix" || return 1
  for kind in shared static; do
    cmake -S "$root/tests/embed/find_package" -B "$build/embed/$kind" -G Ninja -DCMAKE_BUILD_TYPE=Release \
      -DCMAKE_TOOLCHAIN_FILE="$toolchain" -DMOI_WINDOWS_ROOT="$libraries" -DCMAKE_PREFIX_PATH="$prefix" \
      -DMOIETY_TARGET="moiety::$kind" -DCMAKE_EXE_LINKER_FLAGS=-static && cmake --build "$build/embed/$kind" || return 1
    WINEPATH="Z:$prefix/bin" "$wine" "$build/embed/$kind/consumer.exe" || return 1
    x86_64-w64-mingw32-objdump -p "$build/embed/$kind/consumer.exe" >"$logs/imports" || return 1
    grep -q 'DLL Name: moiety.dll' "$logs/imports" && linked=shared || linked=static
    [ $linked = $kind ] || { echo "$kind asked for, $linked linked"; return 1; }
  done
}

packages=(gcc g++ g++-mingw-w64-x86-64-posix wine64 cmake ninja-build pkg-config xz-utils)
[ $install = 0 ] || step packages "$root/.ci/packages" "${packages[@]}" || finish
wine=/usr/lib/wine/wine64
[ -x "$wine" ] || wine=$(command -v wine64 || command -v wine)
step "windows libraries" "$root/tests/windows_root.sh" "$libraries" || finish
step "build for windows" compile_cross MOI_WINDOWS_ROOT || finish
step "no aligned vector moves" aligned_moves

# No desktop, no messages, no Mono and Gecko installers; one server for all programs, which ends with this script.
export WINEPREFIX=$root/build/windows-wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree=;mshtml=;winemenubuilder.exe="
export WINEPATH="Z:$build/bin;Z:$libraries/bin"
server=/usr/lib/wine/wineserver64
[ -x "$server" ] || server=$(command -v wineserver)
trap '"$server" -k' EXIT
"$server" -p >/dev/null 2>&1
step "devices under wine" "$wine" "$build/bin/moiety.exe" devices || finish
# The first check runs every row; under a cap it is the choice among the rest that is new.
quick=(--quick) lesser=(--quick --kernel chosen) network=(-LE network)
[ $full = 0 ] || quick=() lesser=() network=()
step "ctest under wine" ctest --test-dir "$build" -V --no-tests=error -j "$jobs" "${network[@]}"
side "check under wine" check all "${quick[@]}"
for cap in avx512 avx2 scalar; do
  side "check under wine, cpu=$cap at most" check $cap "${lesser[@]}"
done
settle
step "bench and report under wine" measure
step "embedding for windows" embed
finish
