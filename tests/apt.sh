# What scripts that fetch packages of another kind share; they source this file.

# private_apt FOLDER TYPE FILTER: lets apt in this process work in FOLDER, with the mirrors of this system as the command FILTER
# rewrites their lists, and without the system's own state. TYPE, deb or deb-src, is what to ask for where the system names no
# mirror. Network settings (proxies) of the system hold here too, and so do its keys.
private_apt() {
  local folder=$1 type=$2 filter=$3 file copy
  rm -rf "$folder"
  mkdir -p "$folder"/{lists/partial,archives/partial,sources.list.d,apt.conf.d,preferences.d}
  : >"$folder/status"
  . /etc/os-release
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ -e "$file" ] && grep -qiE 'debian\.org|ubuntu\.com' "$file" || continue
    copy=$(basename "$file")
    [ "$file" != /etc/apt/sources.list ] || copy=system.list
    "$filter" <"$file" >"$folder/sources.list.d/$copy"
  done
  if [ -z "$(ls -A "$folder/sources.list.d")" ]; then
    case $ID in
      debian) echo "$type http://deb.debian.org/debian $VERSION_CODENAME main" ;;
      ubuntu) echo "$type http://archive.ubuntu.com/ubuntu $VERSION_CODENAME main universe" ;;
      *) echo "neither Debian nor Ubuntu: $ID" >&2; return 1 ;;
    esac | "$filter" >"$folder/sources.list.d/system.list"
  fi
  cp /etc/apt/apt.conf.d/*prox* "$folder/apt.conf.d/" 2>/dev/null || true
  cat >"$folder/apt.conf" <<END
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::State "$folder";
Dir::State::lists "$folder/lists";
Dir::State::status "$folder/status";
Dir::Cache "$folder";
Dir::Cache::archives "$folder/archives";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$folder/sources.list.d";
Dir::Etc::parts "$folder/apt.conf.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$folder/preferences.d";
END
  export APT_CONFIG=$folder/apt.conf
}
