#!/usr/bin/env bash
# Runs every test of Tillstream against real servers. Needs nothing but Debian, root (or the servers installed) and Rust.
#
#   tests/run.sh          what CI runs: format, lints, unit tests, integration tests
#   tests/run.sh quick    the same without lints and long kill series: under two minutes after the build
#   tests/run.sh long     before a release: 10,000 seeds of the model, the whole kill matrix, big drains, the demo on both journals
#
# Installs what is missing: PostgreSQL and RabbitMQ (docker/postgres.sh, docker/rabbitmq.sh). Servers run privately on free ports
# below target/tests/ and are gone afterwards; logs of a failed run stay in target/tests/scratch/.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

level=${1:-full}
case "$level" in
    quick | full | long) ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; [ "$level" = --help ] || [ "$level" = -h ]; exit ;;
esac
export TILLSTREAM_TESTS=$level
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

need_rust
docker/postgres.sh install
docker/rabbitmq.sh install

target=${CARGO_TARGET_DIR:-target}
rm -rf --one-file-system "$target/tests/scratch"
clean_up() {
    docker/rabbitmq.sh destroy "$target/tests/rabbitmq" >/dev/null 2>&1 || true
    docker/postgres.sh destroy "$target/tests/postgres" >/dev/null 2>&1 || true
    # Servers of tests that were cut short.
    for dir in "$target"/tests/scratch/*/rabbitmq; do [ ! -e "$dir/env" ] || docker/rabbitmq.sh destroy "$dir" >/dev/null 2>&1 || true; done
    for dir in "$target"/tests/scratch/*/postgres; do [ ! -e "$dir/port" ] || docker/postgres.sh destroy "$dir" >/dev/null 2>&1 || true; done
}
trap clean_up EXIT
trap 'exit 130' INT TERM

step() { say ""; say "== $* (${SECONDS} s)"; "$@"; }

step cargo fmt --all --check
step cargo build --release --locked --workspace --all-targets
built=$SECONDS
[ "$level" = quick ] || step cargo clippy --release --locked --workspace --all-targets -- -D warnings
for script in docker/*.sh tests/*.sh .ci/run; do bash -n "$script"; done
step cargo test --release --locked --workspace --lib --bins
step cargo test --release --locked --workspace --test it
if [ "$level" = long ]; then
    step docker/demo.sh --seconds 180
    step docker/demo.sh --seconds 120 --journal local
fi
say ""
say "all of it passed: ${SECONDS} s, of which $built s built"
