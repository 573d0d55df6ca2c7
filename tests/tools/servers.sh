#!/bin/sh
# Two servers that speak S3's protocol, for the tests of the stores, beside the virtual environment, not in it: moto asks
# for older packages than ours. Where they cannot be had those tests are skipped.
folder=.venv/servers
python3 -m venv "$folder" && "$folder/bin/python" -m pip install --quiet 'moto[server]==5.2.5' ||
    echo "moto could not be installed: its tests will be skipped"
if ! command -v npm >/dev/null; then
    if [ "$(id -u)" -ne 0 ]; then
        as_root="sudo -n"
    fi
    command -v apt-get >/dev/null && $as_root apt-get -qq update &&
        DEBIAN_FRONTEND=noninteractive $as_root apt-get -qq install -y --no-install-recommends npm >/dev/null
fi
npm install --silent --no-fund --no-audit --ignore-scripts --prefix "$folder" s3rver@3.7.1 ||
    echo "s3rver could not be installed: its tests will be skipped"
