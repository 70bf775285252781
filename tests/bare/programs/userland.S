/* For a profile: a program in ring 3 that never ends. */
#include "bare.h"

	.globl main, program, busy
main:
	RING3(program)
	ret

program: call busy
	jmp program

busy:	mov $100000, %ecx
1:	dec %ecx
	jnz 1b
	ret
