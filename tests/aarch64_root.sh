#!/usr/bin/env bash
# aarch64_root.sh FOLDER: makes FOLDER the / of an AArch64 system with the libraries that the program and the tests use, out
# of this distribution's own arm64 packages, for cmake/aarch64-linux-gnu.cmake and qemu-aarch64 -L. The C and C++ libraries
# are the cross compiler's. The system's own list of architectures stays as it is: apt works in a configuration of its own.
# Needs apt of Debian or Ubuntu and g++-aarch64-linux-gnu; does nothing where FOLDER is complete.
set -euo pipefail
root=$1
packages=(libbenchmark-dev libcjson-dev libcmocka-dev libpthreadpool-dev)
stamp=$root/.packages
if [ "$(cat "$stamp" 2>/dev/null)" = "${packages[*]}" ]; then exit 0; fi
mkdir -p "$root"
root=$(cd "$root" && pwd)
apt=$root/.apt
rm -rf "${root:?}/usr" "$root/lib" "$apt" "$stamp"
mkdir -p "$apt"/{lists/partial,archives/partial,sources.list.d,apt.conf.d,preferences.d,deb}
: >"$apt/status"

# The mirrors of this system, without what limits them to its own architecture; Ubuntu has arm64 on a mirror of its own.
. /etc/os-release
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
  [ -e "$file" ] && grep -qiE 'debian\.org|ubuntu\.com' "$file" || continue
  copy=$apt/sources.list.d/$(basename "$file")
  [ "$file" != /etc/apt/sources.list ] || copy=$apt/sources.list.d/system.list
  sed -E '/^Architectures:/Id; s/\[([^]]*)arch=[^] ]+([^]]*)\]/[\1\2]/; s/^(deb +)\[ *\]/\1/' "$file" >"$copy"
  if [ "$ID" = ubuntu ]; then
    sed -i -E 's#https?://[a-z.]*(archive|security)\.ubuntu\.com/ubuntu/?#http://ports.ubuntu.com/ubuntu-ports/#' "$copy"
  fi
done
if [ -z "$(ls -A "$apt/sources.list.d")" ]; then
  case $ID in
    debian) echo "deb http://deb.debian.org/debian $VERSION_CODENAME main" ;;
    ubuntu) echo "deb http://ports.ubuntu.com/ubuntu-ports $VERSION_CODENAME main universe" ;;
    *) echo "aarch64_root.sh: neither Debian nor Ubuntu: $ID" >&2; exit 1 ;;
  esac >"$apt/sources.list.d/system.list"
fi
# Network settings (proxies) of the system hold here too.
cp /etc/apt/apt.conf.d/*prox* "$apt/apt.conf.d/" 2>/dev/null || true
cat >"$apt/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$apt/sources.list.d";
Dir::Etc::parts "$apt/apt.conf.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$apt/preferences.d";
END
export APT_CONFIG=$apt/apt.conf
apt-get update -q
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
