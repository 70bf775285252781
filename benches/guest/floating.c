/* Scalar floating point: double in SSE2 registers, and long double on the x87 stack. */
#include "bench.h"

static double square_root(double x)
{
	double root;
	__asm__("sqrtsd %1, %0" : "=x"(root) : "x"(x));
	return root;
}

struct body {
	double at[3], speed[3], mass;
};

static double energy(const struct body *bodies, int count)
{
	double sum = 0;
	for (int i = 0; i < count; i++) {
		const struct body *a = &bodies[i];
		sum += 0.5 * a->mass * (a->speed[0] * a->speed[0] + a->speed[1] * a->speed[1] + a->speed[2] * a->speed[2]);
		for (int j = i + 1; j < count; j++) {
			double d = 0;
			for (int k = 0; k < 3; k++)
				d += (a->at[k] - bodies[j].at[k]) * (a->at[k] - bodies[j].at[k]);
			sum -= a->mass * bodies[j].mass / square_root(d);
		}
	}
	return sum;
}

static void advance(struct body *bodies, int count, double step)
{
	for (int i = 0; i < count; i++)
		for (int j = i + 1; j < count; j++) {
			double d[3], distance = 0;
			for (int k = 0; k < 3; k++) {
				d[k] = bodies[i].at[k] - bodies[j].at[k];
				distance += d[k] * d[k];
			}
			double magnitude = step / (distance * square_root(distance));
			for (int k = 0; k < 3; k++) {
				bodies[i].speed[k] -= d[k] * bodies[j].mass * magnitude;
				bodies[j].speed[k] += d[k] * bodies[i].mass * magnitude;
			}
		}
	for (int i = 0; i < count; i++)
		for (int k = 0; k < 3; k++)
			bodies[i].at[k] += step * bodies[i].speed[k];
}

uint64_t nbody(unsigned long rounds)
{
	enum { COUNT = 6 };
	struct body bodies[COUNT];
	uint64_t random = 123456789, sum = 0;
	for (int i = 0; i < COUNT; i++) {
		for (int k = 0; k < 3; k++) {
			bodies[i].at[k] = (double)(next_random(&random) % 20000) / 1000 - 10 + 5 * i;
			bodies[i].speed[k] = (double)(next_random(&random) % 2000) / 1000 - 1;
		}
		bodies[i].mass = i ? 0.01 * i : 39.5;
	}
	while (rounds--) {
		for (int i = 0; i < 1000; i++)
			advance(bodies, COUNT, 0.001);
		sum = mix(sum, bits_of(energy(bodies, COUNT)));
	}
	return sum;
}

/* The largest singular value of the matrix 1 / ((i + j)(i + j + 1) / 2 + i + 1), by power iteration. */

static double element(int i, int j)
{
	return 1.0 / ((i + j) * (i + j + 1) / 2 + i + 1);
}

static void times(const double *v, double *out, int n, int transposed)
{
	for (int i = 0; i < n; i++) {
		double sum = 0;
		for (int j = 0; j < n; j++)
			sum += (transposed ? element(j, i) : element(i, j)) * v[j];
		out[i] = sum;
	}
}

uint64_t spectral(unsigned long rounds)
{
	enum { N = 300 };
	static double u[N], v[N], between[N];
	for (int i = 0; i < N; i++)
		u[i] = 1;
	while (rounds--) {
		times(u, between, N, 0);
		times(between, v, N, 1);
		times(v, between, N, 0);
		times(between, u, N, 1);
	}
	double uv = 0, vv = 0;
	for (int i = 0; i < N; i++)
		uv += u[i] * v[i], vv += v[i] * v[i];
	return bits_of(square_root(uv / vv));
}

static uint64_t bits_of_extended(long double value)
{
	uint64_t words[2] = { 0 };
	memcpy(words, &value, 10);
	return mix(words[0], words[1]);
}

uint64_t x87(unsigned long rounds)
{
	uint64_t sum = 0;
	long double x = 0.3L;
	while (rounds--) {
		long double series = 0, product = 1, root, exponent, rest;
		for (int i = 1; i < 20000; i++) {
			x = 3.75L * x * (1 - x);
			series += x / i;
			product = product * (1 + x / 1000) / 1.0006L;
		}
		for (int i = 0; i < 2000; i++) {
			__asm__("fsqrt" : "=t"(root) : "0"(series + i));
			__asm__("fxtract" : "=t"(rest), "=u"(exponent) : "0"(x + i % 7));
			__asm__("frndint" : "=t"(rest) : "0"(root * 100));
			product += root + exponent - rest / 100;
			sum += (uint64_t)(int64_t)(product * 16);
		}
		sum = mix(sum, bits_of_extended(series));
		sum = mix(sum, bits_of_extended(product));
	}
	return sum;
}
