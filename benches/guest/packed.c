/* Packed work, written with SSE2 intrinsics so that every compiler makes the same instructions of it. */
#include "bench.h"
#include <emmintrin.h>

uint64_t matrix_sse2(unsigned long rounds)
{
	enum { N = 128 };
	static float a[N][N] __attribute__((aligned(16))), b[N][N] __attribute__((aligned(16))), c[N][N] __attribute__((aligned(16)));
	uint64_t random = 1181783497, sum = 0;
	for (int i = 0; i < N * N; i++) {
		(&a[0][0])[i] = (float)(next_random(&random) % 1000) / 1000;
		(&b[0][0])[i] = (float)(next_random(&random) % 1000) / 1000;
	}
	while (rounds--) {
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j += 8) {
				__m128 low = _mm_setzero_ps(), high = _mm_setzero_ps();
				for (int k = 0; k < N; k++) {
					__m128 factor = _mm_set1_ps(a[i][k]);
					low = _mm_add_ps(low, _mm_mul_ps(factor, _mm_load_ps(&b[k][j])));
					high = _mm_add_ps(high, _mm_mul_ps(factor, _mm_load_ps(&b[k][j + 4])));
				}
				_mm_store_ps(&c[i][j], low);
				_mm_store_ps(&c[i][j + 4], high);
			}
		for (int i = 0; i < N; i++) {
			sum = mix(sum, bits_of(c[i][(i * 7) % N]));
			a[i][(i * 3) % N] = c[i][i] / 64;
		}
	}
	return sum;
}

uint64_t mandelbrot_sse2(unsigned long rounds)
{
	enum { WIDTH = 200, HEIGHT = 100, LIMIT = 200 };
	uint64_t sum = 0;
	for (unsigned long round = 0; round < rounds; round++)
		for (int row = 0; row < HEIGHT; row++)
			for (int column = 0; column < WIDTH; column += 2) {
				__m128d cr = _mm_set_pd(-2.0 + 3.0 * (column + 1) / WIDTH, -2.0 + 3.0 * column / WIDTH);
				__m128d ci = _mm_set1_pd(-1.0 + 2.0 * row / HEIGHT + (double)round * 1e-4);
				__m128d zr = _mm_setzero_pd(), zi = zr, counts = zr;
				for (int i = 0; i < LIMIT; i++) {
					__m128d rr = _mm_mul_pd(zr, zr), ii = _mm_mul_pd(zi, zi);
					__m128d inside = _mm_cmple_pd(_mm_add_pd(rr, ii), _mm_set1_pd(4.0));
					if (!_mm_movemask_pd(inside))
						break;
					counts = _mm_add_pd(counts, _mm_and_pd(inside, _mm_set1_pd(1.0)));
					__m128d ri = _mm_mul_pd(zr, zi);
					zi = _mm_add_pd(_mm_add_pd(ri, ri), ci);
					zr = _mm_add_pd(_mm_sub_pd(rr, ii), cr);
				}
				double both[2];
				_mm_storeu_pd(both, counts);
				sum = mix(sum, (uint64_t)both[0] << 16 | (uint64_t)both[1]);
			}
	return sum;
}

uint64_t integer_sse2(unsigned long rounds)
{
	enum { SIZE = 1 << 15 };
	static uint8_t a[SIZE] __attribute__((aligned(16))), b[SIZE] __attribute__((aligned(16)));
	uint64_t random = 98765432123456789u, sum = 0;
	for (int i = 0; i < SIZE; i++) {
		a[i] = (uint8_t)next_random(&random);
		b[i] = (uint8_t)(random >> 13);
	}
	const __m128i zero = _mm_setzero_si128();
	for (unsigned long round = 0; round < rounds; round++) {
		__m128i distance = zero, dot = zero, weight = _mm_set1_epi16((short)(round & 0xff));
		for (int i = 0; i < SIZE; i += 16) {
			__m128i x = _mm_load_si128((const __m128i *)(a + i)), y = _mm_load_si128((const __m128i *)(b + i));
			distance = _mm_add_epi64(distance, _mm_sad_epu8(x, y));
			__m128i low = _mm_unpacklo_epi8(x, zero), high = _mm_unpackhi_epi8(x, zero);
			dot = _mm_add_epi32(dot, _mm_madd_epi16(low, _mm_unpacklo_epi8(y, zero)));
			dot = _mm_add_epi32(dot, _mm_madd_epi16(high, _mm_unpackhi_epi8(y, zero)));
			low = _mm_srli_epi16(_mm_add_epi16(_mm_mullo_epi16(low, weight), _mm_set1_epi16(128)), 8);
			high = _mm_srli_epi16(_mm_add_epi16(_mm_mullo_epi16(high, weight), _mm_set1_epi16(128)), 8);
			__m128i blended = _mm_adds_epu8(_mm_packus_epi16(low, high), _mm_subs_epu8(y, x));
			__m128i larger = _mm_cmpgt_epi8(blended, y);
			y = _mm_or_si128(_mm_and_si128(larger, _mm_avg_epu8(blended, y)), _mm_andnot_si128(larger, _mm_shuffle_epi32(blended, 0x1b)));
			_mm_store_si128((__m128i *)(b + i), _mm_xor_si128(y, _mm_slli_si128(y, 1)));
		}
		uint64_t out[4];
		_mm_storeu_si128((__m128i *)out, distance);
		_mm_storeu_si128((__m128i *)(out + 2), dot);
		for (int i = 0; i < 4; i++)
			sum = mix(sum, out[i]);
	}
	return sum;
}
