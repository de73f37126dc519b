#!/bin/sh
# Two films, twelve questions, a full cache and a half: lmms-eval with this package's model namm, and a report.
#
#   examples/lmms-eval/run.sh [OUT]
#
# lmms-eval needs av < 16, so it gets an environment of its own in runs/lmms-eval-env: some minutes the first time.
# LMMS_PYTHON=/some/python takes an environment that has lmms-eval and this package already.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-runs/lmms-eval}
python=${LMMS_PYTHON:-runs/lmms-eval-env/bin/python}
if [ -z "${LMMS_PYTHON:-}" ]; then
  test -x "$python" || "${PYTHON:-python3}" -m venv runs/lmms-eval-env
  "$python" -m pip install --quiet --disable-pip-version-check -e '.[lmms-eval]'
fi
export HF_HUB_OFFLINE=1
for policy in full h2o:keep=0.5; do
  "$python" -m lmms_eval --model namm --model_args "policy=$policy,update_interval=32" --device cpu \
    --include_path examples/lmms-eval --tasks two_films --output_path "$out" --log_samples
done
"$python" -m namm_transfer.evals.harness.cli report from-lm-eval "$out" --out "$out-report"
