#!/usr/bin/env bash
# A night on a Ray cluster that runs already: bash jobs/submit.sh, from anywhere that reaches its dashboard.
#
# MANIFEST and OUT are paths that every node sees, or URIs; batchnst is installed on every node.
set -euo pipefail
: "${MANIFEST:?the manifest, as the nodes see it}" "${OUT:?the folder to paint into, as the nodes see it}"
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"

# Ray shows a token, where there is one, only if it is told to.
if [[ -e ~/.ray/auth_token || ${RAY_AUTH_TOKEN:-} ]]; then
    export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
fi
# `ray job stop` then leaves time to commit what is painted.
stop='{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}'

ray job submit --runtime-env-json "$stop" -- \
    batchnst run "$MANIFEST" --out "$OUT"
