#!/bin/sh
# Builds one fuzz target and runs it: fuzz/run.sh TARGET [SECONDS] [libFuzzer options]
# The coverage flags are those of `cargo fuzz run -s none`, and work on the stable compiler.
set -eu
cd "$(dirname "$0")"
name=$1
seconds=${2:-600}
shift
[ $# -eq 0 ] || shift
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --target "$host" --target-dir target --bin "$name"
mkdir -p "corpus/$name" "artifacts/$name"
# The limits make an allocation far beyond the input a finding, like a crash.
exec "target/$host/release/$name" -max_total_time="$seconds" -max_len=65536 -timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=64 \
    -artifact_prefix="artifacts/$name/" "$@" "corpus/$name" "seeds/$name"
