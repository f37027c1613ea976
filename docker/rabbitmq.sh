#!/usr/bin/env bash
# A private RabbitMQ node with streams on free loopback ports, for the demo and the tests: no service, no Docker.
#
#   rabbitmq.sh install        gets RabbitMQ 3.13 or newer: the distribution's when it is new enough, else that of Debian 13
#                              in a root of its own (debootstrap, about two minutes, kept for the next time). Needs root.
#   rabbitmq.sh start DIR      creates the node under DIR when it is new, starts it
#   rabbitmq.sh stop DIR       ends it in an orderly way
#   rabbitmq.sh kill9 DIR      kill -9 of the node
#   rabbitmq.sh restart DIR    stop, start; data and ports stay
#   rabbitmq.sh destroy DIR    stops it and removes everything it wrote
#   rabbitmq.sh url DIR        prints rabbitmq-stream://guest:guest@127.0.0.1:PORT
#   rabbitmq.sh ctl DIR ARGS   rabbitmqctl
#   rabbitmq.sh pid DIR | version
#
# DIR/env holds AMQP_PORT, STREAM_PORT, MANAGEMENT_PORT, DIST_PORT, EPMD_PORT and can be sourced. Several nodes run side by
# side, each under its own DIR with its own epmd. Environment: RABBITMQ_ROOT places the Debian 13 root (default
# ${XDG_CACHE_HOME:-$HOME/.cache}/tillstream/debian13), RABBITMQ_FRAME_MAX sets stream.frame_max of a new node in bytes.
#
# Nothing is ever mounted for others to see: a node in the Debian 13 root runs in a mount namespace of its own, where DIR
# is /mnt. The mounts end with its last process, however it ends, so no clean-up can reach through one.
set -euo pipefail
# shellcheck source=docker/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

ROOT=${RABBITMQ_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/tillstream/debian13}
WANTED=3.13

new_enough() { [ "$(printf '%s\n%s\n' "$WANTED" "$1" | sort -V | head -1)" = "$WANTED" ]; }
# The real scripts: the ones on PATH change the user and drop the environment.
sbin_in() { local d; for d in "$1"/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin; do [ -x "$d/rabbitmq-server" ] && { echo "$d"; return 0; }; done; return 1; }
version_of() { basename "$(dirname "$1")" | sed 's/^rabbitmq_server-//'; }

