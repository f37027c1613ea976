#!/usr/bin/env bash
# Measures how fast a backlog drains from PostgreSQL into RabbitMQ, beside pg_recvlogical on the same slot contents.
#
#   tests/bench.sh           a million rows each: one transaction, and transactions of ten; three rounds in turn
#   tests/bench.sh backfill  two million rows backfilled beside COPY of the same table; live events and pgbench beside a backfill
#   tests/bench.sh delivery  200,000 events over HTTP and into PostgreSQL, five rounds each; into PostgreSQL beside COPY and an upsert of the same rows
#
# Prints rows a second, CPU time a row and memory of both. Only ratios within one run mean anything on a shared machine.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh
case "${1:-}" in '' | backfill | delivery) ;; *) sed -n '2,8s/^# \{0,1\}//p' "$0"; [ "$1" = --help ] || [ "$1" = -h ]; exit ;; esac

need_rust
docker/postgres.sh install
docker/rabbitmq.sh install
target=${CARGO_TARGET_DIR:-target}
trap 'docker/rabbitmq.sh destroy "$target/tests/rabbitmq" >/dev/null 2>&1 || true' EXIT
case "${1:-}" in backfill) tests=backfill::speed ;; delivery) tests=delivery::speed ;; *) tests=e2e::drain ;; esac
cargo build --release --locked --workspace --all-targets
TILLSTREAM_TESTS=long cargo test --release --locked --workspace --test it -- --nocapture --test-threads 1 "$tests"
