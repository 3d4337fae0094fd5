#!/usr/bin/env bash
# vLLM with and without withdrawal on a GPU, at true shapes with random weights; 8 minutes at most.
#
# Needs Python with `mvw[vllm]` on a machine with a GPU of 80 GB; PYTHON names another one. Nothing is
# downloaded. What was measured is in benchmarks/results/vllm_gpu.json, also where time was short.
# `--small` runs the same in miniature, on a CPU too.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import mvw_cli, vllm' || { echo "pip install '.[vllm]' first" >&2; exit 2; }
export PYTHONUNBUFFERED=1
# Processes of the engines are in the group that is ended with it.
exec timeout --kill-after=10 475 "$python" benchmarks/vllm_gpu.py --seconds 460 "$@"
