#!/bin/sh
# Installs the system packages that are missing (Debian, Ubuntu): SoftHSM, and venv for the system's Python.
set -eu

missing=""
[ -n "$(find /usr/lib /usr/local/lib -name libsofthsm2.so 2>/dev/null | head -n 1)" ] || missing="$missing softhsm2"
command -v softhsm2-util >/dev/null 2>&1 || missing="$missing softhsm2"
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo"
else
    echo "These system packages are missing:$missing. Install them, or run this as root or with sudo." >&2
    exit 1
fi
echo "Installing system packages:$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086 # one word a package
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
