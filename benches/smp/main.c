/* smp NAME THREADS [ROUNDS]: runs one workload or measures one latency between two marks; `smp list` names them and
   their rounds. */
#include "smp.h"
#include <unistd.h>

static const struct entry {
	const char *name;
	parallel *run;
	latency *measure;
	unsigned long rounds;
} table[] = {
	{ "hash", hash, NULL, 750 },
	{ "matrix", matrix, NULL, 160 },
	{ "mutex", mutex, NULL, 12000 },
	{ "atomic", atomic, NULL, 120000 },
	{ "ping-pong", futex_ping_pong, NULL, 60 },
	{ "forks", forks, NULL, 6400 },
	{ "ipi", NULL, ipi, 20000 },
	{ "wake", NULL, wake, 20000 },
	{ "wake-idle", NULL, wake_idle, 1000 },
	{ "shootdown", NULL, shootdown, 10000 },
};

int main(int argc, char **argv)
{
	const size_t count = sizeof table / sizeof *table;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 2 && !strcmp(argv[1], "list")) {
		for (size_t i = 0; i < count; i++)
			printf("%s %s %lu\n", table[i].name, table[i].run ? "workload" : "latency", table[i].rounds);
		return 0;
	}
	for (size_t i = 0; argc > 2 && i < count; i++) {
		if (strcmp(argv[1], table[i].name))
			continue;
		unsigned threads = (unsigned)strtoul(argv[2], NULL, 0);
		unsigned long rounds = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
		need(threads > 0 && threads <= MOST_THREADS, "this many threads cannot be");
		rounds = rounds ? rounds : table[i].rounds;
		if (table[i].run) {
			printf("@sum %016llx\n", (unsigned long long)table[i].run(threads, rounds));
			return 0;
		}
		need(sysconf(_SC_NPROCESSORS_ONLN) > 1, "a latency is between two processors");
		printf("@value %.1f\n", table[i].measure(rounds));
		return 0;
	}
	fprintf(stderr, "usage: smp NAME THREADS [ROUNDS] | smp list\n");
	return 2;
}
