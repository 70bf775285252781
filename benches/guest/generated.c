/* Code that is written, run, patched and run again, as a just-in-time compiler does. */
#include "bench.h"
#include <sys/mman.h>

enum { FUNCTION_SIZE = 64, FUNCTIONS = 512 };

/* mov eax, edi; then a few of: imul eax, eax, constant / add eax, constant / xor eax, constant / rol eax, constant; ret. */
static size_t emit(uint8_t *at, uint64_t *random)
{
	uint8_t *begin = at;
	*at++ = 0x89, *at++ = 0xf8;
	int count = 3 + (int)(next_random(random) % 6);
	for (int i = 0; i < count; i++) {
		uint32_t constant = (uint32_t)(next_random(random) >> 16) | 1;
		switch (constant >> 28 & 3) {
		case 0: *at++ = 0x69, *at++ = 0xc0; break;
		case 1: *at++ = 0x05; break;
		case 2: *at++ = 0x35; break;
		default:
			*at++ = 0xc1, *at++ = 0xc0, *at++ = (uint8_t)(constant >> 8 & 31);
			continue;
		}
		memcpy(at, &constant, 4);
		at += 4;
	}
	*at++ = 0xc3;
	return (size_t)(at - begin);
}

uint64_t generated_code(unsigned long rounds)
{
	uint8_t *area = mmap(NULL, FUNCTION_SIZE * FUNCTIONS, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t random = 42424242, sum = 0;
	need(area != MAP_FAILED, "no memory that is writable and executable");
	for (int i = 0; i < FUNCTIONS; i++)
		emit(area + i * FUNCTION_SIZE, &random);
	while (rounds--) {
		/* Each round replaces an eighth of the functions and calls each of them a few dozen times. */
		for (int i = 0; i < FUNCTIONS / 8; i++)
			emit(area + next_random(&random) % FUNCTIONS * FUNCTION_SIZE, &random);
		uint32_t value = (uint32_t)sum;
		for (int pass = 0; pass < 40; pass++)
			for (int i = 0; i < FUNCTIONS; i++) {
				uint32_t (*function)(uint32_t);
				uint8_t *code = area + i * FUNCTION_SIZE;
				memcpy(&function, &code, sizeof function);
				value = function(value);
			}
		sum = mix(sum, value);
	}
	munmap(area, FUNCTION_SIZE * FUNCTIONS);
	return sum;
}
