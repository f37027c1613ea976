#!/usr/bin/env bash
# Runs every test of Tillstream against real servers. Needs nothing but Debian, root (or the servers installed) and Rust.
#
#   tests/run.sh          what CI runs: format, lints, unit tests, integration tests, the capture suite on PostgreSQL 18 as well
#   tests/run.sh quick    without lints, with the shortest series, without the tests that wait for somebody's patience
#   tests/run.sh long     before a release: 10,000 seeds of the model, the whole kill matrix, big drains, both demos
#   tests/run.sh matrix [MAJOR...]  the capture suite on PostgreSQL 14 15 16 17 18, and its table of failures
#
# Installs what is missing: PostgreSQL, RabbitMQ, MariaDB and Prometheus (docker/postgres.sh and its neighbours). Servers run privately on free ports
# below target/tests/ and are gone afterwards; logs of a failed run stay in target/tests/scratch/.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

level=${1:-full}
case "$level" in
    quick | full | long | matrix) ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; [ "$level" = --help ] || [ "$level" = -h ]; exit ;;
esac
export TILLSTREAM_TESTS=$level
[ "$level" != matrix ] || export TILLSTREAM_TESTS=full TILLSTREAM_MATRIX_SLOW=1
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

need_rust
docker/postgres.sh install
docker/rabbitmq.sh install
docker/mariadb.sh install
docker/prometheus.sh install
command -v pgbouncer >/dev/null || apt_install pgbouncer
# The planner's word on an index that is not made; where it is not to be had, the test does without.
(apt_install "postgresql-$(basename "$(dirname "$(docker/postgres.sh bin)")")-hypopg" >/dev/null 2>&1) || true
if [ "$level" = long ]; then
    # A browser for the console, and what finds in its pages what some people cannot use.
    command -v chromedriver >/dev/null || apt_install chromium chromium-driver fonts-dejavu-core
    command -v npm >/dev/null || apt_install npm
    command -v python3 >/dev/null && python3 -m venv --help >/dev/null || apt_install python3-venv
fi

target=${CARGO_TARGET_DIR:-target}
rm -rf --one-file-system "$target/tests/scratch"
if [ "$level" = long ] && [ ! -e "$target/tests/axe/package/axe.min.js" ]; then
    mkdir -p "$target/tests/axe"
    (cd "$target/tests/axe" && npm pack --silent axe-core@4 >/dev/null && tar xzf axe-core-4*.tgz package/axe.min.js)
