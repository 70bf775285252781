/* stress SECONDS: everything at a time that several processors make difficult. Each part checks what it does and counts
 * its rounds; the first thing that is wrong ends the program with a line that says what. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

static time_t end;
static int processors;

static time_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

static int going_on(void)
{
	return now() < end;
}

static void need(int holds, const char *what)
{
	if (!holds) {
		printf("stress: wrong: %s\n", what);
		fflush(stdout);
		_exit(1);
	}
}

static void *pages(size_t count, int rights)
{
	void *area = mmap(NULL, count * PAGE, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(area != MAP_FAILED, "there is memory");
	return area;
}

static pthread_t start(void *(*body)(void *), void *what)
{
	pthread_t id;
	need(!pthread_create(&id, NULL, body, what), "a thread starts");
	return id;
}

/* ---- Mappings: what one thread unmaps or protects is gone for the other at once. ---- */

static _Thread_local sigjmp_buf escape;
static _Atomic(volatile uint32_t *) shown;
static _Atomic uint32_t step;

static void escaped(int signal)
{
	siglongjmp(escape, signal);
}

static int faults(volatile uint32_t *place, int writes)
{
	if (sigsetjmp(escape, 1))
		return 1;
	if (writes)
		*place = 1;
	else
		(void)*place;
	return 0;
}

static void await(uint32_t value)
{
	while (atomic_load(&step) != value)
		sched_yield();
}

/* Steps: 1 mapped, 2 seen, 3 read-only, 4 seen, 5 unmapped, 0 seen; 9 the end. */
static void *look(void *unused)
{
	(void)unused;
	for (uint32_t next;;) {
		while ((next = atomic_load(&step)) == 0 || next == 2 || next == 4)
			sched_yield();
		if (next == 9)
			return NULL;
		volatile uint32_t *place = atomic_load(&shown);
		if (next == 1) {
			need(place[5] == 0x5eed, "a new page shows what was stored");
			place[6] = 7;
		} else if (next == 3) {
			need(place[6] == 7, "a read-only page can be read");
			need(faults(place + 6, 1), "a store to a page that another thread made read-only faults");
		} else {
			need(faults(place + 6, 0), "a page that another thread unmapped is gone");
		}
		atomic_store(&step, next == 5 ? 0 : next + 1);
	}
}

static unsigned long mappings(void)
{
	unsigned long rounds = 0;
	signal(SIGSEGV, escaped);
	pthread_t other = start(look, NULL);
	for (; going_on(); rounds++) {
		volatile uint32_t *area = pages(3, PROT_READ | PROT_WRITE);
		volatile uint32_t *place = area + rounds % 3 * (PAGE / 4);
		place[5] = 0x5eed;
		atomic_store(&shown, place);
		atomic_store(&step, 1);
		await(2);
		need(!mprotect((void *)area, 3 * PAGE, PROT_READ), "mprotect works");
		atomic_store(&step, 3);
		await(4);
		need(place[6] == 7, "the page keeps what was stored");
		need(!munmap((void *)area, 3 * PAGE), "munmap works");
		atomic_store(&step, 5);
		await(0);
	}
	atomic_store(&step, 9);
	pthread_join(other, NULL);
	return rounds;
}

/* ---- Forks: a child's memory is that of the moment, whatever the parent's other thread goes on storing. ---- */

static volatile uint64_t *counters;
static _Atomic int counting = 1;

static void *count(void *unused)
{
	(void)unused;
	while (counting)
		for (int page = 0; page < 8; page++)
			counters[page * (PAGE / 8)]++;
	return NULL;
}

static unsigned long forks(void)
{
	unsigned long rounds = 0;
	counters = pages(8, PROT_READ | PROT_WRITE);
	pthread_t other = start(count, NULL);
	for (; going_on(); rounds++) {
		pid_t child = fork();
		need(child >= 0, "fork works");
		if (!child) {
			uint64_t was[8];
			for (int page = 0; page < 8; page++)
				was[page] = counters[page * (PAGE / 8)];
			for (int i = 0; i < 3; i++) {
				sched_yield();
				for (int page = 0; page < 8; page++)
					if (counters[page * (PAGE / 8)] != was[page])
						_exit(2);
			}
			for (int page = 0; page < 8; page++)
				counters[page * (PAGE / 8)] = 0;
			_exit(3);
		}
		int status = 0;
		need(waitpid(child, &status, 0) == child, "a child ends");
		need(WIFEXITED(status) && WEXITSTATUS(status) == 3, "a child's memory is its own");
	}
	need(counters[0] > 0, "a parent's memory is its own");
	counting = 0;
	pthread_join(other, NULL);
	return rounds;
}

/* ---- Signals: each queued one comes once, with its value. ---- */

static _Atomic uint64_t got_sum, got_count;
static _Atomic int listening = 1;

static void queued(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	got_sum += (uint64_t)info->si_value.sival_int;
	got_count++;
}

static void *listen_on(void *unused)
{
	uint64_t spins = 0;
	(void)unused;
	while (listening)
		spins++;
	return (void *)(uintptr_t)(spins != 0);
}

