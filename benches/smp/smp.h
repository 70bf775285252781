/* Parallel workloads: each does the same work however many threads share it, and returns a checksum of it. */
#ifndef SMP_H
#define SMP_H

#include "../guest/bench.h"

typedef uint64_t parallel(unsigned threads, unsigned long rounds);

/* compute.c: processes that have nothing to do with one another */
parallel hash, matrix;
/* locks.c: threads that do */
parallel mutex, atomic, futex_ping_pong, forks;

/* A figure of one processor acting on another, in nanoseconds. */
typedef double latency(unsigned long rounds);

/* latency.c */
latency ipi, wake, wake_idle, shootdown;

enum { MOST_THREADS = 64 };

/* Runs `body` in so many threads, each with its number, and waits for all. */
void in_threads(unsigned threads, void *(*body)(void *));
/* Binds the calling thread to one processor. */
void bind_to(int processor);
/* The monotonic clock in nanoseconds. */
uint64_t now_ns(void);

#endif
