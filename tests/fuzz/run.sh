#!/usr/bin/env bash
# Coverage-guided fuzzing of everything that reads what it was given: descs and args, weights, files, command lines.
#
#   tests/fuzz/run.sh [--seconds N] [TARGET...]     N seconds for each target (60), one for each core at a time
#
# Needs clang with libFuzzer. What it learns stays in build/fuzz/corpus; an input that fails is in build/fuzz/found. The last
# line is "N passed, N failed".
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/fuzz seconds=60 targets=()
while [ $# != 0 ]; do
  case $1 in
    --seconds) seconds=$2; shift ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit ;;
    *) targets+=("$1") ;;
  esac
  shift
done
[ ${#targets[@]} != 0 ] || targets=(attention moe decode checkpoint report pack options)

mkdir -p "$build/found"
if ! echo 'int LLVMFuzzerTestOneInput(const char *p, long n) { return !p && n; }' |
  clang -x c -fsanitize=fuzzer,address,undefined -o "$build/probe" - 2>"$build/probe.log"; then
  echo "skipped: clang here has no libFuzzer (Debian and Ubuntu: clang, libclang-rt-dev)"
  exit 0
fi
generator=()
[ -e "$build/CMakeCache.txt" ] || generator=(-G Ninja)
# All accesses of the library's own code are checked; what the compiler traces is what the fuzzer learns from.
if ! { CC=clang CXX=clang++ cmake -S "$root" -B "$build" "${generator[@]}" -DMOI_FUZZ=ON -DMOI_VULKAN=OFF -DMOI_CUDA=OFF -DMOI_TESTS=OFF -DMOI_BENCH=OFF \
  -DMOI_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS=-fsanitize=fuzzer-no-link \
  -DCMAKE_C_FLAGS_DEBUG="-O1 -g" &&
  cmake --build "$build" -j "$(nproc)"; } >"$build/build.log" 2>&1; then
  tail -n 60 "$build/build.log"
  echo "0 passed, 1 failed"
  exit 1
fi

fuzz() { # TARGET
  local name=$1 corpus=$build/corpus/$1 log=$build/$1.log
  mkdir -p "$corpus"
  case $name in
    checkpoint) cp "$root"/tests/checkpoints/*.gguf "$corpus" && for f in "$root"/tests/checkpoints/*/*.safetensors; do
      cp "$f" "$corpus/$(basename "$(dirname "$f")")"; done ;;
    report) cp "$root"/bench/results/*.json "$corpus" ;;
  esac
  local length=4096
  case $name in checkpoint | report) length=200000 ;; esac
  ASAN_OPTIONS=detect_leaks=1 "$build/bin/fuzz_$name" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 \
    -max_len=$length -print_final_stats=1 -artifact_prefix="$build/found/$name-" "$corpus" >"$log" 2>&1
}

passed=0 failed=0 lanes=$(nproc)
for ((i = 0; i < ${#targets[@]}; i += lanes)); do
  pids=() names=()
  for name in "${targets[@]:i:lanes}"; do
    fuzz "$name" &
    pids+=($!) names+=("$name")
  done
  for j in "${!pids[@]}"; do
    name=${names[j]} log=$build/${names[j]}.log
    if wait "${pids[j]}"; then
      passed=$((passed + 1))
      printf 'ok     %-12s %s runs, %s\n' "$name" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
        "$(grep -oE 'cov: [0-9]+ ft: [0-9]+ corp: [0-9]+' "$log" | tail -n 1)"
    else
      failed=$((failed + 1))
      printf 'FAILED %-12s %s\n' "$name" "$log"
      grep -vE '^#[0-9]+' "$log" | tail -n 60
    fi
  done
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
