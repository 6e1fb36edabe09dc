#!/usr/bin/env bash
# Builds everything for AArch64 with Debian's or Ubuntu's cross compiler and checks it under qemu-user:
#
#   tests/aarch64.sh            build, ctest, `moiety check` with every level of instruction set, embedding
#   tests/aarch64.sh --full     the same with all cases and rows of every `moiety check`
#   ... --no-install            installs no packages
#
# The build is build/aarch64, the libraries of the other system are build/aarch64-root, logs are in build/logs-aarch64. The
# last line is "N passed, N failed"; the exit status is not 0 if anything failed.
set -uo pipefail
export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export LC_ALL=C
unset MOI_DEBUG
exec </dev/null
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1

. "$root/tests/steps.sh"
begin_cross aarch64 aarch64-linux-gnu.cmake "$@"

emulator=(qemu-aarch64 -cpu max -L "$libraries")
check() { # LEVEL ARGS...
  local level=$1
  shift
  [ "$level" = all ] || set -- "$@" "${lesser[@]}"
  [ "$level" = all ] || export MOI_DEBUG=cpu=$level
  "${emulator[@]}" "$build/bin/moiety" check "$@"
}

packages=(gcc g++ g++-aarch64-linux-gnu qemu-user cmake ninja-build pkg-config)
[ $install = 0 ] || step packages "$root/.ci/packages" "${packages[@]}" || finish
step "aarch64 libraries" "$root/tests/aarch64_root.sh" "$libraries" || finish
step "build for aarch64" compile_cross MOI_AARCH64_ROOT || finish
# The first check runs every row; under a cap it is the choice among the rest that is new.
quick=(--quick) lesser=(--kernel chosen) network=(-LE network)
[ $full = 0 ] || quick=() lesser=() network=()
step "ctest, aarch64" ctest --test-dir "$build" -V --no-tests=error -j "$jobs" "${network[@]}"
side "check, aarch64" check all "${quick[@]}"
for cap in dotprod neon scalar; do
  side "check, aarch64, cpu=$cap at most" check $cap "${quick[@]}"
done
settle
step "embedding, aarch64" env CMAKE_TOOLCHAIN_FILE="$toolchain" CC=aarch64-linux-gnu-gcc EMULATOR="${emulator[*]}" \
  "$root/tests/embed/run.sh" "$build"
finish
