#!/bin/sh
# What `make phys-test` does: starts phys.bin at 0x100000 with the processor held, has gdb look at it before it runs and once
# its table is filled, saves that memory with the monitor's pmemsave, compares, and lets the program end.
set -eu
work=$(mktemp -d)
# Socket names are short; the directory goes, and so does the machine, however this ends.
trap 'kill "$machine" 2>/dev/null || true; rm -rf "$work"' EXIT

fail() {
	echo "phys-test: $*" >&2
	cat "$OUT/phys-gdb.txt" >&2 2>/dev/null || true
	exit 1
}

# shellcheck disable=SC2086 # several options
$BROLGA $BARE -S -serial none -monitor none -gdb "unix:$work/gdb,server=on,wait=off" \
	-device "loader,file=$OUT/phys.bin,addr=0x00100000,cpu-num=0" &
machine=$!
tries=0
until [ -S "$work/gdb" ]; do
	tries=$((tries + 1))
	[ $tries -lt 600 ] || fail "the program does not start"
	sleep 0.1
done

# Where a symbol of the program's lies.
address() {
	nm "$OUT/phys.elf" | awk -v name="$1" '$3 == name { print "0x" $1 }'
}

rm -f "$OUT/phys-dump.bin"
# gdb waits for as long as the guest runs.
timeout 120 "$GDB" -batch -nx -ex 'set pagination off' -ex 'set architecture i386:x86-64' -ex "target remote $work/gdb" \
	-ex "dump binary memory $OUT/phys-loaded.bin 0x100000 0x100000+$(wc -c <"$OUT/phys.bin")" \
	-ex 'hbreak *filled' -ex continue -ex 'delete' \
	-ex 'x/16dw &table' \
	-ex "monitor pmemsave 0x100000 $(wc -c <"$OUT/phys.bin") $OUT/phys-dump.bin" \
	-ex "set {int}$(address enough) = 1" -ex continue \
	"$OUT/phys.elf" >"$OUT/phys-gdb.txt" 2>&1 || true
status=0
wait "$machine" || status=$?

cmp "$OUT/phys.bin" "$OUT/phys-loaded.bin" || fail "what lies at 0x100000 is not the program"
grep -q '<table+48>:[[:space:]]*144[[:space:]]*169[[:space:]]*196[[:space:]]*225' "$OUT/phys-gdb.txt" || fail "gdb sees another table"
# The table's words as pmemsave wrote them, in the host's decimal.
offset=$(($(address table) - 0x100000))
words=$(od -An -v -t d4 -j "$offset" -N 64 "$OUT/phys-dump.bin" | xargs)
[ "$words" = "0 1 4 9 16 25 36 49 64 81 100 121 144 169 196 225" ] || fail "pmemsave has '$words'"
[ "$status" = 33 ] || fail "it ended with status $status instead of 33"
echo "phys-test: loaded, run, looked at by gdb and pmemsave: all as it should be"
