#!/bin/sh
# Debian's Chromium, for the tests of the report's page. Where it cannot be had they are skipped.
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" -ne 0 ]; then
    as_root="sudo -n"
fi
if command -v apt-get >/dev/null && $as_root apt-get -qq update &&
    DEBIAN_FRONTEND=noninteractive $as_root apt-get -qq install -y --no-install-recommends chromium >/dev/null; then
    exit 0
fi
echo "no Chromium here, and it could not be installed: the tests of the report's page will be skipped"
