#!/usr/bin/env bash
# Everything that only a GPU can prove, in one command: sections that can fail alone, each with a time limit.
#
#   bash benchmarks/gpu_check.sh [FOLDER]               on a machine with an NVIDIA GPU; about ten minutes
#   bash benchmarks/gpu_check.sh --dry-run [FOLDER]     a few cases in Triton's interpreter, to test the script
#
# FOLDER (gpu_check by default) gets a log for each section, the figures as CSV and JSON, and results.json, which says
# what became of each section; a table is printed.
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
    for dtype in float32 bfloat16; do
        section step_$dtype 300 "$python" benchmarks/step_gpu.py --dry-run --dtype $dtype --csv "$out/step_$dtype.csv"
    done
    section offload 300 "$python" benchmarks/gpu_offload.py --dry-run --json "$out/offload.json"
    section train 300 "$python" benchmarks/gpu_train.py --dry-run --json "$out/train.json"
else
    export TRITON_INTERPRET=0 HALFULP_EVERY_CASE=1
    section device 60 "${pytest[@]}" tests/test_gpu.py
    section sums 60 "${pytest[@]}" tests/test_triton_sums.py tests/test_triton_stages.py
    section bits 150 "${pytest[@]}" tests/test_kernels_triton.py
    section step_float32 75 "$python" benchmarks/step_gpu.py --csv "$out/step_float32.csv"
    section step_bfloat16 75 "$python" benchmarks/step_gpu.py --dtype bfloat16 --csv "$out/step_bfloat16.csv"
    section offload 40 "$python" benchmarks/gpu_offload.py --json "$out/offload.json"
    section train 140 "$python" benchmarks/gpu_train.py --seconds 120 --steps 200 --json "$out/train.json"
fi
sed -e '1s/^/[/' -e '$!s/$/,/' -e '$s/$/]/' "$out/results.jsonl" >"$out/results.json"
printf '%-16s %-12s %8s %8s\n' section result seconds limit
sed -E 's/.*"section": "([^"]*)", "result": "([^"]*)", .*"seconds": ([0-9]+), "limit": ([0-9]+).*/\1|\2|\3|\4/' \
    "$out/results.jsonl" | while IFS='|' read -r name result seconds limit; do
    printf '%-16s %-12s %8s %8s\n' "$name" "$result" "$seconds" "$limit"
done
exit $failed