fi
clean_up() {
    docker/rabbitmq.sh destroy "$target/tests/rabbitmq" >/dev/null 2>&1 || true
    for dir in "$target"/tests/postgres "$target"/tests/postgres-??; do [ ! -e "$dir/port" ] || docker/postgres.sh destroy "$dir" >/dev/null 2>&1 || true; done
    docker/mariadb.sh destroy "$target/tests/mariadb" >/dev/null 2>&1 || true
    # Servers of tests that were cut short.
    for dir in "$target"/tests/scratch/prometheus-*; do [ ! -e "$dir/port" ] || docker/prometheus.sh destroy "$dir" >/dev/null 2>&1 || true; done
    for dir in "$target"/tests/scratch/*/rabbitmq; do [ ! -e "$dir/env" ] || docker/rabbitmq.sh destroy "$dir" >/dev/null 2>&1 || true; done
    for dir in "$target"/tests/scratch/*/postgres; do [ ! -e "$dir/port" ] || docker/postgres.sh destroy "$dir" >/dev/null 2>&1 || true; done
    for dir in "$target"/tests/scratch/*/mariadb; do [ ! -e "$dir/port" ] || docker/mariadb.sh destroy "$dir" >/dev/null 2>&1 || true; done
}
trap clean_up EXIT
trap 'exit 130' INT TERM

step() { say ""; say "== $* (${SECONDS} s)"; "$@"; }

# The tests that the table of failures names, on other versions of PostgreSQL. Each version leaves its output as
# target/tests/matrix/MAJOR.log, from which the table is printed.
its() { cargo test --release --locked --workspace --test it -- "$@"; }
logs=$target/tests/matrix
matrix_on() {
    local names
    docker/postgres.sh install "$1"
    export POSTGRES_MAJOR=$1
    names=$(its --exact matrix::names --ignored --nocapture | sed -n 's/^matrix-test //p')
    # shellcheck disable=SC2086 # One name a word.
    its --exact $names | tee "$logs/$1.log"
    docker/postgres.sh destroy "$target/tests/postgres-$1" >/dev/null 2>&1 || true
    unset POSTGRES_MAJOR
}
matrix_table() { TILLSTREAM_MATRIX=$(readlink -f "$logs") its --exact matrix::the_table --ignored --nocapture; }
rm -rf "$logs"
mkdir -p "$logs"

if [ "$level" = matrix ]; then
    shift
    [ $# -gt 0 ] || set -- 14 15 16 17 18
    step cargo build --release --locked --workspace
    # A version with failures must not keep the others from being seen: the table fails for them.
    for major in "$@"; do step matrix_on "$major" || true; done
    step matrix_table
    say ""
    say "the matrix passed: ${SECONDS} s"
    exit
fi

step cargo fmt --all --check
step cargo build --release --locked --workspace --all-targets
built=$SECONDS
[ "$level" = quick ] || step cargo clippy --release --locked --workspace --all-targets -- -D warnings
for script in docker/*.sh tests/*.sh .ci/run; do bash -n "$script"; done
step cargo test --release --locked --workspace --lib --bins
installed=$(basename "$(dirname "$(docker/postgres.sh bin)")")
# What takes most of its time waiting (for a server's timeouts, for kills, for processes to be taken over, for a file on trial, for servers of its own
# to start) is no part of a quick run.
patient=(slot::stall slot::idle slot::refill slot::readers slot::spill faults::kills faults::absent contract::broker contract::cut_connections contract::tls
    contract::what_can_not_work contract::a_deleted_stream contract::a_stream_that_ends
    e2e::shutdown delivery::schema_change delivery::bottleneck delivery::capacity telemetry::limits telemetry::the_rules doctor::queries console::a_whole
    backfill::long backfill::speed backfill::commands::an_id backfill::commands::backfills_that backfill::commands::a_peak
    delivery::apply::a_mapping_that_fails delivery::stock::four_partitions
    slot::history::a_slot_that_was_idle slot::history::a_server_restored slot::history::what_holds slot::promotion::a_promotion_without
    setup::a_slot_waits)
integration() {
    local skips=() all name
    if [ "$level" = quick ]; then
        # Its tests wait more than they work.
        skips+=(--test-threads "$(($(nproc) * 2))")
        all=$(its --list)
        for name in "${patient[@]}"; do
            grep -q "^$name" <<<"$all" || die "no test is called $name any more"
            skips+=(--skip "$name")
        done
    fi
    its "${skips[@]}" | tee "$logs/$installed.log"
}
step integration
if [ "$level" != quick ]; then
    command -v valgrind >/dev/null || apt_install valgrind
    step tests/instructions.sh
    [ "$installed" = 18 ] || step matrix_on 18
    step matrix_table
fi
# What the API takes, guessed from its own document: no answer may be a fault of ours.
fuzz_api() {
    local tools=$target/tests/tools
    [ -x "$tools/bin/schemathesis" ] || { python3 -m venv "$tools" && "$tools/bin/pip" install --quiet schemathesis; }
    TILLSTREAM_SCHEMATHESIS=$(readlink -f "$tools/bin/schemathesis") its --exact console::fuzz::no_request_is_answered_by_a_fault_of_ours --ignored --nocapture
}
if [ "$level" = long ]; then
    step fuzz_api
    step docker/demo.sh --seconds 180
    step docker/demo.sh --seconds 120 --journal local
fi
say ""
say "all of it passed: ${SECONDS} s, of which $built s built"
