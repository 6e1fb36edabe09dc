#!/usr/bin/env bash
# windows_root.sh FOLDER: makes FOLDER a prefix with the libraries that the program and the tests use, built for 64-bit
# Windows by cmake/x86_64-w64-mingw32.cmake out of this distribution's own source packages. The system's list of sources
# stays as it is: apt works in a configuration of its own. Needs apt of Debian or Ubuntu, g++-mingw-w64-x86-64-posix, cmake
# and ninja; does nothing where FOLDER is complete.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$1
packages=(benchmark cjson cmocka)
stamp=$root/.packages
if [ "$(cat "$stamp" 2>/dev/null)" = "${packages[*]}" ]; then exit 0; fi
mkdir -p "$root"
root=$(cd "$root" && pwd)
apt=$root/.apt
rm -rf "${root:?}/lib" "$root/include" "$root/bin" "$stamp"
. "$here/apt.sh"

sources() { sed -E '/^deb-src /d; s/^deb /deb-src /; s/^Types:.*/Types: deb-src/I'; }
private_apt "$apt" deb-src sources
apt-get update -q
mkdir "$apt/source"
# apt checks what it fetches against the signed lists.
(cd "$apt/source" && apt-get source -q --download-only --tar-only "${packages[@]}")

build() { # PACKAGE CMAKE_ARGS...
  local name=$1 folder=$apt/$1 archive
  shift
  mkdir -p "$folder/source"
  archive=$(find "$apt/source" -name "${name}_*.orig.tar.*" ! -name '*.asc')
  tar -xf "$archive" -C "$folder/source" --strip-components=1
  cmake -S "$folder/source" -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$root" \
    -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_TOOLCHAIN_FILE="$here/../cmake/x86_64-w64-mingw32.cmake" \
    -DMOI_WINDOWS_ROOT="$root" "$@"
  cmake --build "$folder/build"
  cmake --install "$folder/build"
}
build benchmark -DBENCHMARK_ENABLE_TESTING=OFF -DBENCHMARK_ENABLE_WERROR=OFF -DBENCHMARK_INSTALL_DOCS=OFF
build cjson -DBUILD_SHARED_LIBS=OFF -DENABLE_CJSON_TEST=OFF -DENABLE_CUSTOM_COMPILER_FLAGS=OFF
# A DLL whatever is asked: at least it needs no other.
build cmocka -DCMAKE_SHARED_LINKER_FLAGS=-static -DUNIT_TESTING=OFF -DWITH_EXAMPLES=OFF -DWITH_CMOCKERY_SUPPORT=OFF
rm -rf "$apt"
echo "${packages[*]}" >"$stamp"
