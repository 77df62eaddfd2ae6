#!/usr/bin/env bash
# The main job from nothing: a stack of its own, one run against simulated answers, its report.
set -euo pipefail
cd "$(dirname "$0")/.."

export BENCHGEN_DATA_DIR=${BENCHGEN_DEMO_DIR:-$PWD/.benchgen/demo}
mkdir -p "$BENCHGEN_DATA_DIR"
unset BENCHGEN_SERVER BENCHGEN_API_KEY
benchgen=.venv/bin/benchgen

trap '"$benchgen" down >/dev/null 2>&1 || true' EXIT
"$benchgen" up --detach --runners 2

echo
echo "\$ benchgen run gsm8k-mini --model 'builtin/simulated?accuracy=0.8&latency_ms=50'"
"$benchgen" run gsm8k-mini --model 'builtin/simulated?accuracy=0.8&latency_ms=50'

cat <<'NEXT'

That was a simulated model. To measure a real one, start the stack and register its endpoint:

  .venv/bin/benchgen up --detach
  .venv/bin/benchgen model add my-model --base-url https://HOST/v1 --model MODEL-ID --api-key-env MY_API_KEY
  .venv/bin/benchgen model test my-model
  .venv/bin/benchgen run gsm8k-mini --model my-model

NEXT
trap - EXIT
"$benchgen" down
