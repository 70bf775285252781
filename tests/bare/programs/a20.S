/* The A20 gate, by port 0x92 and by the keyboard controller: while it is closed, odd megabytes are the even ones.

expect: at first: 1 2
expect: closed by port 92: 1 1
expect: stored through the odd address: 3 3
expect: opened by port 92: 3 2
expect: closed by the output port: 3 3
expect: opened by the output port: 3 2
expect: closed by command DD: 3 3
expect: opened by command DF: 3 2
expect: code behind the closed gate: 5
expect: code behind the open gate: 6
*/
#include "bare.h"

#define EVEN 0x400000
#define ODD 0x500000
#define CODE_AT 0x1000

/* Prints the bytes at both addresses. */
.macro BOTH text
	PRINT "\text"
	mov EVEN, %al
	call digit
	PRINT " "
	mov ODD, %al
	call digit
	PRINT "\n"
.endm

.macro PORT92 bits
	in $0x92, %al
	and $~2, %al
	or $\bits, %al
	out %al, $0x92
.endm

	.globl main
main:
	movb $1, EVEN
	movb $2, ODD
	/* mov al, n; ret */
	movl $0xc305b0, EVEN + CODE_AT
	movl $0xc306b0, ODD + CODE_AT
	BOTH "at first: "
	PORT92 0
	BOTH "closed by port 92: "
	movb $3, ODD
	BOTH "stored through the odd address: "
	PORT92 2
	BOTH "opened by port 92: "

	mov $0xd1, %al
	out %al, $0x64
	mov $0xdd, %al
	out %al, $0x60
	BOTH "closed by the output port: "
	mov $0xd1, %al
	out %al, $0x64
	mov $0xdf, %al
	out %al, $0x60
	BOTH "opened by the output port: "

	mov $0xdd, %al
	out %al, $0x64
	BOTH "closed by command DD: "
	mov $0xdf, %al
	out %al, $0x64
	BOTH "opened by command DF: "

	/* Often enough to be compiled. */
	PORT92 0
	mov $ODD + CODE_AT, %ebx
	mov $100, %ebp
1:	call *%rbx
	dec %ebp
	jnz 1b
	PRINT "code behind the closed gate: "
	call digit
	PORT92 2
	mov $100, %ebp
1:	call *%rbx
	dec %ebp
	jnz 1b
	PRINT "\ncode behind the open gate: "
	call digit
	PRINT "\n"
	ret

digit: /* al */
	push %rax
	add $'0', %al
	out %al, $0xe9
	pop %rax
	ret
