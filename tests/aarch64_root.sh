#!/usr/bin/env bash
# aarch64_root.sh FOLDER: makes FOLDER the / of an AArch64 system with the libraries that the program and the tests use, out
# of this distribution's own arm64 packages, for cmake/aarch64-linux-gnu.cmake and qemu-aarch64 -L. The C and C++ libraries
# are the cross compiler's. The system's own list of architectures stays as it is: apt works in a configuration of its own.
# Needs apt of Debian or Ubuntu and g++-aarch64-linux-gnu; does nothing where FOLDER is complete.
set -euo pipefail
root=$1
packages=(libbenchmark-dev libcjson-dev libcmocka-dev)
stamp=$root/.packages
if [ "$(cat "$stamp" 2>/dev/null)" = "${packages[*]}" ]; then exit 0; fi
mkdir -p "$root"
root=$(cd "$root" && pwd)
apt=$root/.apt
rm -rf "${root:?}/usr" "$root/lib" "$stamp"
. "$(dirname "$0")/apt.sh"

# Ubuntu has arm64 on a mirror of its own.
ports() {
  sed -E '/^Architectures:/Id; s/\[([^]]*)arch=[^] ]+([^]]*)\]/[\1\2]/; s/^(deb +)\[ *\]/\1/' |
    sed -E 's#https?://[a-z.]*(archive|security)\.ubuntu\.com/ubuntu/?#http://ports.ubuntu.com/ubuntu-ports/#'
}
private_apt "$apt" deb ports
cat >>"$apt/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
END
apt-get update -q
mkdir "$apt/deb"
# What they depend on, without the C and C++ libraries and what only those need.
mapfile -t all < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
  --no-enhances "${packages[@]}" | grep -E '^[a-z0-9]' |
  grep -vE '^(libc6|libgcc-s1|libstdc\+\+6|gcc-[0-9]+-base|libcrypt1|libcrypt-dev|libnsl.*|libtirpc.*|linux-libc-dev|rpcsvc-proto)$' |
  grep -vE '^libc6-dev$' | sort -u)
echo "unpacking ${all[*]}"
(cd "$apt/deb" && apt-get download -q "${all[@]}")
for deb in "$apt"/deb/*.deb; do dpkg-deb -x "$deb" "$root"; done
rm -rf "$apt" "$root/lib"
ln -s /usr/aarch64-linux-gnu/lib "$root/lib"
echo "${packages[*]}" >"$stamp"
