/* What it takes one processor to reach another. The caller runs on processor 0, the other thread on processor 1. */
#define _GNU_SOURCE
#include "smp.h"
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic int running, stop;

static void *spin(void *unused)
{
	(void)unused;
	bind_to(1);
	running = 1;
	while (!atomic_load_explicit(&stop, memory_order_relaxed))
		;
	return NULL;
}

static pthread_t start(void *(*body)(void *))
{
	pthread_t other;
	bind_to(0);
	running = stop = 0;
	need(!pthread_create(&other, NULL, body, NULL), "no thread");
	while (!running)
		usleep(1000);
	return other;
}

/* An interrupt to a processor that runs the same program, until that has taken it and said so. */
double ipi(unsigned long rounds)
{
	pthread_t other = start(spin);
	need(!syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0), "no membarrier");
	uint64_t began = now_ns();
	for (unsigned long i = 0; i < rounds; i++)
		syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
	double taken = (double)(now_ns() - began) / (double)rounds;
	stop = 1;
	pthread_join(other, NULL);
	return taken;
}

/* A page's rights are taken and given back while the other processor has it in use. */
double shootdown(unsigned long rounds)
{
	enum { SIZE = 4096 };
	volatile uint8_t *page = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(page != MAP_FAILED, "no memory");
	pthread_t other = start(spin);
	uint64_t began = now_ns();
	for (unsigned long i = 0; i < rounds; i++) {
		*page = (uint8_t)i;
		need(!mprotect((void *)page, SIZE, PROT_READ), "mprotect failed");
		need(!mprotect((void *)page, SIZE, PROT_READ | PROT_WRITE), "mprotect failed");
	}
	double taken = (double)(now_ns() - began) / (double)rounds;
	stop = 1;
	pthread_join(other, NULL);
	munmap((void *)page, SIZE);
	return taken;
}

static _Atomic uint32_t word;
static _Atomic uint64_t woken_at;

static void sleep_while(uint32_t value)
{
	while (atomic_load(&word) == value)
		syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void set(uint32_t value)
{
	atomic_store(&word, value);
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *answer(void *unused)
{
	(void)unused;
	bind_to(1);
	running = 1;
	while (!stop) {
		sleep_while(0);
		set(0);
	}
	return NULL;
}

/* From one processor's thread to the other's, each asleep while the other works: half a round. */
double wake(unsigned long rounds)
{
	word = 0;
	pthread_t other = start(answer);
	uint64_t began = now_ns();
	for (unsigned long i = 0; i < rounds; i++) {
		set(1);
		sleep_while(1);
	}
	double taken = (double)(now_ns() - began) / (double)rounds / 2;
	stop = 1;
	set(1);
	pthread_join(other, NULL);
	return taken;
}

static void *note(void *unused)
{
	(void)unused;
	bind_to(1);
	running = 1;
	while (!stop) {
		sleep_while(0);
		woken_at = now_ns();
		atomic_store(&word, 0);
	}
	return NULL;
}

static int later(const void *left, const void *right)
{
	uint64_t l = *(const uint64_t *)left, r = *(const uint64_t *)right;
	return (l > r) - (l < r);
}

/* From a store and a wake to the thread of a processor that has been halted for a while; the median. */
double wake_idle(unsigned long rounds)
{
	uint64_t *taken = calloc(rounds, sizeof *taken);
	need(taken != NULL && rounds > 0, "no memory");
	word = 0;
	pthread_t other = start(note);
	for (unsigned long i = 0; i < rounds; i++) {
		uint64_t until = now_ns() + 300000;
		while (now_ns() < until)
			;
		woken_at = 0;
		uint64_t began = now_ns();
		set(1);
		while (!woken_at)
			__asm__ volatile("pause");
		taken[i] = woken_at - began;
		while (atomic_load(&word))
			__asm__ volatile("pause");
	}
	stop = 1;
	set(1);
	pthread_join(other, NULL);
	qsort(taken, rounds, sizeof *taken, later);
	double median = (double)taken[rounds / 2];
	free(taken);
	return median;
}
