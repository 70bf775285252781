/* For a debugger: counts for ever, until somebody sets `enough`.

expect: enough
*/
#include "bare.h"

	.globl main, work, fill, counter, enough, shown, loops
main:
	xor %ebp, %ebp
loops:	call work
	inc %rbp
	cmpl $0, enough
	je loops
	PRINT "enough\n"
	ret

work:	mov counter, %rax
	inc %rax
	mov %rax, counter
	movq %rax, %xmm0
	lea shown, %rdi
	mov $4, %ecx
fill:	rep stosb
	ret

	.data
	.balign 8
counter: .quad 0
enough:	.long 0
shown:	.quad 0
