#!/bin/sh
# Is this bundle the one that was released? Then load its images. Needs no network: sh, openssl, sha256sum,
# and podman or docker.
#
#   sh install.sh FINGERPRINT            verify, then load
#   sh install.sh FINGERPRINT --verify   verify, and nothing else
#
# FINGERPRINT is the releaser's, obtained otherwise than with this folder. Exit 0 done, 1 failed, 2 refused.
set -eu
LC_ALL=C
export LC_ALL

refuse() {
    echo "install: $1" >&2
    exit 2
}

case "${1:-}" in
    *[!0-9a-f]* | "") refuse "no fingerprint; allowed: 64 hex digits; next: ask the releaser for it" ;;
esac
[ "${#1}" -eq 64 ] || refuse "no fingerprint; allowed: 64 hex digits; next: ask the releaser for it"
case "${2:-}" in
    "" | --verify) ;;
    *) refuse "an unknown word; allowed: --verify" ;;
esac
cd "$(dirname "$0")"

found=$(openssl pkey -pubin -in release.pub -outform DER 2> /dev/null | sha256sum | cut -d ' ' -f 1)
[ "$found" = "$1" ] || refuse "another releaser's key; allowed: the one of that fingerprint"
openssl pkeyutl -verify -pubin -inkey release.pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig \
    > /dev/null 2>&1 || refuse "a list of files that the releaser did not sign"
sha256sum --check --strict --quiet SHA256SUMS > /dev/null 2>&1 \
    || refuse "a file that is missing, or is not as the releaser signed it"
there=$(find . \( -type f -o -type l \) ! -path ./SHA256SUMS ! -path ./SHA256SUMS.sig | sed 's|^\./||' | sort)
signed=$(cut -c 67- SHA256SUMS | sort)
[ "$there" = "$signed" ] || refuse "a file that the releaser did not sign"
echo "verified: every file is as it was signed by $1"
[ "${2:-}" = "" ] || exit 0

engine=$(command -v podman || command -v docker) || refuse "no engine; allowed: podman or docker"
for image in images/*.tar; do
    "$engine" load --input "$image" || exit 1
done
