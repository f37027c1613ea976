#!/usr/bin/env bash
# A private MariaDB server on a free loopback port, for the tests of the `sql` sink: no password, no service.
#
#   mariadb.sh install      installs MariaDB from the distribution when there is none (needs root)
#   mariadb.sh start DIR    creates the server under DIR when it is new, starts it
#   mariadb.sh stop DIR     ends it in an orderly way
#   mariadb.sh kill9 DIR    kill -9
#   mariadb.sh destroy DIR  stops it and removes everything it wrote
#   mariadb.sh url DIR [DATABASE]  prints mysql://root@127.0.0.1:PORT/DATABASE
#   mariadb.sh sql DIR ARGS...     the client as superuser
#
# DIR/port holds the port. Where DIR/tls holds ca.pem, cert.pem and key.pem before the first start, the server offers TLS.
set -euo pipefail
# shellcheck source=docker/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

server() {
    local p
    for p in /usr/sbin/mariadbd "$(command -v mariadbd || true)"; do [ ! -x "$p" ] || { echo "$p"; return; }; done
    die "MariaDB is not installed: run '$0 install' as root"
}
pid() { [ -s "$DIR/pid" ] && cat "$DIR/pid"; }
running() { local p; p=$(pid) && alive "$p"; }
port() { cat "$DIR/port"; }
gone() { ! running; }

start() {
    local bin; bin=$(server)
    mkdir -p "$DIR"
    if running; then return; fi
    if [ ! -e "$DIR/port" ]; then
        free_port >"$DIR/port"
        local user=(); if is_root; then user=(--user=root); fi
        mariadb-install-db --no-defaults "${user[@]}" --datadir="$DIR/data" --auth-root-authentication-method=normal --skip-test-db \
            --innodb-log-file-size=64M >"$DIR/install.log" 2>&1 || { cat "$DIR/install.log" >&2; die "mariadb-install-db failed"; }
    fi
    local options=(--no-defaults --datadir="$DIR/data" --port="$(port)" --bind-address=127.0.0.1 --socket="$DIR/socket" --pid-file="$DIR/pid"
        --log-error="$DIR/server.log" --innodb-buffer-pool-size=128M --innodb-log-file-size=64M --max-connections=100 --innodb-lock-wait-timeout=5)
    if is_root; then options+=(--user=root); fi
    if [ -e "$DIR/tls/cert.pem" ]; then options+=(--ssl-ca="$DIR/tls/ca.pem" --ssl-cert="$DIR/tls/cert.pem" --ssl-key="$DIR/tls/key.pem"); fi
    # The path of a socket is at most 107 bytes long.
    cd "$DIR"
    [ ${#DIR} -lt 90 ] || options+=(--socket=/tmp/tillstream-mariadb-"$(port)".socket)
    setsid "$bin" "${options[@]}" </dev/null >/dev/null 2>&1 &
    answers() { port_open "$(port)"; }
    wait_until 60 answers || { tail -20 "$DIR/server.log" >&2; die "MariaDB does not start"; }
}

stop() {
    local p; p=$(pid) && alive "$p" || return 0
    kill -TERM "$p"
    wait_until 60 gone || die "process $p does not end"
}

kill9() {
    local p; p=$(pid) && alive "$p" || return 0
    kill -KILL "$p"
    wait_until 30 gone || die "process $p does not die"
}

command=${1:-}
case "$command" in
    install)
        [ -x /usr/sbin/mariadbd ] || command -v mariadbd >/dev/null || apt_install mariadb-server
        exit 0 ;;
    start | stop | kill9 | destroy | url | sql) ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0"; [ "$command" = --help ] || [ "$command" = -h ]; exit ;;
esac
[ -n "${2:-}" ] || die "$command needs a directory; see --help"
DIR=$(readlink -m "$2"); shift 2
case "$command" in
    start) start ;;
    stop) stop ;;
    kill9) kill9 ;;
    destroy)
        kill9 || true
        rm -rf --one-file-system "$DIR/data" "$DIR/port" "$DIR/pid" "$DIR/socket" "$DIR/install.log" "$DIR/server.log" "$DIR/tls"
        rmdir "$DIR" 2>/dev/null || true ;;
    url) echo "mysql://root@127.0.0.1:$(port)/${1:-mysql}" ;;
    sql) exec mariadb --no-defaults --protocol=tcp -h 127.0.0.1 -P "$(port)" -u root "$@" ;;
esac
