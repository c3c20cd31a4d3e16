#!/bin/sh
# Installs the system packages that are missing (Debian, Ubuntu): SoftHSM, and venv for the system's Python; with the
# argument `tests` the PostgreSQL server, PgBouncer and a C compiler too; with `modules` those and the PKCS#11 modules that
# `make modules` tests; with `bench` those of `tests`, and what one of the packages compared with is built by.
# Apart from these packages, nothing on the machine is changed.
set -eu

missing=""
if [ -z "$(find /usr/lib /usr/local/lib -name libsofthsm2.so 2>/dev/null | head -n 1)" ] ||
    ! command -v softhsm2-util >/dev/null 2>&1; then
    missing="$missing softhsm2"
fi
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
if [ -n "${1:-}" ] && ! command -v initdb >/dev/null 2>&1 &&
    [ -z "$(find /usr/lib/postgresql /usr/pgsql -path '*/bin/initdb' 2>/dev/null | head -n 1)" ]; then
    missing="$missing postgresql"
fi
if [ -n "${1:-}" ] && [ ! -x /usr/sbin/pgbouncer ] && ! command -v pgbouncer >/dev/null 2>&1; then
    missing="$missing pgbouncer"
fi
if [ -n "${1:-}" ]; then # for a PKCS#11 module of the tests' own
    command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
    [ -e /usr/include/p11-kit-1/p11-kit/pkcs11.h ] || missing="$missing libp11-kit-dev"
fi
if [ "${1:-}" = modules ]; then
    command -v p11-kit >/dev/null 2>&1 || missing="$missing p11-kit p11-kit-modules"
    command -v certutil >/dev/null 2>&1 || missing="$missing libnss3 libnss3-tools"
    command -v pkcsslotd >/dev/null 2>&1 || [ -x /usr/sbin/pkcsslotd ] || missing="$missing opencryptoki"
    command -v pkcs11-tool >/dev/null 2>&1 || missing="$missing opensc"
    command -v swtpm >/dev/null 2>&1 || missing="$missing swtpm swtpm-tools"
    command -v tpm2_ptool >/dev/null 2>&1 || missing="$missing libtpm2-pkcs11-1 libtpm2-pkcs11-tools tpm2-tools"
fi
if [ "${1:-}" = bench ]; then
    command -v swig >/dev/null 2>&1 || missing="$missing swig"
    [ -e /usr/include/openssl/ssl.h ] || missing="$missing libssl-dev"
    headers=$("${PYTHON:-python3}" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$headers/Python.h" ] || missing="$missing python3-dev"
fi
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
# These packages would make a database and start services. The tests start their own: while packages are set up the
# programs that do so lead to a script that does nothing, so no file of the machine has to be edited.
idle=$(mktemp -d)
trap 'rm -rf "$idle"' EXIT
for program in pg_createcluster deb-systemd-helper deb-systemd-invoke invoke-rc.d; do
    printf '#!/bin/sh\n' >"$idle/$program"
done
chmod 755 "$idle" "$idle"/*
$as_root apt-get update -qq
# shellcheck disable=SC2086 # one word a package
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o DPkg::Path="$idle:/usr/sbin:/usr/bin:/sbin:/bin" $missing >/dev/null
