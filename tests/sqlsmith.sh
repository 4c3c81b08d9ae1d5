#!/usr/bin/env bash
# Installs sqlsmith, for `make test-sqlsmith`. Safe to run again.
set -euo pipefail

command -v sqlsmith >/dev/null && exit 0
sudo=()
[[ $(id -u) == 0 ]] || sudo=(sudo)
echo "sqlsmith: installing"
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends install -qq sqlsmith >/dev/null
