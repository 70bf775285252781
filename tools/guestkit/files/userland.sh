#!/bin/bash
# Real programs with output that depends on nothing but the processor. Run in the guest and, by chroot, on the
# host: the two must print the same bytes. Each section is `== name`, its output, and its exit status.
export LC_ALL=C PATH=/usr/bin:/bin HOME=/tmp PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1
# libm has variants of its functions for AVX2 and FMA whose last bit differs: both sides use the plain ones.
export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4
work=$(mktemp -d /tmp/userland.XXXXXX)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

section() {
	echo "== $1"
	shift
	"$@" 2>&1
	echo "-- status $?"
}

corpus() {
	gawk 'BEGIN { srand(42); for (i = 0; i < 30000; i++) printf "%d %x %.12g %s\n", i, i * 2654435761 % 4294967296, sin(i) * exp(cos(i)), substr("the quick brown fox jumps over the lazy dog", i % 37, 9) }'
}

python_integers() {
	python3 - <<'P'
import hashlib, math
print(3 ** 2000 % 10 ** 50, math.factorial(500) % (10 ** 40 + 121))
primes = [n for n in range(2, 5000) if all(n % d for d in range(2, int(n ** 0.5) + 1))]
print(len(primes), sum(primes), primes[-3:])
words = {}
for i in range(20000):
    key = hashlib.md5(str(i * i).encode()).hexdigest()[:3]
    words[key] = words.get(key, 0) + 1
print(sorted(words.items(), key=lambda item: (-item[1], item[0]))[:8])
for algorithm in ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b", "blake2s"):
    print(algorithm, hashlib.new(algorithm, b"brolga" * 10000).hexdigest())
print((1 << 521) // 1234567891011, -7 // 2, -7 % 3, divmod(-(10 ** 30), 97), pow(3, 10 ** 18, 2 ** 89 - 1))
P
}

python_floats() {
	python3 - <<'P'
import cmath, math, struct
for f in (math.sin, math.cos, math.tan, math.atan, math.exp, math.log, math.sqrt, math.gamma, math.erf, math.asinh, math.expm1):
    print(f.__name__, [f(x).hex() for x in (0.1, 0.5, 1.0, 2.5, 10.0, 33.3)])
print(math.fsum(1 / n for n in range(1, 50000)).hex(), cmath.exp(1j * cmath.pi / 7), 0.1 + 0.2, 1e308 * 10, -1e308 * 10)
print(struct.pack("<d", float("nan")).hex(), struct.pack("<f", 1 / 3).hex(), 5e-324, 2.2250738585072014e-308 / 3)
print([round(x * 0.5) for x in range(-5, 6)], math.fmod(-7.5, 2), math.remainder(7.5, 2), float(2 ** 63), int(-1e18))
x, total = 0.5, 0.0
for _ in range(20000):
    x = 3.9 * x * (1 - x)
    total += x
print(x.hex(), total.hex())
P
}

python_exceptions() {
	python3 - <<'P'
import sys
def deep(n):
    return 0 if n == 0 else 1 + deep(n - 1)
print(deep(900))
for wrong in ("1/0", "[][1]", "int('x')", "deep(10**6)", "{}['k']"):
    try:
        eval(wrong)
    except Exception as error:
        print(type(error).__name__, str(error)[:40])
class Tree:
    def __init__(self, depth):
        self.kids = [Tree(depth - 1), Tree(depth - 1)] if depth else []
    def count(self):
        return 1 + sum(kid.count() for kid in self.kids)
print(Tree(12).count(), sys.getsizeof([]), len(str(list(range(10000)))))
P
}

perl_mix() {
	perl -e '
		my %count; my $text = join " ", map { ($_ * 7919) % 1009 } 1 .. 20000;
		$count{$1}++ while $text =~ /\b(\d*7\d*)\b/g;
		print join(",", map { "$_=$count{$_}" } (sort { $count{$b} <=> $count{$a} || $a <=> $b } keys %count)[0 .. 9]), "\n";
		(my $swapped = $text) =~ s/(\d)(\d)/$2$1/g; print length($swapped), " ", unpack("%32C*", $swapped), "\n";
		printf "%.15g %.15g %s %e\n", sin(1), exp(10), 2**53 + 1, atan2(1, 3);
		print join(" ", map { sprintf "%x", $_ } unpack("N*", pack("d>f>q>", 3.14159, -2.5, -123456789))), "\n";
		my @sorted = sort { $a <=> $b } map { ($_ * 48271) % 65537 } 1 .. 5000; print "@sorted[0, 100, 4999]\n";'
}

lua_source() {
	cat <<'L'
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
print(fib(24))
local x, sum = 0.5, 0
for i = 1, 200000 do x = 3.7 * x * (1 - x); sum = sum + math.sin(x) * i % 7 end
print(string.format("%.17g %.17g", x, sum))
local t = {}
for i = 1, 20000 do t[i] = (i * 7919) % 10007 end
table.sort(t)
print(t[1], t[5000], t[20000], #t)
local parts = {}
for i = 1, 3000 do parts[#parts + 1] = ("%d:%s"):format(i, ("x"):rep(i % 5)) end
local text = table.concat(parts, ",")
print(#text, select(2, text:gsub("x", "y")), text:find("2500:", 1, true))
local sieve, primes = {}, 0
for i = 2, 100000 do if not sieve[i] then primes = primes + 1; for j = i * i, 100000, i do sieve[j] = true end end end
print(primes)
L
}

lua_interpreted() { lua_source | lua -; }
luajit_compiled() { lua_source | luajit -; }
luajit_interpreted() { lua_source | luajit -joff -; }

node_mix() {
	node - <<'J'
const crypto = require("crypto"), zlib = require("zlib");
const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));
console.log(fib(25), 2n ** 200n % 1000000007n, 0.1 + 0.2, Math.sin(1), Math.exp(3), (-7) % 3, 1 << 31, -1 >>> 0);
const doubles = new Float64Array(5000).map((_, i) => Math.sqrt(i) * Math.cos(i));
console.log(doubles.reduce((a, b) => a + b), crypto.createHash("sha256").update(Buffer.from(doubles.buffer)).digest("hex"));
let state = 12345;
const next = () => (state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff);
const list = Array.from({ length: 30000 }, next).sort((a, b) => a - b);
console.log(list[0], list[15000], list[29999], JSON.stringify({ list: list.slice(0, 5), nested: { a: [1, "two", null] } }));
const packed = zlib.deflateSync(Buffer.from(list.join(",")));
console.log(packed.length, zlib.inflateSync(packed).length, "brolga".replace(/(r)(o)/u, "$2$1").padStart(12, "*"));
class Shape { area() { return 0; } }
class Square extends Shape { constructor(s) { super(); this.s = s; } area() { return this.s * this.s; } }
class Circle extends Shape { constructor(r) { super(); this.r = r; } area() { return Math.PI * this.r ** 2; } }
let area = 0;
for (let i = 0; i < 200000; i++) area += (i % 3 ? new Square(i % 11) : new Circle(i % 7)).area();
console.log(area, [..."crane"].reverse().join(""), new Date(86400000 * 365.25).toISOString());
const wasm = new WebAssembly.Module(Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1, 127, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0, 10, 9, 1, 7, 0, 32, 0, 32, 1, 108, 11]));
console.log(new WebAssembly.Instance(wasm).exports.f(1234, 5678));
J
}

