#!/usr/bin/env bash
# Counts the instructions of the hot paths and compares them with what is recorded; fails where one needs 3 % more.
#
#   tests/instructions.sh             compares with tests/bench/instructions.txt
#   tests/instructions.sh --record    writes it anew, after a change that is meant to cost what it costs
#
# Wants the tests to be built (cargo build --release --workspace --all-targets) and valgrind. A record holds for the compiler it names.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

target=${CARGO_TARGET_DIR:-target}
record=tests/bench/instructions.txt
out=$target/bench/instructions
mkdir -p "$out"
compiler=$(rustc --version | cut -d' ' -f2)

# Binary, test, and what it is called in the record.
paths=(
    "it bench::instructions::decode decode"
    "it bench::instructions::encode encode"
    "tillstream journal::rabbit::publish::tests::framing framing"
    "it bench::instructions::deliver deliver"
    "it bench::instructions::map map"
    "it bench::instructions::settle settle"
)
# The youngest binary of this name that has the test.
binary() {
    local file files list
    mapfile -t files < <(find "$target/release/deps" -maxdepth 1 -type f -executable -name "$1-*" -printf '%T@ %p\n' | sort -rn | cut -d' ' -f2)
    for file in "${files[@]}"; do
        list=$("$file" --list 2>/dev/null || true)
        if grep -q "^$2: test$" <<<"$list"; then printf '%s\n' "$file"; return; fi
    done
}
count() {
    local file
    file=$(binary "$1" "$2")
    [ -n "$file" ] || die "no test is called $2; build first: cargo build --release --workspace --all-targets"
    valgrind --tool=callgrind --collect-atstart=no '--toggle-collect=*::counted*' --callgrind-out-file="$out/$3.out" \
        "$file" --exact "$2" --test-threads 1 >"$out/$3.log" 2>&1 || die "$2 fails below callgrind: $out/$3.log"
    sed -n 's/^==[0-9]*== Collected : \([0-9]*\)$/\1/p' "$out/$3.log"
}

recorded=$(sed -n 's/^compiler //p' "$record" 2>/dev/null || true)
missed=0
lines=("# Instructions of tests/bench/instructions.rs and of the framing of frames, by callgrind; written by tests/instructions.sh --record." "compiler $compiler")
for path in "${paths[@]}"; do
    read -r file test name <<<"$path"
    now=$(count "$file" "$test" "$name")
    [ "${now:-0}" -gt 1000 ] || die "$test: nothing was counted; $out/$name.log"
    lines+=("$name $now")
    was=$(sed -n "s/^$name //p" "$record" 2>/dev/null || true)
    if [ -n "$was" ]; then
        percent=$(awk -v now="$now" -v was="$was" 'BEGIN { printf "%+.2f", (now / was - 1) * 100 }')
        say "  $name: $now instructions, $was recorded, $percent %"
        if awk -v p="$percent" 'BEGIN { exit !(p > 3) }'; then missed=$((missed + 1)); fi
    else
        say "  $name: $now instructions"
    fi
done
if [ "${1:-}" = --record ]; then
    printf '%s\n' "${lines[@]}" >"$record"
    say "recorded in $record"
elif [ "$recorded" != "$compiler" ]; then
    say "recorded by Rust $recorded, this is $compiler: printed, not judged"
elif [ "$missed" -gt 0 ]; then
    die "$missed of them need more than 3 % more than recorded; if that is meant: tests/instructions.sh --record"
fi
