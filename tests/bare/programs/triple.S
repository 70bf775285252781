/* A fault without handlers: the processor shuts down.

expect: before
*/
#include "bare.h"

	.globl main
main:
	PRINT "before\n"
	movq $0, nothing
	lidt nothing
	mov $0xdeadbeef, %eax
	ud2

	.data
nothing: .quad 0, 0
