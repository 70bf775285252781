/* Memory: dependent loads, copies, string instructions. */
#include "bench.h"

uint64_t chase(unsigned long rounds)
{
	enum { NODES = 1 << 19, STRIDE = 64 }; /* 32 MiB, one node a cache line */
	static uint8_t area[(size_t)NODES * STRIDE];
	static uint32_t order[NODES];
	uint64_t random = 2463534242;
	for (uint32_t i = 0; i < NODES; i++)
		order[i] = i;
	for (uint32_t i = NODES - 1; i > 0; i--) {
		uint32_t j = (uint32_t)(next_random(&random) % (i + 1)), kept = order[i];
		order[i] = order[j], order[j] = kept;
	}
	for (uint32_t i = 0; i < NODES; i++)
		*(uint32_t *)(area + (size_t)order[i] * STRIDE) = order[(i + 1) % NODES];
	uint32_t at = 0;
	uint64_t sum = 0;
	while (rounds--)
		for (int i = 0; i < 500000; i++) {
			at = *(uint32_t *)(area + (size_t)at * STRIDE);
			sum += at;
		}
	return sum;
}

uint64_t memcpy_loop(unsigned long rounds)
{
	enum { SIZE = 1 << 20 };
	static uint8_t from[SIZE + 64], to[SIZE + 64];
	uint64_t sum = 0;
	for (size_t i = 0; i < sizeof from; i++)
		from[i] = (uint8_t)(i * 7 + (i >> 9));
	for (unsigned long round = 0; round < rounds; round++) {
		/* One large copy, then many small ones of uneven length and alignment. */
		memcpy(to + round % 16, from + round % 7, SIZE);
		for (size_t at = 0, length = 1; at + length < SIZE / 4; at += length, length = length % 200 + 13)
			memcpy(to + at, from + at + round % 5, length);
		sum = mix(sum, to[(round * 4099) % SIZE]);
		memset(to + (round * 517) % (SIZE / 2), (int)round, SIZE / 4);
		sum = mix(sum, to[(round * 8191) % SIZE]);
	}
	return sum;
}

uint64_t rep_strings(unsigned long rounds)
{
	enum { SIZE = 1 << 18 };
	static uint8_t a[SIZE], b[SIZE];
	uint64_t sum = 0;
	for (unsigned long round = 0; round < rounds; round++) {
		void *to = a, *from = b;
		size_t count = SIZE;
		__asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"((uint8_t)(round | 1)) : "memory");
		to = b, from = a, count = SIZE / 8;
		__asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
		a[SIZE - 1 - round % 1000] ^= 0x80;
		to = a, from = b, count = SIZE;
		__asm__ volatile("repe cmpsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc");
		sum = mix(sum, count);
		to = a, count = SIZE;
		uint8_t sought = a[SIZE - 1 - round % 1000];
		__asm__ volatile("repne scasb" : "+D"(to), "+c"(count) : "a"(sought) : "memory", "cc");
		sum = mix(sum, count);
		/* Short ones, as compilers emit for structures. */
		for (size_t at = 0; at < 64 * 1000; at += 64) {
			to = b + at, from = a + at, count = 6;
			__asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
		}
	}
	return sum;
}
