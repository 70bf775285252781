/* bench NAME [ROUNDS]: runs one workload and compares its checksum; `bench list` prints names and groups. */
#include "bench.h"

static const struct entry {
	const char *name, *group;
	workload *run;
	unsigned long rounds;
	uint64_t checksum; /* of that many rounds, from a processor of silicon */
} table[] = {
	{ "sha256", "integer", sha256, 1200, 0xffa0a62d0f4f0134 },
	{ "coremark", "integer", coremark, 7500, 0xd33cbe3af34f2fc7 },
	{ "calls", "integer", calls, 250, 0x9fba2c914bc3144b },
	{ "virtual-calls", "integer", virtual_calls, 60, 0x0039b8b8c4e5af03 },
	{ "bytecode", "integer", bytecode, 40, 0x6e97d0bff3ee5104 },
	{ "chase", "integer", chase, 8, 0x000000f41fc95dd8 },
	{ "muldiv", "integer", muldiv, 120, 0x01927562dd9dc5ab },
	{ "sorting", "integer", sorting, 55, 0xf0bb3f3b6159d475 },
	{ "getpid", "system", getpid_loop, 2600, 0x000000000027ac40 },
	{ "ping-pong", "system", ping_pong, 20, 0xa23bd8492cccfbbc },
	{ "page-faults", "system", page_faults, 100, 0x5f325344f064c95f },
	{ "fork", "system", fork_loop, 1500, 0x3775d3110218e393 },
	{ "exec", "system", exec_loop, 500, 0xa044844c8968a0ba },
	{ "nbody", "scalar-fp", nbody, 500, 0xcc2816655d25de7b },
	{ "spectral", "scalar-fp", spectral, 200, 0x3ff46338b0a0f031 },
	{ "x87", "x87", x87, 150, 0x4f808b71187870bf },
	{ "matrix-sse2", "packed", matrix_sse2, 80, 0xf2a48dd9b87810d1 },
	{ "mandelbrot-sse2", "packed", mandelbrot_sse2, 25, 0xebb726c26f4ef1a3 },
	{ "integer-sse2", "packed", integer_sse2, 8000, 0xe601387c422cba1f },
	{ "memcpy", "memory", memcpy_loop, 440, 0x7edf4e057fe0d799 },
	{ "rep-strings", "memory", rep_strings, 700, 0xd77de5592b2a5a15 },
	{ "generated-code", "generated", generated_code, 500, 0xdcf9e3b103d74c8a },
};

int main(int argc, char **argv)
{
	const size_t count = sizeof table / sizeof *table;

	if (argc == 2 && !strcmp(argv[1], "exec-target"))
		return 7; /* what exec_loop starts */
	if (argc == 2 && !strcmp(argv[1], "list")) {
		for (size_t i = 0; i < count; i++)
			printf("%s %s\n", table[i].name, table[i].group);
		return 0;
	}
	for (size_t i = 0; argc >= 2 && i < count; i++) {
		if (strcmp(argv[1], table[i].name))
			continue;
		unsigned long rounds = argc > 2 ? strtoul(argv[2], NULL, 0) : table[i].rounds;
		uint64_t sum = table[i].run(rounds);
		printf("%s %016llx\n", table[i].name, (unsigned long long)sum);
		if (rounds == table[i].rounds && sum != table[i].checksum) {
			printf("%s: wrong checksum, %016llx is right\n", table[i].name,
			       (unsigned long long)table[i].checksum);
			return 1;
		}
		return 0;
	}
	fprintf(stderr, "usage: bench NAME [ROUNDS] | bench list\n");
	return 2;
}
