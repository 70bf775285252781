/* The workloads of the guest benchmark. Each does `rounds` units of work and returns a checksum of its results. */
#ifndef BENCH_H
#define BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t workload(unsigned long rounds);

/* integer.c */
workload sha256, coremark, calls, virtual_calls, muldiv, sorting;
/* interpreter.c */
workload bytecode;
/* memory.c */
workload chase, memcpy_loop, rep_strings;
/* floating.c */
workload nbody, spectral, x87;
/* packed.c */
workload matrix_sse2, mandelbrot_sse2, integer_sse2;
/* system.c */
workload getpid_loop, ping_pong, page_faults, fork_loop, exec_loop;
/* generated.c */
workload generated_code;

/* Mixes a value into a running checksum. */
static inline uint64_t mix(uint64_t sum, uint64_t value)
{
	sum ^= value + 0x9e3779b97f4a7c15u + (sum << 6) + (sum >> 2);
	return sum;
}

/* A small generator of reproducible numbers (xorshift). */
static inline uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* The bits of a double, for a checksum. */
static inline uint64_t bits_of(double value)
{
	uint64_t bits;
	memcpy(&bits, &value, sizeof bits);
	return bits;
}

/* Ends the program where the machine under it is wrong or too small. */
static inline void need(int holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "bench: %s\n", what);
		exit(2);
	}
}

#endif
