/*
 * Two functions that count down for ever, one for three times as long as the other.
 */
#include "bare.h"

	.globl main, heavy, light
main:	mov $3000000, %ecx
	call heavy
	mov $1000000, %ecx
	call light
	jmp main

heavy:	dec %ecx
	jnz heavy
	ret

light:	dec %ecx
	jnz light
	ret
