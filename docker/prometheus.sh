#!/usr/bin/env bash
# A private Prometheus on a free loopback port, with Tillstream's alerts: for tests and for trying out.
#
#   prometheus.sh install                installs Prometheus and postgres_exporter from the distribution when they are missing (needs root)
#   prometheus.sh check                  promtool: the rules are sound, and each fires where it should and nowhere else
#   prometheus.sh start DIR ADDRESS...   scrapes the admin endpoints at these addresses (host:port) every second
#   prometheus.sh stop DIR               ends it in an orderly way
#   prometheus.sh destroy DIR            stops it and removes everything it wrote
#   prometheus.sh url DIR                prints http://127.0.0.1:PORT
#   prometheus.sh exporter DIR URL       runs postgres_exporter on a free port, in the foreground; DIR/exporter holds its address
#
# Where DIR/alerts.yaml is there before the first start, it is taken instead of the repository's.
set -euo pipefail
HERE=$(dirname "$(readlink -f "$0")")
# shellcheck source=docker/lib.sh
. "$HERE/lib.sh"

pid() { [ -s "$DIR/pid" ] && cat "$DIR/pid"; }
running() { local p; p=$(pid) && alive "$p"; }
gone() { ! running; }
port() { cat "$DIR/port"; }
answers() { port_open "$(port)"; }
have() { command -v "$1" >/dev/null || die "$1 is not installed: run '$0 install' as root"; }

start() {
    have prometheus
    mkdir -p "$DIR"
    if running; then return; fi
    [ -e "$DIR/port" ] || free_port >"$DIR/port"
    [ -e "$DIR/alerts.yaml" ] || cp "$HERE/prometheus/alerts.yaml" "$DIR/alerts.yaml"
    local targets='' address
    for address in "$@"; do targets+="\"$address\", "; done
    cat >"$DIR/prometheus.yaml" <<YAML
global: {scrape_interval: 1s, evaluation_interval: 1s, scrape_timeout: 1s}
rule_files: [alerts.yaml]
scrape_configs:
  - job_name: tillstream
    static_configs: [{targets: [${targets%, }]}]
  - job_name: postgres
    file_sd_configs: [{files: [exporter.json], refresh_interval: 1s}]
YAML
    cd "$DIR"
    setsid prometheus --config.file=prometheus.yaml --storage.tsdb.path=data --web.listen-address="127.0.0.1:$(port)" --log.level=warn \
        </dev/null >log 2>&1 &
    echo $! >"$DIR/pid"
    wait_until 60 answers || { tail -20 "$DIR/log" >&2; die "Prometheus does not start"; }
}

stop() {
    local p; p=$(pid) && alive "$p" || return 0
    kill -TERM "$p"
    wait_until 30 gone || kill -KILL "$p"
}

case "${1:-}" in
    install)
        command -v prometheus >/dev/null && command -v promtool >/dev/null && command -v prometheus-postgres-exporter >/dev/null \
            || apt_install prometheus prometheus-postgres-exporter
        exit 0 ;;
    check)
        have promtool
        cd "$HERE/prometheus"
        promtool check config prometheus.yaml
        promtool test rules alerts_test.yaml
        exit 0 ;;
    start | stop | destroy | url | exporter) ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0"; [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; exit ;;
esac
command=$1
[ -n "${2:-}" ] || die "$command needs a directory; see --help"
DIR=$(readlink -m "$2"); shift 2
case "$command" in
    start) start "$@" ;;
    stop) stop ;;
    destroy)
        stop
        rm -rf --one-file-system "$DIR/data" "$DIR/port" "$DIR/pid" "$DIR/log" "$DIR/prometheus.yaml" "$DIR/alerts.yaml" "$DIR/exporter" "$DIR/exporter.json"
        rmdir "$DIR" 2>/dev/null || true ;;
    url) echo "http://127.0.0.1:$(port)" ;;
    exporter)
        have prometheus-postgres-exporter
        address=127.0.0.1:$(free_port)
        mkdir -p "$DIR"
        echo "$address" >"$DIR/exporter"
        echo "[{\"targets\": [\"$address\"]}]" >"$DIR/exporter.json"
        DATA_SOURCE_NAME=${1:?the URL of the database} exec prometheus-postgres-exporter --web.listen-address="$address" --log.level=error ;;
esac
