#!/usr/bin/env bash
# Shows Tillstream at work: a restaurant chain sells, its changes flow from PostgreSQL through RabbitMQ into an inventory database
# and an engagement API, every process is killed with -9 at least twice on the way, and at the end both ends are compared.
#
#   docker/demo.sh [--seconds N] [--rate R] [--journal rabbitmq|local] [--calm] [--keep]
#
#   --seconds N   how long to sell (default 60)
#   --rate R      row changes a second, on average over a day with a lunch peak (default 800)
#   --journal J   rabbitmq, or local for a machine where RabbitMQ 3.13 or newer cannot be had (default rabbitmq)
#   --calm        kill nothing; the engagement API answers neither 429 nor 500
#   --keep        leave everything running at the end, with its addresses printed; the next run clears it away
#
# Installs what is missing (PostgreSQL, RabbitMQ, see docker/*.sh), builds, and keeps everything below target/demo/. Messages go to
# stderr; the last line of stdout is one JSON object. Exit code 0 says: nothing lost, nothing doubled, nothing out of order.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

seconds=60 rate=800 journal=rabbitmq calm='' keep=''
while [ $# -gt 0 ]; do
    case "$1" in
        --seconds) seconds=${2:-}; shift ;;
        --rate) rate=${2:-}; shift ;;
        --journal) journal=${2:-}; shift ;;
        --calm) calm=1 ;;
        --keep) keep=1 ;;
        -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit ;;
        *) die "unknown option $1; see --help" ;;
    esac
    shift || die "the last option needs a value; see --help"
done
case "$seconds$rate" in *[!0-9]* | '') die "--seconds and --rate are whole numbers" ;; esac
case "$journal" in rabbitmq | local) ;; *) die "--journal is rabbitmq or local" ;; esac

demo=$PWD/${CARGO_TARGET_DIR:-target}/demo
logs=$demo/logs
program=$PWD/${CARGO_TARGET_DIR:-target}/release/tillstream

# --- Processes. Each has a pid file, so that a kept demo can be cleared by the next run.

start() { # NAME COMMAND...
    local name=$1; shift
    "$@" >>"$logs/$name.out" 2>>"$logs/$name.err" </dev/null 9>&- &
    echo $! >"$demo/$name.pid"
    disown
}
pid_of() { cat "$demo/$1.pid" 2>/dev/null; }
process_gone() { ! alive "$(pid_of "$1")"; }
# SIGTERM, then patience, then -9.
stop() { # NAME
    local p; p=$(pid_of "$1") || return 0
    alive "$p" && kill -TERM "$p" 2>/dev/null
    wait_until 15 process_gone "$1" || kill -KILL "$p" 2>/dev/null || true
    rm -f "$demo/$1.pid"
}

