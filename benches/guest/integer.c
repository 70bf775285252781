/* Integer work: hashing, a CoreMark-like mix, calls, indirect calls, multiplication and division, sorting. */
#include "bench.h"

/* ---- SHA-256 (FIPS 180-4) ---- */

static uint32_t round_constants[64];

static uint32_t ror(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

/* The constants are the first 32 bits of the fractions of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2). */
static void make_round_constants(void)
{
	int found = 0;
	for (unsigned prime = 2; found < 64; prime++) {
		int is_prime = 1;
		for (unsigned d = 2; d * d <= prime; d++)
			is_prime &= prime % d != 0;
		if (!is_prime)
			continue;
		/* floor(cbrt(prime) * 2^32) by bisection in 128 bits. */
		uint64_t low = 0, high = (uint64_t)8 << 32;
		while (high - low > 1) {
			uint64_t middle = low + (high - low) / 2;
			/* middle^3 <= prime * 2^96, compared after dropping 64 bits of middle^3 twice 32. */
			unsigned __int128 square = (unsigned __int128)middle * middle;
			unsigned __int128 cube_high = (square >> 32) * middle + (((square & 0xffffffffu) * middle) >> 32);
			if (cube_high < (unsigned __int128)prime << 64)
				low = middle;
			else
				high = middle;
		}
		round_constants[found++] = (uint32_t)low;
	}
}

static void sha256_block(uint32_t state[8], const uint8_t *data)
{
	uint32_t w[64];
	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)data[4 * i] << 24 | data[4 * i + 1] << 16 | data[4 * i + 2] << 8 | data[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		uint32_t s0 = ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3;
		uint32_t s1 = ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10;
		w[i] = w[i - 16] + s0 + w[i - 7] + s1;
	}
	uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
	uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
	for (int i = 0; i < 64; i++) {
		uint32_t t1 = h + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & f) ^ (~e & g)) + round_constants[i] + w[i];
		uint32_t t2 = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
		h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
	}
	state[0] += a, state[1] += b, state[2] += c, state[3] += d;
	state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

uint64_t sha256(unsigned long rounds)
{
	static uint8_t data[65536];
	uint32_t state[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	make_round_constants();
	need(round_constants[0] == 0x428a2f98 && round_constants[63] == 0xc67178f2, "the SHA-256 constants are wrong");
	for (size_t i = 0; i < sizeof data; i++)
		data[i] = (uint8_t)(i * 131 + (i >> 8));
	while (rounds--)
		for (size_t at = 0; at < sizeof data; at += 64)
			sha256_block(state, data + at);
	return (uint64_t)state[0] << 32 | state[7];
}

/* ---- a mix in the manner of CoreMark: list, small matrix, state machine, CRC ---- */

struct node {
	struct node *next;
	int16_t key, value;
};

static struct node *merge_sort(struct node *list, int by_value)
{
	if (!list || !list->next)
		return list;
	struct node *slow = list, *fast = list->next;
	while (fast && fast->next)
		slow = slow->next, fast = fast->next->next;
	struct node *right = slow->next, head, *tail = &head;
	slow->next = NULL;
	list = merge_sort(list, by_value);
	right = merge_sort(right, by_value);
	while (list && right) {
		int left_first = by_value ? list->value <= right->value : list->key <= right->key;
		struct node **from = left_first ? &list : &right;
		tail->next = *from;
		tail = *from;
		*from = (*from)->next;
	}
	tail->next = list ? list : right;
	return head.next;
}

static uint16_t crc16(uint16_t crc, uint16_t value)
{
	for (int bit = 0; bit < 16; bit++, value >>= 1)
		crc = (crc >> 1) ^ ((crc ^ value) & 1 ? 0xa001 : 0);
	return crc;
}

static uint16_t list_part(uint64_t *random)
{
	static struct node nodes[200];
	uint16_t crc = 0;
	for (int i = 0; i < 200; i++) {
		uint64_t r = next_random(random);
		nodes[i] = (struct node){ i < 199 ? &nodes[i + 1] : NULL, (int16_t)r, (int16_t)(r >> 16) };
	}
	struct node *list = merge_sort(nodes, 0);
	for (struct node *n = list; n; n = n->next)
		crc = crc16(crc, (uint16_t)n->key);
	for (struct node *n = merge_sort(list, 1); n; n = n->next)
		crc = crc16(crc, (uint16_t)n->value);
	return crc;
}

static uint16_t matrix_part(uint64_t *random)
{
	enum { N = 12 };
	static int16_t a[N][N], b[N][N];
	static int32_t c[N][N];
	uint16_t crc = 0;
	for (int i = 0; i < N * N; i++) {
		uint64_t r = next_random(random);
		(&a[0][0])[i] = (int16_t)r;
		(&b[0][0])[i] = (int16_t)(r >> 20);
	}
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			int32_t sum = 0;
			for (int k = 0; k < N; k++)
				sum += (int32_t)((uint32_t)a[i][k] * (uint32_t)b[k][j]) >> 3 & 0xffff;
			c[i][j] = sum;
		}
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++)
			crc = crc16(crc, (uint16_t)(c[i][j] ^ c[j][i] >> 5));
	return crc;
}

