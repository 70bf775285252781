/* An interpreter of byte code: a loop of unpredictable indirect jumps. */
#include "bench.h"

enum opcode { PUSH, LOAD, STORE, ADD, SUB, MUL, MOD, LESS, JUMP, JUMP_IF_NOT, HALVE, SKIP, HALT };

/* Counts the steps of 3n+1 sequences for every n below 3000 and sums them, modulo a prime. */
static const int32_t program[] = {
	/*  0 */ PUSH, 1, STORE, 0, PUSH, 0, STORE, 1,           /* n = 1, sum = 0 */
	/*  8 */ LOAD, 0, PUSH, 3000, LESS, JUMP_IF_NOT, 67,     /* while n < 3000 */
	/* 15 */ LOAD, 0, STORE, 2,                              /* x = n */
	/* 19 */ PUSH, 1, LOAD, 2, LESS, JUMP_IF_NOT, 58,        /* while 1 < x */
	/* 26 */ LOAD, 2, PUSH, 2, MOD, JUMP_IF_NOT, 44,         /* if x is odd */
	/* 33 */ LOAD, 2, PUSH, 3, MUL, PUSH, 1, ADD, STORE, 2, SKIP, /* x = 3x + 1 */
	/* 44 */ LOAD, 2, HALVE, STORE, 2,                   /* x = x / 2 */
	/* 49 */ LOAD, 1, PUSH, 1, ADD, STORE, 1, JUMP, 19,      /* sum += 1 */
	/* 58 */ LOAD, 0, PUSH, 1, ADD, STORE, 0, JUMP, 8,       /* n += 1 */
	/* 67 */ LOAD, 1, HALT,
};

static uint64_t interpret(void)
{
	int64_t stack[16], variables[4] = { 0 };
	int top = 0;
	for (const int32_t *at = program;;) {
		switch (*at++) {
		case PUSH: stack[top++] = *at++; break;
		case LOAD: stack[top++] = variables[*at++]; break;
		case STORE: variables[*at++] = stack[--top]; break;
		case ADD: top--, stack[top - 1] += stack[top]; break;
		case SUB: top--, stack[top - 1] -= stack[top]; break;
		case MUL: top--, stack[top - 1] *= stack[top]; break;
		case MOD: top--, stack[top - 1] %= stack[top]; break;
		case LESS: top--, stack[top - 1] = stack[top - 1] < stack[top]; break;
		case JUMP: at = program + *at; break;
		case JUMP_IF_NOT: at = stack[--top] ? at + 1 : program + *at; break;
		case HALVE: stack[top - 1] /= 2; break;
		case SKIP: break;
		default: return (uint64_t)stack[top - 1];
		}
	}
}

uint64_t bytecode(unsigned long rounds)
{
	uint64_t sum = 0;
	while (rounds--)
		sum = mix(sum, interpret());
	return sum;
}