static unsigned long signals(void)
{
	unsigned long sent = 0;
	uint64_t sum = 0;
	struct sigaction action = { .sa_sigaction = queued, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigaction(SIGRTMIN, &action, NULL);
	pthread_t other = start(listen_on, NULL);
	for (; going_on(); sent++) {
		union sigval value = { .sival_int = (int)(sent % 1000) };
		need(!pthread_sigqueue(other, SIGRTMIN, value), "a signal can be sent");
		sum += sent % 1000;
		while (sent + 1 - got_count > 50)
			sched_yield();
	}
	while (got_count < sent && now() < end + 60)
		usleep(1000);
	need(got_count == sent && got_sum == sum, "each signal comes once and with its value");
	listening = 0;
	pthread_join(other, NULL);
	return sent;
}

/* ---- Migration: registers go with the thread from processor to processor. ---- */

static unsigned long migration(void)
{
	unsigned long rounds = 0;
	for (; going_on(); rounds++) {
		int to = (int)(rounds % (unsigned long)processors);
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(to, &set);
		uint64_t general = rounds * 0x9e3779b97f4a7c15u, xmm[2] = { general, ~general }, got[2];
		double x87 = (double)rounds + 0.5, back;
		long result;
		__asm__ volatile("movups %[xmm], %%xmm9\n\tfldl %[x87]\n\tmov %[general], %%r12\n\tsyscall\n\t"
				 "movups %%xmm9, %[got]\n\tfstpl %[back]\n\txor %%r12, %[general]"
				 : "=a"(result), [got] "=m"(got), [back] "=m"(back), [general] "+r"(general)
				 : "a"(203L), "D"(0L), "S"(sizeof set), "d"(&set), [xmm] "m"(xmm), [x87] "m"(x87)
				 : "rcx", "r11", "r12", "xmm9", "memory");
		need(result == 0, "a thread can be bound");
		need(sched_getcpu() == to, "a bound thread runs where it is bound to");
		need(got[0] == xmm[0] && got[1] == xmm[1], "XMM registers move with the thread");
		need(back == x87 && general == 0, "x87 and general registers move with the thread");
	}
	return rounds;
}

/* ---- Code that changes: written by one thread, run by the other, and by the writer itself. ---- */

static uint8_t *code;
static _Atomic uint32_t written, ran;

static void serialize(void)
{
	unsigned a, b, c, d;
	__cpuid(0, a, b, c, d);
}

static uint32_t call(const uint8_t *at)
{
	uint32_t (*function)(void);
	memcpy(&function, &at, sizeof function);
	return function();
}

static void *run_written(void *unused)
{
	(void)unused;
	for (uint32_t number = 1;; number++) {
		while (atomic_load(&written) < number)
			sched_yield();
		if (atomic_load(&written) == UINT32_MAX)
			return NULL;
		serialize();
		need(call(code + number % 16 * 64) == number, "the other thread's new code runs");
		atomic_store(&ran, number);
	}
}

static void write_code(uint8_t *at, uint32_t value)
{
	at[0] = 0xb8; /* MOV EAX, imm32; RET */
	memcpy(at + 1, &value, sizeof value);
	at[5] = 0xc3;
}

static unsigned long code_changes(void)
{
	uint32_t number = 0;
	code = pages(2, PROT_READ | PROT_WRITE | PROT_EXEC);
	pthread_t other = start(run_written, NULL);
	while (going_on()) {
		number++;
		write_code(code + number % 16 * 64, number);
		write_code(code + PAGE, ~number);
		atomic_store(&written, number);
		need(call(code + PAGE) == ~number, "a thread's own new code runs");
		while (atomic_load(&ran) < number)
			sched_yield();
	}
	atomic_store(&written, UINT32_MAX);
	pthread_join(other, NULL);
	return number;
}

/* ---- Locks: a counter behind a mutex, waiting by a condition. ---- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static uint64_t turns, last;

static void *take_turns(void *number)
{
	uint64_t own = (uintptr_t)number, taken = 0;
	pthread_mutex_lock(&mutex);
	while (!last) {
		while (turns % 3 != own && !last)
			pthread_cond_wait(&turned, &mutex);
		if (last)
			break;
		turns++;
		taken++;
		if (!going_on())
			last = turns;
		pthread_cond_broadcast(&turned);
	}
	pthread_mutex_unlock(&mutex);
	return (void *)(uintptr_t)taken;
}

static unsigned long locks(void)
{
	pthread_t ids[3];
	uint64_t sum = 0;
	for (uintptr_t n = 0; n < 3; n++)
		ids[n] = start(take_turns, (void *)n);
	for (int n = 0; n < 3; n++) {
		void *taken;
		pthread_join(ids[n], &taken);
		sum += (uintptr_t)taken;
	}
	need(sum == last, "no turn is lost and none is taken twice");
	return last;
}

static const struct part {
	const char *name;
	unsigned long (*run)(void);
} parts[] = {
	{ "mappings", mappings }, { "forks", forks }, { "signals", signals },
	{ "migration", migration }, { "code", code_changes }, { "locks", locks },
};

int main(int argc, char **argv)
{
	const size_t count = sizeof parts / sizeof *parts;
	int failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
	end = now() + (argc > 1 ? atol(argv[1]) : 10);
	for (size_t n = 0; n < count; n++) {
		pid_t child = fork();
		need(child >= 0, "fork works");
		if (!child) {
			unsigned long rounds = parts[n].run();
			printf("stress: %s: %lu rounds\n", parts[n].name, rounds);
			_exit(rounds == 0);
		}
	}
	for (size_t n = 0; n < count; n++) {
		int status = 0;
		failed |= wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status);
	}
	printf("stress: %s on %d processors\n", failed ? "failed" : "all is well", processors);
	return failed;
}
