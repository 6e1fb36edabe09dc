# What scripts that check moiety in steps share; they source this file. A step's output is a log in $logs; it prints one line
# with its time and its counts, and what failed. $full, $jobs are the caller's, or begin_cross's.
passed=0 failed=0 begin=$SECONDS

# count LOG: how many tests a log tells of, as "passed failed". A cmocka program counts its cases, another ctest test 1,
# `moiety check` its runs of kernels, and other scripts end with "N passed, N failed".
count() {
  awk '
    /^[0-9]+: \[       OK \]/ { split($1, id, ":"); ok[id[1]]++ }
    /^[0-9]+: \[  FAILED  \] .*[^0-9]$/ && !/test\(s\)/ { split($1, id, ":"); if (!seen[$0]++) bad[id[1]]++ }
    / Test +#[0-9]+: / {
      line = $0; sub(/.*Test +#/, "", line); n = line; sub(/:.*/, "", n)
      if (line ~ / Passed +[0-9.]+ sec/) passed += ok[n] ? ok[n] : 1
      else if (line ~ /\*\*\*Skipped/) skipped++
      else { passed += ok[n]; failed += bad[n] ? bad[n] : 1 }
    }
    /^[0-9]+ passed, [0-9]+ failed$/ { passed += $1; failed += $3 }
    /^(ok|FAILED): [0-9]+ cases, [0-9]+ runs of kernels, [0-9]+ failures/ { passed += $4 - $8; failed += $8 }
    END { print passed + 0, failed + 0 }' "$1"
}

# show LOG: the output of the ctest tests that failed, or the end of the log.
show() {
  local ids
  ids=$(sed -nE '/ Passed +[0-9.]+ sec/d; s|^ *[0-9]+/[0-9]+ Test +#([0-9]+): .*|\1|p' "$1" | paste -sd '|')
  echo "---- $1"
  if [ -n "$ids" ]; then
    grep -E "^($ids): | Test +#($ids): " "$1" | tail -n 200
  else
    grep -vE '^\[[0-9]+/[0-9]+\] (Building|Linking|Creating) ' "$1" | tail -n 200
  fi
  echo "----"
}

log_of() { echo "$logs/${1//[^A-Za-z0-9=+_-]/_}.log"; }

# verdict NAME STATUS MILLISECONDS: the line of a step that has ended; one that counts nothing counts itself.
verdict() {
  local name=$1 rc=$2 ms=$3 log p f
  log=$(log_of "$name")
  read -r p f < <(count "$log")
  if [ "$rc" = 0 ] && [ "$f" != 0 ]; then rc=1; fi
  if [ $((p + f)) = 0 ]; then if [ "$rc" = 0 ]; then p=1; else f=1; fi; fi
  if [ "$rc" != 0 ] && [ "$f" = 0 ]; then f=1; fi
  passed=$((passed + p)) failed=$((failed + f))
  printf '%-44s %s %4d.%d s  %5d passed, %d failed\n' "$name" "$([ "$rc" = 0 ] && echo ok || echo 'FAILED')" \
    $((ms / 1000)) $((ms % 1000 / 100)) "$p" "$f"
  if [ "$rc" != 0 ]; then show "$log"; fi
  return "$rc"
}

# timed NAME COMMAND...: runs it into its log and writes "STATUS MILLISECONDS" beside it.
timed() {
  local log start=$EPOCHREALTIME rc=0
  log=$(log_of "$1")
  shift
  "$@" >"$log" 2>&1 || rc=$?
  echo "$rc $(((${EPOCHREALTIME/[.,]/} - ${start/[.,]/}) / 1000))" >"$log.end"
}

# step NAME COMMAND...
step() {
  local rc ms
  timed "$@"
  read -r rc ms <"$(log_of "$1").end"
  verdict "$1" "$rc" "$ms"
}

# side NAME COMMAND...: the same beside others, $jobs at once; settle waits for them and prints their lines in order.
sides=()
side() {
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
  timed "$@" &
  sides+=("$1")
}
settle() {
  local name rc ms
  wait
  for name in "${sides[@]}"; do
    rc=1 ms=0
    read -r rc ms <"$(log_of "$name").end" || true
    verdict "$name" "$rc" "$ms" || true
  done
  sides=()
}

# begin_cross SYSTEM TOOLCHAIN ARGUMENTS...: the beginning of a script that builds for another system in build/SYSTEM, with
# the options --full and --no-install; its comment from line 2 on, up to an empty line, is its help.
begin_cross() {
  local system=$1 arg
  toolchain=$root/cmake/$2
  shift 2
  full=0 install=1
  for arg in "$@"; do
    case $arg in
      --full) full=1 ;;
      --no-install) install=0 ;;
      -h | --help) sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$root/tests/$system.sh"; exit ;;
      *) echo "tests/$system.sh: unknown option $arg" >&2; exit 2 ;;
    esac
  done
  build=$root/build/$system libraries=$root/build/$system-root logs=$root/build/logs-$system
  jobs=$(nproc)
  rm -rf "$logs"
  mkdir -p "$logs"
}

# compile_cross NAME: $build by $toolchain, which finds the libraries of the other system by its variable NAME.
compile_cross() {
  local generator=()
  [ -e "$build/CMakeCache.txt" ] || generator=(-G Ninja)
  cmake -S "$root" -B "$build" "${generator[@]}" -DCMAKE_TOOLCHAIN_FILE="$toolchain" "-D$1=$libraries" \
    -DMOI_TESTS=ON -DMOI_BENCH=ON -DMOI_VULKAN=OFF -DMOI_CUDA=OFF -DMOI_WERROR=ON && cmake --build "$build" -j "$jobs"
}

finish() {
  echo "in $((SECONDS - begin)) s"
  echo "$passed passed, $failed failed"
  [ $failed = 0 ]
  exit
}
