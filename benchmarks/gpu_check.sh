#!/usr/bin/env bash
# Everything that only a GPU can prove, in one command: sections that can fail alone, each with a time limit.
#
#   bash benchmarks/gpu_check.sh [FOLDER]               on a machine with an NVIDIA GPU; about ten minutes
#   bash benchmarks/gpu_check.sh --dry-run [FOLDER]     a few cases in Triton's interpreter, to test the script
#
# FOLDER (gpu_check by default) gets a log for each section, the figures as CSV, and results.json; a table is printed.
# The status is 1 if a section failed or ran out of time.
set -u
cd "$(dirname "$0")/.."
dry=0
[ "${1:-}" = "--dry-run" ] && { dry=1; shift; }
out=${1:-gpu_check}
python=${PYTHON:-python}
mkdir -p "$out"
: >"$out/results.jsonl"
failed=0

section() { # name, limit in seconds, command
    local name=$1 limit=$2 begin status result
    shift 2
    begin=$(date +%s)
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    case $status in
        0) result=passed ;;
        124) result="out of time" ;;
        *) result=failed ;;
    esac
    [ $status -eq 0 ] || failed=1
    printf '{"section": "%s", "result": "%s", "status": %d, "seconds": %d, "limit": %d}\n' \
        "$name" "$result" $status $(($(date +%s) - begin)) "$limit" >>"$out/results.jsonl"
}

pytest=("$python" -m pytest -q -p no:cacheprovider)
if [ $dry -eq 1 ]; then
    export TRITON_INTERPRET=1
    section bits 300 "${pytest[@]}" tests/test_kernels_triton.py -k "short_rows or reasons"
    section step_float32 300 "$python" benchmarks/step_gpu.py --dry-run --csv "$out/step_float32.csv"
else
    export TRITON_INTERPRET=0 HALFULP_EVERY_CASE=1
    section bits 240 "${pytest[@]}" tests/test_kernels_triton.py
    section sums 60 "${pytest[@]}" tests/test_triton_sums.py
    section device 60 "${pytest[@]}" tests/test_gpu.py
    section step_float32 120 "$python" benchmarks/step_gpu.py --csv "$out/step_float32.csv"
    section step_bfloat16 120 "$python" benchmarks/step_gpu.py --dtype bfloat16 --csv "$out/step_bfloat16.csv"
fi
sed -e '1s/^/[/' -e '$!s/$/,/' -e '$s/$/]/' "$out/results.jsonl" >"$out/results.json"
printf '%-16s %-12s %8s %8s\n' section result seconds limit
sed -E 's/.*"section": "([^"]*)", "result": "([^"]*)", .*"seconds": ([0-9]+), "limit": ([0-9]+).*/\1|\2|\3|\4/' \
    "$out/results.jsonl" | while IFS='|' read -r name result seconds limit; do
    printf '%-16s %-12s %8s %8s\n' "$name" "$result" "$seconds" "$limit"
done
exit $failed
