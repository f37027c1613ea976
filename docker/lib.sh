# shellcheck shell=bash
# What postgres.sh, rabbitmq.sh, demo.sh and tests/run.sh share. Sourced, never run.

die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
say() { printf '%s\n' "$*" >&2; }

is_root() { [ "$(id -u)" = 0 ]; }

# Whether something accepts connections on a loopback port.
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Prints a port that nobody listens on. Below the range that the kernel takes for outgoing connections (32768 and up),
# so that a server which is killed finds its port free when it comes back.
free_port() {
    local port
    for _ in $(seq 1 200); do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        port_open "$port" || { echo "$port"; return 0; }
    done
    die "found no free port between 20000 and 32000"
}

# wait_until SECONDS COMMAND...: runs the command every tenth of a second until it succeeds.
wait_until() {
    local deadline=$((SECONDS + $1)); shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# Whether a process lives (and is not a zombie that waits for its parent).
alive() { [ -n "${1:-}" ] && [ -e "/proc/$1/stat" ] && [ "$(sed 's/^.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null)" != Z ]; }

# apt_install PACKAGE...: installs what is missing from the distribution. Nothing that is installed starts by itself: we
# want private servers only, and a service that grabs the default port would surprise the machine's owner.
apt_install() {
    local missing=() p policy=/usr/sbin/policy-rc.d ours=
    for p in "$@"; do dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "this needs the Debian packages ${missing[*]}; there is no apt-get here"
    is_root || die "this needs the Debian packages ${missing[*]}: run 'apt-get install ${missing[*]}' as root, then again"
    say "installing ${missing[*]}"
    if [ ! -e "$policy" ]; then printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"; ours=1; fi
    local log status=0; log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    apt_get_install "$log" "${missing[@]}" || { apt-get -o DPkg::Lock::Timeout=300 update >>"$log" 2>&1; apt_get_install "$log" "${missing[@]}"; } || status=$?
    if [ -n "$ours" ]; then rm -f "$policy"; fi
    if [ "$status" != 0 ]; then tail -20 "$log" >&2; rm -f "$log"; die "could not install ${missing[*]}"; fi
    rm -f "$log"
}
apt_get_install() { local log=$1; shift; apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >>"$log" 2>&1; }

# Finds cargo and a C compiler (two of the libraries bring C code).
need_rust() {
    command -v cargo >/dev/null || { [ ! -x "$HOME/.cargo/bin/cargo" ] || export PATH="$HOME/.cargo/bin:$PATH"; }
    command -v cargo >/dev/null || die "Rust is not installed: see https://rustup.rs, then run this again"
    command -v cc >/dev/null || apt_install gcc libc6-dev make
}
