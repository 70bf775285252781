/* Threads and processes that meet: at a lock, at a counter, by turns, and in the kernel's tables. */
#define _GNU_SOURCE
#include "smp.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static unsigned sharers;
static unsigned long share;

void in_threads(unsigned threads, void *(*body)(void *))
{
	pthread_t ids[MOST_THREADS];
	for (unsigned n = 0; n < threads; n++)
		need(!pthread_create(&ids[n], NULL, body, (void *)(uintptr_t)n), "no thread");
	for (unsigned n = 0; n < threads; n++)
		need(!pthread_join(ids[n], NULL), "a thread was lost");
}

void bind_to(int processor)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(processor, &set);
	need(!sched_setaffinity(0, sizeof set, &set), "no such processor");
}

uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t locked_words[8];

static void *take_mutex(void *number)
{
	uint64_t own = (uintptr_t)number + 1;
	for (unsigned long i = 0; i < share; i++) {
		pthread_mutex_lock(&lock);
		for (int n = 0; n < 8; n++)
			locked_words[n] += (uint64_t)n + 1;
		pthread_mutex_unlock(&lock);
		for (int n = 0; n < 20; n++)
			__asm__ volatile("imul $13, %0, %0" : "+r"(own));
	}
	return NULL;
}

/* A lock that is taken and given back all the time, with a little to do inside and outside of it. */
uint64_t mutex(unsigned threads, unsigned long rounds)
{
	uint64_t sum = 0;
	memset(locked_words, 0, sizeof locked_words);
	share = rounds * 1000 / threads;
	in_threads(threads, take_mutex);
	for (int n = 0; n < 8; n++)
		sum = mix(sum, locked_words[n]);
	return sum;
}

static _Atomic uint64_t counter;

static void *count(void *number)
{
	(void)number;
	for (unsigned long i = 0; i < share; i++)
		atomic_fetch_add(&counter, 3);
	return NULL;
}

/* One counter for all. */
uint64_t atomic(unsigned threads, unsigned long rounds)
{
	counter = 0;
	share = rounds * 1000 / threads;
	in_threads(threads, count);
	return counter;
}

struct table {
	_Atomic uint32_t turn;
	uint32_t ball;
} __attribute__((aligned(64)));

static struct table tables[MOST_THREADS / 2];

static void wait_while(_Atomic uint32_t *word, uint32_t value)
{
	while (atomic_load(word) == value)
		syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void *play(void *number)
{
	uint32_t side = (uint32_t)(uintptr_t)number & 1;
	struct table *table = &tables[(uintptr_t)number / 2];
	for (unsigned long i = 0; i < share; i++) {
		wait_while(&table->turn, side ^ 1);
		table->ball = table->ball * 3 + side;
		atomic_store(&table->turn, side ^ 1);
		syscall(SYS_futex, &table->turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	}
	return NULL;
}

/* Pairs of threads that hand a word to and fro: each waits in the kernel for the other. */
uint64_t futex_ping_pong(unsigned threads, unsigned long rounds)
{
	uint64_t sum = 0;
	sharers = threads / 2 ? threads / 2 : 1;
	share = rounds * 1000 / sharers;
	memset(tables, 0, sizeof tables);
	in_threads(sharers * 2, play);
	for (unsigned n = 0; n < sharers; n++)
		sum += tables[n].ball;
	return sum;
}

/* Processes that fork, touch memory and end: page tables, run queues and process lists of one kernel. */
uint64_t forks(unsigned threads, unsigned long rounds)
{
	enum { PAGES = 64, SIZE = 4096 };
	uint64_t sum = 0;
	for (unsigned n = 0; n < threads; n++) {
		pid_t worker = fork();
		need(worker >= 0, "no fork");
		if (worker)
			continue;
		for (unsigned long i = n; i < rounds; i += threads) {
			int status = 0;
			pid_t child = fork();
			need(child >= 0, "no fork");
			if (!child) {
				uint8_t *area = mmap(NULL, PAGES * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
				need(area != MAP_FAILED, "no memory");
				for (size_t at = 0; at < PAGES * SIZE; at += SIZE)
					area[at] = (uint8_t)i;
				_exit(area[SIZE] & 0x3f);
			}
			need(waitpid(child, &status, 0) == child && WIFEXITED(status), "a process was lost");
			need(WEXITSTATUS(status) == (int)(i & 0x3f), "a process ended wrongly");
		}
		_exit(0);
	}
	for (unsigned n = 0; n < threads; n++) {
		int status = 0;
		need(wait(&status) >= 0 && WIFEXITED(status) && !WEXITSTATUS(status), "a process was lost");
		sum++;
	}
	return sum / threads;
}
