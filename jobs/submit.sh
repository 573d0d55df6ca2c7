#!/usr/bin/env bash
# A night on a Ray cluster that runs already: bash jobs/submit.sh, from anywhere that reaches its dashboard.
#
# Sends the folder that `make wheel` fills. On each node Ray installs the wheel for this job alone, and what the wheel
# depends on if the node lacks it, in the versions of constraints.txt if that is in the folder. DIST is the folder;
# DIST= (empty) sends nothing: batchnst is on every node already.
# MANIFEST and OUT are paths that every node sees, or URIs.
set -euo pipefail
: "${MANIFEST:?the manifest, as the nodes see it}" "${OUT:?the folder to paint into, as the nodes see it}"
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
dist="${DIST-$(dirname "$0")/../build/dist}"

# Ray shows a token, where there is one, only if it is told to.
if [[ -e ~/.ray/auth_token || ${RAY_AUTH_TOKEN:-} ]]; then
    export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
fi
# `ray job stop` then leaves time to commit what is painted.
environment='"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}'

if [[ $dist ]]; then
    wheels=("$dist"/batchnst-*.whl)
    if [[ ${#wheels[@]} -ne 1 || ! -f ${wheels[0]} ]]; then
        echo "expected one wheel in $dist: run \`make wheel\` first" >&2
        exit 2
    fi
    hash='import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())'
    sha256=$(python3 -c "$hash" "${wheels[0]}")
    there='${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}' # the folder on a node; pip puts its path in
    # With the hash another wheel of the same version is another environment, not one that a node has kept.
    packages="\"batchnst @ file://$there/$(basename "${wheels[0]}")#sha256=$sha256\""
    if [[ -f $dist/constraints.txt ]]; then
        packages+=", \"--constraint $there/constraints.txt\""
    fi
    # A node that lacks torch downloads gigabytes, for which Ray's ten minutes may not be enough.
    environment+=", \"pip\": [$packages], \"config\": {\"setup_timeout_seconds\": 3600}"
fi

ray job submit ${dist:+--working-dir "$dist"} --runtime-env-json "{$environment}" -- \
    batchnst run "$MANIFEST" --out "$OUT"