static uint16_t state_part(uint64_t *random)
{
	enum { START, SIGN, WHOLE, POINT, EXPONENT, BAD, STATES };
	static const char alphabet[] = "0123456789+-.eE,, 5x";
	char text[400];
	unsigned counts[STATES] = { 0 };
	int state = START;
	for (size_t i = 0; i < sizeof text; i++)
		text[i] = alphabet[next_random(random) % (sizeof alphabet - 1)];
	for (size_t i = 0; i < sizeof text; i++) {
		char c = text[i];
		int digit = c >= '0' && c <= '9';
		if (c == ',' || c == ' ')
			state = START;
		else
			switch (state) {
			case START: state = digit ? WHOLE : c == '+' || c == '-' ? SIGN : c == '.' ? POINT : BAD; break;
			case SIGN: state = digit ? WHOLE : c == '.' ? POINT : BAD; break;
			case WHOLE: state = digit ? WHOLE : c == '.' ? POINT : c == 'e' || c == 'E' ? EXPONENT : BAD; break;
			case POINT: state = digit ? POINT : c == 'e' || c == 'E' ? EXPONENT : BAD; break;
			case EXPONENT: state = digit || c == '-' ? EXPONENT : BAD; break;
			default: break;
			}
		counts[state]++;
	}
	uint16_t crc = 0;
	for (int i = 0; i < STATES; i++)
		crc = crc16(crc, (uint16_t)counts[i]);
	return crc;
}

uint64_t coremark(unsigned long rounds)
{
	uint64_t random = 88172645463325252u, sum = 0;
	while (rounds--) {
		sum = mix(sum, list_part(&random));
		sum = mix(sum, matrix_part(&random));
		sum = mix(sum, state_part(&random));
	}
	return sum;
}

/* ---- recursion ---- */

static __attribute__((noinline)) unsigned fibonacci(unsigned n)
{
	return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static __attribute__((noinline)) int takeuchi(int x, int y, int z)
{
	return y >= x ? z : takeuchi(takeuchi(x - 1, y, z), takeuchi(y - 1, z, x), takeuchi(z - 1, x, y));
}

uint64_t calls(unsigned long rounds)
{
	uint64_t sum = 0;
	while (rounds--) {
		sum = mix(sum, fibonacci(27));
		sum = mix(sum, (uint64_t)takeuchi(18, 12, 6));
	}
	return sum;
}

/* ---- calls through pointers, as of virtual functions ---- */

struct shape;
struct shape_class {
	uint32_t (*area)(const struct shape *);
	void (*grow)(struct shape *, uint32_t);
};
struct shape {
	const struct shape_class *class;
	uint32_t a, b;
};

static uint32_t square_area(const struct shape *s) { return s->a * s->a; }
static uint32_t box_area(const struct shape *s) { return s->a * s->b; }
static uint32_t triangle_area(const struct shape *s) { return s->a * s->b / 2; }
static uint32_t ring_area(const struct shape *s) { return 3 * (s->a * s->a - s->b * s->b); }
static void grow_first(struct shape *s, uint32_t by) { s->a = (s->a + by) & 0xfff; }
static void grow_both(struct shape *s, uint32_t by) { s->a = (s->a + by) & 0xfff, s->b = (s->b ^ by) & 0xfff; }

static const struct shape_class classes[4] = {
	{ square_area, grow_first }, { box_area, grow_both }, { triangle_area, grow_both }, { ring_area, grow_first },
};

uint64_t virtual_calls(unsigned long rounds)
{
	enum { SHAPES = 1000 };
	static struct shape shapes[SHAPES];
	uint64_t random = 362436069, sum = 0;
	for (int i = 0; i < SHAPES; i++)
		shapes[i] = (struct shape){ &classes[next_random(&random) & 3], (uint32_t)(random & 0xfff), (uint32_t)(random >> 20 & 0xfff) };
	while (rounds--)
		for (int pass = 0; pass < 500; pass++)
			for (int i = 0; i < SHAPES; i++) {
				sum += shapes[i].class->area(&shapes[i]);
				shapes[i].class->grow(&shapes[i], (uint32_t)sum & 7);
			}
	return sum;
}

/* ---- multiplication and division ---- */

uint64_t muldiv(unsigned long rounds)
{
	uint64_t random = 521288629, sum = 0;
	while (rounds--)
		for (int i = 0; i < 500000; i++) {
			uint64_t a = next_random(&random), b = random >> 33 | 1;
			unsigned __int128 wide = (unsigned __int128)a * random;
			sum += (uint64_t)(wide >> 64) ^ (uint64_t)wide;
			sum += a / b + a % b;
			sum ^= (uint64_t)((int64_t)a / (int32_t)(b | 3)) * 31;
			sum += (uint32_t)a / (uint32_t)b + (uint32_t)(a >> 7) % (uint16_t)(b | 1);
			sum = (sum << 9 | sum >> 55) * 0x2545f4914f6cdd1du;
		}
	return sum;
}

/* ---- sorting and a hash table ---- */

static int compare(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
	return (a > b) - (a < b);
}

uint64_t sorting(unsigned long rounds)
{
	enum { COUNT = 50000, SLOTS = 1 << 17 };
	static uint32_t values[COUNT], slots[SLOTS];
	uint64_t random = 88675123, sum = 0;
	while (rounds--) {
		memset(slots, 0, sizeof slots);
		for (int i = 0; i < COUNT; i++) {
			values[i] = (uint32_t)next_random(&random) | 1;
			uint32_t at = values[i] * 2654435761u >> 15;
			while (slots[at] && slots[at] != values[i])
				at = (at + 1) & (SLOTS - 1);
			slots[at] = values[i];
		}
		qsort(values, COUNT, sizeof *values, compare);
		for (int i = 0; i < COUNT; i += 997)
			sum = mix(sum, values[i]);
	}
	return sum;
}
