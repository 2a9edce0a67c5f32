#!/bin/sh
# fuzz/run.sh TARGET SECONDS|FILE [libFuzzer options]: builds a fuzzer and runs it, see README.md.
set -eu
cd "$(dirname "$0")"
target=$1
what=$2
shift 2
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
features=
case $target in
store) features="--features store" ;;
spdy) features="--features streaming" ;;
parameters) features="--features server" ;;
esac
# shellcheck disable=SC2086
cargo build --release --target "$host" --bin "$target" $features
fuzzer=${CARGO_TARGET_DIR:-target}/$host/release/$target
mkdir -p "corpus/$target" "artifacts/$target"
if [ -f "$what" ]; then
    exec "$fuzzer" "$what" "$@"
fi
export FUZZ_SEEDS="corpus/$target"
exec "$fuzzer" "corpus/$target" "-artifact_prefix=artifacts/$target/" "-max_total_time=$what" -max_len=65536 -timeout=10 -rss_limit_mb=2048 "$@"
