#!/usr/bin/env bash
# run.sh BUILD_DIR: installs the build in a prefix under it, then builds and runs engines that embed moiety in each of the
# supported ways. Ends with "N passed, N failed". CC is the compiler of those that use no CMake; to cross-compile, set
# CMAKE_TOOLCHAIN_FILE too, and EMULATOR to the words that programs are run with.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
work=$build/embed
prefix=$work/prefix
cc=${CC:-cc}
read -ra emulator <<<"${EMULATOR:-}"
passed=0 failed=0
rm -rf "$work"
mkdir -p "$work"
cmake --install "$build" --prefix "$prefix" >"$work/install.log" 2>&1 || {
  cat "$work/install.log"
  echo "0 passed, 1 failed"
  exit 1
}
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name moiety.pc)")
libdir=$(dirname "$PKG_CONFIG_PATH")
export PKG_CONFIG_PATH

try() { # NAME COMMAND...
  local name=$1
  shift
  if "$@" >"$work/$name.log" 2>&1; then
    passed=$((passed + 1))
    echo "  $name: $(tail -n 1 "$work/$name.log")"
  else
    failed=$((failed + 1))
    echo "  $name: FAILED"
    sed 's/^/    /' "$work/$name.log"
  fi
}

project() { # NAME FOLDER CMAKE_ARGS...
  local name=$1 folder=$2
  shift 2
  # without machine code of CUDA kernels: what is embedded is no matter here, and nvcc takes minutes for all formats
  cmake -S "$here/$folder" -B "$work/$name" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix" \
    -DMOI_CUDA=ON -DMOI_CUDA_CODE=OFF "$@" &&
    cmake --build "$work/$name" -j "$(nproc)" &&
    "${emulator[@]}" "$work/$name/consumer"
}

by_hand() { # NAME shared|static
  local program=$work/$1
  if [ "$2" = shared ]; then
    # shellcheck disable=SC2046
    "$cc" -o "$program" "$here/consumer.c" $(pkg-config --cflags --libs moiety) -lm &&
      readelf -d "$program" | grep -q 'NEEDED.*libmoiety' && LD_LIBRARY_PATH=$libdir "${emulator[@]}" "$program"
  else
    # Not -static: the archive is linked, and the C library stays shared, for dlopen.
    # shellcheck disable=SC2046
    "$cc" -o "$program" "$here/consumer.c" \
      $(pkg-config --static --cflags --libs moiety | sed 's/-lmoiety/-l:libmoiety.a/') -lm &&
      ! readelf -d "$program" | grep -q 'NEEDED.*libmoiety' && "${emulator[@]}" "$program"
  fi
}

# What a program linked decides what it tested: the shared and the static library must not be mistaken for each other.
linked() { # NAME shared|static
  local needs=static
  if readelf -d "$work/$1/consumer" | grep -q 'NEEDED.*libmoiety'; then needs=shared; fi
  [ $needs = "$2" ] || { echo "linked the $needs library"; return 1; }
}

find_package() { # NAME shared|static
  project "$1" find_package -DMOIETY_TARGET="moiety::$2" && linked "$1" "$2"
}

try find_package_shared find_package find_package_shared shared
try find_package_static find_package find_package_static static
try pkg_config_shared by_hand pkg_config_shared shared
try pkg_config_static by_hand pkg_config_static static
try add_subdirectory project add_subdirectory subdirectory
try cxx17 project cxx17 cxx
echo "$passed passed, $failed failed"
[ $failed = 0 ]