# Sets SBIN (as the node sees it), VERSION and ISOLATED (1 when it lives in the Debian 13 root).
locate() {
    local d
    if d=$(sbin_in "") && new_enough "$(version_of "$d")"; then SBIN=$d VERSION=$(version_of "$d") ISOLATED=; return 0; fi
    if d=$(sbin_in "$ROOT"); then SBIN=${d#"$ROOT"} VERSION=$(version_of "$d") ISOLATED=1; return 0; fi
    return 1
}

install() {
    locate && return 0
    local none="RabbitMQ $WANTED or newer is not to be had here"
    is_root || die "$none without root: run '$0 install' as root once, or use --journal local"
    command -v apt-get >/dev/null || die "$none (no apt-get): use --journal local"
    local candidate
    candidate=$(apt-cache policy rabbitmq-server 2>/dev/null | sed -n 's/^ *Candidate: *//p')
    [ -n "$candidate" ] || { apt-get update >/dev/null 2>&1 || true; candidate=$(apt-cache policy rabbitmq-server | sed -n 's/^ *Candidate: *//p'); }
    if [ -n "$candidate" ] && [ "$candidate" != "(none)" ] && new_enough "${candidate#*:}"; then apt_install rabbitmq-server; locate && return 0; fi
    unshare --mount true 2>/dev/null || die "$none: the distribution has ${candidate:-none} and this machine forbids mount namespaces; use --journal local"
    apt_install debootstrap util-linux
    # The mirror that this host's apt already uses; not every host has both kinds of list.
    local mirror
    mirror=$( (sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources; sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\(http[^ ]*\).*/\2/p' /etc/apt/sources.list; true) 2>/dev/null | head -1)
    say "making a Debian 13 root with RabbitMQ in $ROOT (about two minutes, once)"
    mkdir -p "$(dirname "$ROOT")"
    (
        flock 9
        locate && exit 0
        # Inside a namespace, since debootstrap mounts /proc in its target.
        unshare --mount --propagation private bash -c '
            rm -rf --one-file-system "$1.part" && debootstrap --variant=minbase --include=rabbitmq-server trixie "$1.part" $2' - "$ROOT" "$mirror" >"$ROOT.log" 2>&1 ||
            { tail -5 "$ROOT.log" >&2; die "debootstrap failed (all of it in $ROOT.log); use --journal local"; }
        mv "$ROOT.part" "$ROOT"
    ) 9>"$ROOT.lock"
    locate || die "the Debian 13 root in $ROOT has no RabbitMQ"
}

# Runs a script of DIR where the node lives; `exec` all the way, so that the pid stays.
enter() {
    if [ -z "$ISOLATED" ]; then exec bash "$DIR/$1"; fi
    exec unshare --mount --propagation private bash -c '
        for m in proc sys dev; do mount --rbind "/$m" "$1/$m"; done
        mount --bind "$2" "$1/mnt"
        exec chroot "$1" /bin/bash "/mnt/$3"' - "$ROOT" "$DIR" "$1"
}

init() {
    mkdir -p "$DIR"/{home,mnesia,log,generated}
    { for name in AMQP STREAM MANAGEMENT DIST EPMD; do echo "${name}_PORT=$(free_port)"; done; } >"$DIR/env"
    # shellcheck disable=SC1091
    . "$DIR/env"
    local at=$DIR; [ -z "$ISOLATED" ] || at=/mnt
    head -c 18 /dev/urandom | base64 | tr -d '/+=' >"$DIR/home/.erlang.cookie"; chmod 400 "$DIR/home/.erlang.cookie"
    echo '[rabbitmq_management,rabbitmq_stream,rabbitmq_stream_management].' >"$DIR/plugins"
    : >"$DIR/none"
    cat >"$DIR/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$AMQP_PORT
stream.listeners.tcp.1 = 127.0.0.1:$STREAM_PORT
stream.advertised_host = 127.0.0.1
stream.advertised_port = $STREAM_PORT
stream.frame_max = ${RABBITMQ_FRAME_MAX:-1048576}
management.tcp.ip = 127.0.0.1
management.tcp.port = $MANAGEMENT_PORT
disk_free_limit.absolute = 200MB
CONF
    # ALLOW_INPUT makes the script become the VM instead of keeping it as a child: a kill -9 must hit the broker itself.
    cat >"$DIR/settings" <<SETTINGS
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
export HOME=$at/home HOSTNAME=localhost ERL_EPMD_PORT=$EPMD_PORT ERL_EPMD_ADDRESS=127.0.0.1
export RABBITMQ_NODENAME=tillstream-$STREAM_PORT@localhost RABBITMQ_DIST_PORT=$DIST_PORT RABBITMQ_NODE_PORT=$AMQP_PORT
export RABBITMQ_MNESIA_BASE=$at/mnesia RABBITMQ_LOG_BASE=$at/log RABBITMQ_GENERATED_CONFIG_DIR=$at/generated
export RABBITMQ_CONFIG_FILE=$at/rabbitmq.conf RABBITMQ_ENABLED_PLUGINS_FILE=$at/plugins RABBITMQ_CONF_ENV_FILE=$at/none
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"
export RABBITMQ_ALLOW_INPUT=1 RABBITMQ_SERVER_START_ARGS=-noinput
export RABBITMQ_CTL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}"
cd $at
SETTINGS
    { cat "$DIR/settings"; echo "exec $SBIN/rabbitmq-server"; } >"$DIR/run"
    { cat "$DIR/settings"; echo "epmd -port $EPMD_PORT -kill"; } >"$DIR/end"
    touch "$DIR/made"
}

pid() { [ -s "$DIR/pid" ] && cat "$DIR/pid"; }
running() { local p; p=$(pid) && alive "$p"; }
up() { port_open "$STREAM_PORT" && port_open "$MANAGEMENT_PORT"; }
ready_or_dead() { up || ! running; }

start() {
    locate || install
    [ -e "$DIR/made" ] || init
    # shellcheck disable=SC1091
    . "$DIR/env"
    if running; then return; fi
    (cd /; setsid bash -c "$(declare -f enter); ISOLATED=$ISOLATED ROOT='$ROOT' DIR='$DIR'; echo \$\$ >'$DIR/pid'; enter run" </dev/null >>"$DIR/log/out" 2>&1 &)
    wait_until 10 test -s "$DIR/pid"
    # Usually ten seconds; with gigabytes of streams on a busy machine more than thirty.
    wait_until 120 ready_or_dead || die "RabbitMQ does not answer; see $DIR/log"
    running || { tail -20 "$DIR/log/out" >&2; die "RabbitMQ ended during its start; see $DIR/log"; }
}

# A killed process of many threads holds its ports for a moment after it is gone from the table.
gone() { ! running && ! port_open "$STREAM_PORT" && ! port_open "$DIST_PORT"; }
stop() {
    [ -e "$DIR/env" ] || return 0
    # shellcheck disable=SC1091
    . "$DIR/env"
    local p
    if p=$(pid) && alive "$p"; then
        kill -TERM "$p"
        wait_until 60 gone || kill -KILL "$p"
    fi
    rm -f "$DIR/pid"
    # Our own epmd outlives its node; only this node was ever registered there.
    [ ! -e "$DIR/end" ] || { locate && (cd / && enter end) >/dev/null 2>&1 || true; }
}

command=${1:-}
case "$command" in
    install) install; exit 0 ;;
    version) locate || die "RabbitMQ $WANTED or newer is not installed: run '$0 install' as root"; echo "$VERSION"; exit 0 ;;
    start | stop | kill9 | restart | destroy | url | ctl | pid) ;;
    *) sed -n '2,22s/^# \{0,1\}//p' "$0"; [ "$command" = --help ] || [ "$command" = -h ]; exit ;;
esac
[ -n "${2:-}" ] || die "$command needs a directory; see --help"
DIR=$(readlink -m "$2"); shift 2
case "$command" in
    start) start ;;
    stop) stop ;;
    kill9)
        # shellcheck disable=SC1091
        . "$DIR/env"
        p=$(pid) && kill -KILL "$p"
        wait_until 10 gone; rm -f "$DIR/pid" ;;
    restart) stop; start ;;
    destroy)
        stop
        for name in home mnesia log generated env plugins none rabbitmq.conf settings run end made ctl pid erl_crash.dump; do rm -rf --one-file-system "${DIR:?}/$name"; done
        rmdir "$DIR" 2>/dev/null || true ;;
    url) # shellcheck disable=SC1091
        . "$DIR/env"; echo "rabbitmq-stream://guest:guest@127.0.0.1:$STREAM_PORT" ;;
    pid) pid ;;
    ctl)
        locate || die "RabbitMQ is not installed"
        { cat "$DIR/settings"; printf 'exec %s/rabbitmqctl -n "$RABBITMQ_NODENAME"' "$SBIN"; printf ' %q' "$@"; echo; } >"$DIR/ctl"
        cd / && enter ctl ;;
esac
