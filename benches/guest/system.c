/* The kernel's part: system calls, switches between processes, page faults, fork and exec. */
#define _GNU_SOURCE
#include "bench.h"
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

uint64_t getpid_loop(unsigned long rounds)
{
	long own = getpid();
	uint64_t same = 0;
	while (rounds--)
		for (int i = 0; i < 1000; i++)
			same += syscall(SYS_getpid) == own;
	return same;
}

uint64_t ping_pong(unsigned long rounds)
{
	int there[2], back[2];
	uint64_t sum = 0;
	need(!pipe(there) && !pipe(back), "no pipes");
	pid_t child = fork();
	need(child >= 0, "no fork");
	if (!child) {
		uint32_t value;
		close(there[1]);
		while (read(there[0], &value, sizeof value) == sizeof value) {
			value = value * 3 + 1;
			if (write(back[1], &value, sizeof value) != sizeof value)
				break;
		}
		_exit(0);
	}
	uint32_t value = 1;
	while (rounds--)
		for (int i = 0; i < 1000; i++) {
			need(write(there[1], &value, sizeof value) == sizeof value, "cannot write to a pipe");
			need(read(back[0], &value, sizeof value) == sizeof value, "cannot read from a pipe");
			sum = mix(sum, value);
		}
	close(there[1]);
	waitpid(child, NULL, 0);
	return sum;
}

uint64_t page_faults(unsigned long rounds)
{
	enum { PAGES = 2000, SIZE = 4096 };
	uint64_t sum = 0;
	for (unsigned long round = 0; round < rounds; round++) {
		uint8_t *area = mmap(NULL, PAGES * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		need(area != MAP_FAILED, "no memory");
		madvise(area, PAGES * SIZE, MADV_NOHUGEPAGE);
		for (int i = 0; i < PAGES; i++)
			area[(size_t)i * SIZE + round % SIZE] = (uint8_t)(i + round);
		for (int i = 0; i < PAGES; i += 61)
			sum = mix(sum, area[(size_t)i * SIZE + round % SIZE]);
		munmap(area, PAGES * SIZE);
	}
	return sum;
}

uint64_t fork_loop(unsigned long rounds)
{
	uint64_t sum = 0;
	for (unsigned long round = 0; round < rounds; round++) {
		int status = 0;
		pid_t child = fork();
		need(child >= 0, "no fork");
		if (!child)
			_exit((int)(round & 0x7f));
		need(waitpid(child, &status, 0) == child && WIFEXITED(status), "a child was lost");
		sum = mix(sum, (uint64_t)WEXITSTATUS(status));
	}
	return sum;
}

uint64_t exec_loop(unsigned long rounds)
{
	uint64_t sum = 0;
	while (rounds--) {
		int status = 0;
		pid_t child = fork();
		need(child >= 0, "no fork");
		if (!child) {
			execl("/bench/bench", "bench", "exec-target", (char *)NULL);
			execl("/proc/self/exe", "bench", "exec-target", (char *)NULL);
			_exit(99);
		}
		need(waitpid(child, &status, 0) == child && WIFEXITED(status), "a child was lost");
		sum = mix(sum, (uint64_t)WEXITSTATUS(status));
	}
	return sum;
}
