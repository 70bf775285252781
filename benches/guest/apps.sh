#!/bin/bash
# apps NAME: one application's share of the guest benchmark. What it prints depends on nothing but its input, and
# must be the same natively and in every guest.
export LC_ALL=C PATH=/usr/bin:/bin HOME=/tmp PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1
work=$(mktemp -d /tmp/apps.XXXXXX)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
set -o pipefail

digest() { sha256sum | cut -c1-16; }

case $1 in
gzip) head -c 6000000 /usr/bin/python3.11 | gzip -6n | digest ;;
xz) head -c 1500000 /usr/bin/python3.11 | xz -3 -T1 | digest ;;
zstd) head -c 4000000 /usr/bin/python3.11 | zstd -9 -T1 -q | digest ;;
python)
	python3 - <<'P'
import hashlib
words = {}
for i in range(40000):
    key = "%x" % (i * 2654435761 % 4294967296)
    words.setdefault(key[:2], []).append(int(key, 16) % 1000)
best = sorted(((sum(v), k) for k, v in words.items()), reverse=True)[:5]
def queens(n, row=0, columns=0, left=0, right=0):
    if row == n:
        return 1
    count, free = 0, ~(columns | left | right) & ((1 << n) - 1)
    while free:
        bit = free & -free
        free ^= bit
        count += queens(n, row + 1, columns | bit, (left | bit) << 1, (right | bit) >> 1)
    return count
text = "".join(chr(97 + i * i % 26) for i in range(50000))
print(best, queens(8), pow(3, 20011, 10 ** 300) % 10 ** 12, text.count("ab"), len(text.replace("e", "ee").split("q")))
P
	;;
perl)
	perl -e 'my %seen; my $text = join " ", map { ($_ * 7919) % 10007 } 1 .. 60000;
		$seen{$1}++ while $text =~ /\b(\d*7\d*)\b/g; (my $other = $text) =~ s/(\d)(\d)/$2$1/g;
		my @sorted = sort { $seen{$a} <=> $seen{$b} || $a <=> $b } keys %seen;
		print scalar(@sorted), " $sorted[7] ", unpack("%32C*", $other), "\n";' ;;
lua)
	lua - <<'L'
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
local t = {}
for i = 1, 60000 do t[i] = (i * 7919) % 100003 end
table.sort(t)
local parts = {}
for i = 1, 20000 do parts[i] = ("%d:%x"):format(i, t[i]) end
local text = table.concat(parts, ",")
print(fib(28), t[30000], #text, select(2, text:gsub("[aeiou]", "")))
L
	;;
sqlite)
	sqlite3 :memory: <<'S'
CREATE TABLE t(a INTEGER PRIMARY KEY, b INTEGER, c TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
INSERT INTO t SELECT i, i * 7919 % 10007, printf('%08x', i * 2654435761 % 4294967296) FROM n;
CREATE INDEX by_text ON t(c);
SELECT count(*), sum(x.b) FROM t x JOIN t y ON y.a = x.b WHERE x.c < y.c;
SELECT b % 10, count(*), max(c) FROM t GROUP BY 1 ORDER BY 1 LIMIT 3;
DELETE FROM t WHERE a % 3 = 0;
SELECT sum(length(c)), count(DISTINCT b) FROM t WHERE c LIKE '%a%';
S
	;;
cc1)
	for file in /bench/src/*.i; do
		/usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -O2 "$file" -o out.s || exit 1
		grep -v '^\s*\.\(file\|ident\)' out.s | digest
	done
	;;
openssl)
	head -c 6000000 /usr/bin/python3.11 | openssl enc -aes-128-cbc -K 000102030405060708090a0b0c0d0e0f -iv 0f0e0d0c0b0a09080706050403020100 | digest
	head -c 6700000 /usr/bin/python3.11 | openssl dgst -sha512 -r
	openssl prime 170141183460469231731687303715884105727 2305843009213693951
	;;
luajit)
	luajit - <<'L'
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
local sieve, primes = {}, 0
for i = 2, 2000000 do if not sieve[i] then primes = primes + 1; for j = i * i, 2000000, i do sieve[j] = true end end end
local x = 12345
for i = 1, 20000000 do x = (x * 16807) % 2147483647 end
print(fib(32), primes, x)
L
	;;
*)
	echo "apps: no application is called $1" >&2
	exit 2
	;;
esac
