/* Independent work: a process each, so that no line of memory is shared. */
#define _GNU_SOURCE
#include "smp.h"
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PIECES = 8 };

/* Does `PIECES` equal pieces of work in so many processes. */
static uint64_t in_processes(unsigned processes, workload *work, unsigned long rounds)
{
	uint64_t *sums = mmap(NULL, PIECES * sizeof *sums, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(sums != MAP_FAILED, "no memory");
	for (unsigned process = 0; process < processes; process++) {
		pid_t child = fork();
		need(child >= 0, "no fork");
		if (!child) {
			for (unsigned piece = process; piece < PIECES; piece += processes)
				sums[piece] = work(rounds) + piece;
			_exit(0);
		}
	}
	for (unsigned process = 0; process < processes; process++) {
		int status = 0;
		need(wait(&status) >= 0 && WIFEXITED(status) && !WEXITSTATUS(status), "a process was lost");
	}
	uint64_t sum = 0;
	for (unsigned piece = 0; piece < PIECES; piece++)
		sum = mix(sum, sums[piece]);
	munmap(sums, PIECES * sizeof *sums);
	return sum;
}

uint64_t hash(unsigned threads, unsigned long rounds)
{
	return in_processes(threads, sha256, rounds);
}

uint64_t matrix(unsigned threads, unsigned long rounds)
{
	return in_processes(threads, matrix_sse2, rounds);
}