clear_away() {
    local name
    for name in progress traffic capture delivery target; do stop "$name"; done
    if [ -e "$demo/postgres/port" ]; then
        # The slot goes before the server does: nothing may be left that keeps WAL.
        docker/postgres.sh psql "$demo/postgres" -d pos -c "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active" >/dev/null 2>&1 || true
        docker/postgres.sh destroy "$demo/postgres" || true
    fi
    [ ! -e "$demo/rabbitmq/env" ] || docker/rabbitmq.sh destroy "$demo/rabbitmq" || true
    rm -rf --one-file-system "$demo/journal" "$demo"/*.yaml "$demo/applied.log"
}

finished=''
at_exit() {
    local status=$?
    trap - EXIT INT TERM
    if [ -n "$finished" ] && [ -n "$keep" ]; then exit "$status"; fi
    stop progress
    if [ -z "$finished" ] && [ "$status" != 130 ]; then
        for name in capture delivery target traffic; do
            [ ! -s "$logs/$name.err" ] || { say "--- the end of $logs/$name.err"; tail -5 "$logs/$name.err" >&2; }
        done
    fi
    clear_away
    exit "$status"
}

# --- What is needed.

need_rust
docker/postgres.sh install
[ "$journal" = local ] || docker/rabbitmq.sh install
say "building"
# With the features that the tests build with, so that neither builds what the other has built.
cargo build --release --locked --workspace --bin tillstream

mkdir -p "$demo"
exec 9>"$demo/lock"
flock -n 9 || die "another demo runs in $demo"
clear_away
rm -rf --one-file-system "$logs"; mkdir -p "$logs"
trap at_exit EXIT
trap 'exit 130' INT TERM

say "starting servers below $demo"
docker/postgres.sh start "$demo/postgres" 9>&-
[ "$journal" = local ] || docker/rabbitmq.sh start "$demo/rabbitmq" 9>&-
psql() { docker/postgres.sh psql "$demo/postgres" "$@"; }
psql -c 'CREATE DATABASE pos' -c 'CREATE DATABASE inventory' -c "CREATE ROLE inventory LOGIN" >/dev/null
psql -d pos -f schemas/pos/schema.sql -f schemas/pos/seed.sql -f schemas/pos/history.sql >/dev/null
psql -d inventory -f schemas/pos/inventory.sql >/dev/null

pos=$(docker/postgres.sh url "$demo/postgres" pos)
address=${pos#*@}
inventory=$(docker/postgres.sh url "$demo/postgres" inventory)
capture_admin=127.0.0.1:$(free_port)
delivery_admin=127.0.0.1:$(free_port)
target_address=127.0.0.1:$(free_port)
export DEMO_SOURCE_URL="postgres://tillstream@$address" DEMO_BACKFILL_URL="postgres://tillstream_backfill@$address"
export DEMO_INVENTORY_URL=$inventory DEMO_ENGAGEMENT_URL="http://$target_address/v1/events"
if [ "$journal" = rabbitmq ]; then
    DEMO_RABBITMQ_URL=$(docker/rabbitmq.sh url "$demo/rabbitmq"); export DEMO_RABBITMQ_URL
    cp docker/demo/*.yaml "$demo/"
else
    cp docker/demo/*.yaml "$demo/"
    sed -i '/^  rabbitmq:/,/^connectors:/{/^connectors:/!d}; s/^journal:/journal:\n  local: {dir: journal}/' "$demo/tillstream.yaml"
fi
config=(--config "$demo/tillstream.yaml")

say ""
say "what the point of sale's owner is asked to run (tillstream setup --dry-run):"
"$program" setup "${config[@]}" --admin-url "$pos" --dry-run >&2
"$program" setup "${config[@]}" --admin-url "$pos" --apply >&2

# --- Everything runs.

start_target() { start target "$program" demo target --listen "$target_address" --log "$demo/applied.log" ${calm:+--calm}; }
start_capture() { start capture "$program" run "${config[@]}" --only capture --listen "$capture_admin"; }
start_delivery() { start delivery "$program" run "${config[@]}" --only delivery --listen "$delivery_admin"; }
target_up() { port_open "${target_address##*:}"; }
must_live() { # NAME: a process of ours that ended by itself is a failure
    process_gone "$1" || return 0
    die "$1 ended by itself; see $logs/$1.err"
}

start_target
wait_until 10 target_up || die "the engagement API does not answer"
start_capture
start_delivery
start progress "$program" demo progress --capture "http://$capture_admin" --delivery "http://$delivery_admin" --every 3
# Progress is for the eyes of whoever watches.
tail -n +1 -f "$logs/progress.err" --pid="$(pid_of progress)" >&2 9>&- &
disown
say ""
say "selling for $seconds s at $rate changes a second; capture at http://$capture_admin, delivery at http://$delivery_admin"
start traffic "$program" demo traffic --url "$pos" --rate "$rate" --seconds "$seconds" --plant-refused

kills=0
strike() { # VICTIM
    say "       kill -9 $1"
    case "$1" in
        capture | delivery | target)
            must_live "$1"
            kill -KILL "$(pid_of "$1")"
            wait_until 10 process_gone "$1"
            "start_$1" ;;
        rabbitmq) docker/rabbitmq.sh kill9 "$demo/rabbitmq"; docker/rabbitmq.sh start "$demo/rabbitmq" 9>&- ;;
        postgres) docker/postgres.sh kill9 "$demo/postgres"; docker/postgres.sh start "$demo/postgres" 9>&- ;;
    esac
    kills=$((kills + 1))
}

began=$SECONDS
if [ -z "$calm" ]; then
    round=(capture delivery rabbitmq postgres target)
    [ "$journal" = rabbitmq ] || round=(capture delivery postgres target)
    victims=("${round[@]}" "${round[@]}")
    # Spread over the middle of the day, so that there is traffic before the first and after the last.
    for i in "${!victims[@]}"; do
        due=$((began + seconds * (i + 1) / (${#victims[@]} + 1)))
        while [ "$SECONDS" -lt "$due" ]; do sleep 0.2; must_live capture; must_live delivery; done
        strike "${victims[$i]}"
    done
fi
while ! process_gone traffic; do sleep 0.2; must_live capture; must_live delivery; done
rm -f "$demo/traffic.pid"
traffic=$(tail -1 "$logs/traffic.out")
case "$traffic" in '{'*) ;; *) die "the traffic ended early; see $logs/traffic.err" ;; esac
say "sold: $traffic"

# --- The refused event: shown, mended at the target, redriven.

letters() { "$program" dead-letters list "${config[@]}" --connector engagement --format json 2>>"$logs/dead-letters.err"; }
has_letter() { letter=$(letters | sed -n 's/.*"example": *"\([^"]*\)".*/\1/p' | head -1); [ -n "$letter" ]; }
redriven=0
wait_until 60 has_letter || die "the refused event did not become a dead letter"
say ""
say "one event was refused for good:"
"$program" dead-letters show "${config[@]}" --connector engagement --id "$letter" >&2
"$program" demo accept --target "http://$target_address"
"$program" dead-letters redrive "${config[@]}" --connector engagement --id "$letter" >&2
redriven=1

# --- Until everything is delivered, then the comparison.

say ""
say "stopping (SIGTERM), then draining what is left (tillstream run --until-caught-up)"
stop_began=$SECONDS
stop capture; stop delivery
[ $((SECONDS - stop_began)) -le 20 ] || die "SIGTERM took longer than 10 s a process"
"$program" run "${config[@]}" --until-caught-up --listen "$capture_admin" >>"$logs/drain.out" 2>>"$logs/drain.err" || die "the drain failed; see $logs/drain.err"
stop progress

status=0
"$program" demo verify "${config[@]}" --source "$pos" --inventory "$inventory" --engagement "$demo/applied.log" \
    --note "{\"kills\": $kills, \"dead_letters_redriven\": $redriven, \"seconds\": $seconds}" >"$logs/verify.out" || status=$?
[ -s "$logs/verify.out" ] || die "the comparison failed"
if [ -n "$keep" ]; then
    start_capture; start_delivery
    say ""
    say "left running: point of sale $pos, inventory $inventory"
    [ "$journal" = local ] || say "  RabbitMQ $DEMO_RABBITMQ_URL"
    say "  engagement API http://$target_address/stats, capture http://$capture_admin/api/status, delivery http://$delivery_admin/api/status"
    say "  configuration $demo/tillstream.yaml, with DEMO_SOURCE_URL=$DEMO_SOURCE_URL and so on in the environment"
else
    clear_away
fi
finished=1
cat "$logs/verify.out"
exit "$status"