compiler() {
	cat >unit.c <<'C'
typedef unsigned long size; typedef struct { double x, y; int tag; } point;
extern int printf(const char *, ...); extern double sqrt(double);
static int partition(int *a, int lo, int hi) { int p = a[hi], i = lo; for (int j = lo; j < hi; j++) if (a[j] < p) { int t = a[i]; a[i++] = a[j]; a[j] = t; } int t = a[i]; a[i] = a[hi]; a[hi] = t; return i; }
void quick(int *a, int lo, int hi) { while (lo < hi) { int m = partition(a, lo, hi); if (m - lo < hi - m) { quick(a, lo, m - 1); lo = m + 1; } else { quick(a, m + 1, hi); hi = m - 1; } } }
double spread(const point *p, size n) { double mx = 0, my = 0, s = 0; for (size i = 0; i < n; i++) { mx += p[i].x; my += p[i].y; } mx /= n; my /= n; for (size i = 0; i < n; i++) s += (p[i].x - mx) * (p[i].x - mx) + (p[i].y - my) * (p[i].y - my); return sqrt(s / n); }
void matrix(float *restrict c, const float *a, const float *b, int n) { for (int i = 0; i < n; i++) for (int j = 0; j < n; j++) { float s = 0; for (int k = 0; k < n; k++) s += a[i * n + k] * b[k * n + j]; c[i * n + j] = s; } }
int kind(int c) { switch (c) { case 'a' ... 'f': return c - 'a' + 10; case '0' ... '9': return c - '0'; case 'x': return -1; case 'z': return 77; default: return c > 127 ? -2 : -3; } }
unsigned long long mul(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
long double poly(long double x) { return ((1.5L * x + 2) * x - 3.25L) * x + 1e-3L; }
C
	for level in -O0 -O1 -O2 -O3 -Os; do
		/usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet $level unit.c -o unit.s && sha256sum <unit.s
	done
	as unit.s -o unit.o && sha256sum <unit.o && objdump -d unit.o | sha256sum && nm unit.o
}

database() {
	sqlite3 :memory: <<'S'
CREATE TABLE t(a INTEGER PRIMARY KEY, b REAL, c TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO t SELECT i, i * 1.5 / 7, printf('%08x', i * 2654435761 % 4294967296) FROM n;
CREATE INDEX by_text ON t(c);
SELECT count(*), sum(b), avg(b), min(c), max(c) FROM t;
SELECT a, c FROM t WHERE c LIKE 'a%' ORDER BY c LIMIT 5;
SELECT a % 10 AS g, count(*), round(sum(b), 6), group_concat(a % 3) FROM t WHERE a < 100 GROUP BY g ORDER BY g DESC;
UPDATE t SET b = b * 2 WHERE a % 3 = 0; DELETE FROM t WHERE a % 5 = 0;
SELECT count(*), total(b), hex(zeroblob(4)), quote(b) FROM t;
SELECT x.a, y.a FROM t x JOIN t y ON x.a = y.a + 3 WHERE x.c > y.c ORDER BY x.a DESC LIMIT 4;
PRAGMA integrity_check;
S
}

ciphers() {
	key=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f iv=0f0e0d0c0b0a09080706050403020100
	for cipher in aes-128-cbc aes-256-ctr aes-192-ofb camellia-256-cbc aria-128-ctr chacha20; do
		echo "$cipher $(openssl enc -e -$cipher -K ${key:0:64} -iv $iv -in corpus 2>/dev/null | sha256sum)"
	done
	openssl dgst -sha1 -hmac brolga corpus
	for hash in md5 sha224 sha256 sha384 sha512 sha3-512 blake2b512 sm3 ripemd160; do openssl dgst -$hash corpus; done
	openssl prime -generate -bits 16 -hex >/dev/null && openssl prime 170141183460469231731687303715884105727
	cat >key.pem <<'K'
-----BEGIN EC PARAMETERS-----
BggqhkjOPQMBBw==
-----END EC PARAMETERS-----
K
	openssl ecparam -in key.pem -noout -text
}

packers() {
	for pack in "gzip -9n" "gzip -1n" "bzip2 -9" "xz -6 -T1" "xz -0 -T1" "zstd -19 -T1 -q" "zstd -3 -T1 -q"; do
		$pack -c <corpus >packed
		echo "$pack: $(sha256sum <packed) $(${pack%% *} -dc <packed | sha256sum)"
	done
	tar --sort=name --mtime=@0 --owner=0 --group=0 -C /usr/lib -cf - python3 2>/dev/null | sha256sum
}

text_tools() {
	sort -k2 corpus | sha256sum
	sort -rn -k1 corpus | head -n 3
	grep -cE '(fox|dog).*[0-9]*' corpus
	sed -n 's/\([0-9]*\) \([0-9a-f]*\) .*/\2-\1/p' corpus | sort | uniq -c | tail -n 3
	cut -d' ' -f2 corpus | tr a-f A-F | md5sum
	wc corpus
	head -n 500 corpus >one
	sed '7d;99s/fox/cat/;200,210d' one >two
	diff -u --label one --label two one two | sha256sum
	factor 18446744073709551557 600851475143 1000000016000000063
	echo 'scale=60; 4*a(1); e(1); sqrt(2); 2^200/3^50' | bc -l
	seq 1 0.1 20 | gawk '{ s += $1 * $1; p *= 1 } END { printf "%.10f %d\n", s, NR }'
	find /usr/lib/python3* -name '*.py' | sort | xargs cat | cksum
}

shell() {
	declare -A seen
	for ((i = 0; i < 3000; i++)); do ((seen[$((i * i % 97))]++)); done
	for k in $(printf '%s\n' "${!seen[@]}" | sort -n); do printf '%s:%s ' "$k" "${seen[$k]}"; done
	echo
	for i in 1 2 3 4 5 6 7 8; do (echo "child $i $((i ** i))"; exit "$i"); echo "left $?"; done
	yes brolga | head -n 20000 | while read -r line; do [[ $line =~ ^b(r.l)g ]] || echo no; done | wc -l
	{ (kill -SEGV "$BASHPID") } 2>/dev/null
	echo "signal $?"
	printf '%s\n' {a..e}{1..3} | paste -sd,
}

corpus >corpus
section corpus sha256sum corpus
section python-integers python_integers
section python-floats python_floats
section python-exceptions python_exceptions
section perl perl_mix
section lua lua_interpreted
section luajit luajit_compiled
section luajit-interpreter luajit_interpreted
section node node_mix
section cc1 compiler
section sqlite database
section openssl ciphers
section packers packers
section text text_tools
section shell shell
echo "== end"
