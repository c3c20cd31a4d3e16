#!/bin/sh
# Makes a SoftHSM token for trying tokenvault out, inside this project's folder: .softhsm/ holds its configuration, its
# objects and its PIN. The system's SoftHSM and its tokens are left alone. Safe to run again.
#
# The last line on stdout is the key store's URI, alone. SoftHSM finds the token by the variable SOFTHSM2_CONF:
#     . .softhsm/env          sets SOFTHSM2_CONF and TOKENVAULT_KEY_STORE in a shell
# .softhsm/env holds plain NAME='value' lines with export before them, easy to read for a program too.
set -eu
umask 077

project=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
folder=$project/.softhsm
label=tokenvault

fail() {
    echo "softhsm-setup.sh: $1" >&2
    exit 1
}

case $project in
*[!A-Za-z0-9._~/@:+,-]*) fail "the project's path has characters that would need encoding in a URI: move it" ;;
esac
command -v softhsm2-util >/dev/null || fail "softhsm2-util is missing: install SoftHSM 2 (Debian: softhsm2)"

module=
for candidate in \
    "${SOFTHSM2_MODULE:-}" \
    /usr/lib/softhsm/libsofthsm2.so \
    /usr/lib/*-linux-gnu/softhsm/libsofthsm2.so \
    /usr/lib64/pkcs11/libsofthsm2.so \
    /usr/local/lib/softhsm/libsofthsm2.so \
    /opt/homebrew/lib/softhsm/libsofthsm2.so; do
    if [ -f "$candidate" ]; then
        module=$candidate
        break
    fi
done
[ -n "$module" ] || fail "libsofthsm2.so was not found: set SOFTHSM2_MODULE to its absolute path"

mkdir -p "$folder/tokens"
cat >"$folder/softhsm2.conf" <<EOF
directories.tokendir = $folder/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
EOF
SOFTHSM2_CONF=$folder/softhsm2.conf
export SOFTHSM2_CONF

random_hex() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}

if softhsm2-util --show-slots | grep -Eq "^ *Label: +$label *\$"; then
    [ -s "$folder/pin" ] || fail "the token is there but .softhsm/pin is not: remove .softhsm to begin anew (its keys are lost)"
else
    random_hex >"$folder/pin"
    echo >>"$folder/pin"
    # Nobody needs the security officer's PIN of a token that can be made anew.
    softhsm2-util --init-token --free --label "$label" --so-pin "$(random_hex)" --pin "$(cat "$folder/pin")" >/dev/null ||
        fail "softhsm2-util could not make the token"
fi
chmod 600 "$folder/pin"

uri="pkcs11:token=$label?module-path=$module&pin-source=file:$folder/pin"
cat >"$folder/env" <<EOF
export SOFTHSM2_CONF='$SOFTHSM2_CONF'
export TOKENVAULT_KEY_STORE='$uri'
EOF

echo "SoftHSM reads its configuration from the environment. In a shell:" >&2
echo "    export SOFTHSM2_CONF=$SOFTHSM2_CONF" >&2
echo "or  . $folder/env" >&2
echo "$uri"
