/* What time it is, asked in every way, and where the timers' interrupts come: with -icount a matter of the instructions
   executed alone, so that everything printed is the same in each run. Without -icount it prints something else each time.
   The first line is exact: with -icount shift=1 an instruction takes two counts of the TSC.

expect: twelve instructions: 0000000000000018
*/
#include "bare.h"

#define HPET 0xfed00000
#define APIC 0xfee00000
#define PM_TIMER 0x608
#define TICKS 24
#define COUNT r12
#define WORK r13
#define NOTE r14

	.globl main
main:
	mov $2, %ebp
	/* Twice: the second time may be in compiled code. */
1:	rdtsc
	mov %eax, %ebx
	.rept 10
	nop
	.endr
	rdtsc
	sub %ebx, %eax
	dec %ebp
	jnz 1b
	PRINT "twelve instructions: "
	HEX %rax
	PRINT "\n"

	movq $on_pit, handlers + 8 * 0x20
	movq $on_apic, handlers + 8 * 0x40
	mov $notes, %r14d
	xor %COUNT, %COUNT
	xor %WORK, %WORK
	/* The HPET's counter runs; the local APIC's timer is periodic, out of step with the PIT. */
	mov $HPET, %r15d
	movq $1, 0x10(%r15)
	mov $APIC, %ebx
	movl $0x1ff, 0xf0(%rbx)
	movl $0xb, 0x3e0(%rbx)
	movl $0x20040, 0x320(%rbx)
	movl $777777, 0x380(%rbx)
	call start_controllers
	mov $0x34, %al /* PIT channel 0, mode 2, each 1111 counts */
	out %al, $0x43
	mov $0x57, %al
	out %al, $0x40
	mov $0x04, %al
	out %al, $0x40
	sti

	/* Calls, memory, string instructions, device registers in the middle of it, and windows in which interrupts wait. */
2:	inc %WORK
	mov $7, %ecx
3:	call function
	test $1, %cl
	jz 4f
	nop
4:	dec %ecx
	jnz 3b
	mov $scratch, %edi
	mov $300, %ecx
	xor %eax, %eax
	rep stosb
	test $63, %r13b
	jnz 5f
	mov 0xf0(%r15), %rax
	add %rax, sum
	mov $PM_TIMER, %edx
	in %dx, %eax
	add %rax, sum
	in $0x40, %al
	add %rax, sum
5:	test $15, %r13b
	jnz 6f
	cli
	mov $50, %ecx
	loop .
	sti
	nop
6:	cmp $TICKS, %COUNT
	jb 2b

	/* Halted, until time has passed. */
	hlt
	call note_time
	hlt
	call note_time
	hlt
	call note_time
	cli

	mov $notes, %esi
7:	cmp %r14, %rsi
	jae 8f
	mov (%rsi), %rax
	HEX %rax
	PRINT "\n"
	add $8, %rsi
	jmp 7b
8:	mov sum, %rax
	HEX %rax
	PRINT "\n"
	HEX %r13
	PRINT "\n"
	mov 0xf0(%r15), %rax
	HEX %rax
	PRINT "\n"
	mov $PM_TIMER, %edx
	in %dx, %eax
	HEX %rax
	PRINT "\n"
	ret

function:
	push %rcx
	add $3, %WORK
	pop %rcx
	ret

note_time:
	rdtsc
	shl $32, %rdx
	or %rdx, %rax
note: /* rax */
	mov %rax, (%r14)
	add $8, %r14
	ret

on_pit: /* on the stack: vector, error code, RIP */
	inc %COUNT
	push %rax
	push %rdx
	mov 32(%rsp), %rax
	call note
	mov %WORK, %rax
	call note
	call note_time
	mov $0x20, %al
	out %al, $0x20
	pop %rdx
	pop %rax
	add $16, %rsp
	iretq

on_apic:
	push %rax
	push %rdx
	mov 32(%rsp), %rax
	call note
	mov $APIC, %eax
	mov 0x390(%rax), %eax
	call note
	mov $APIC, %eax
	movl $0, 0xb0(%rax)
	pop %rdx
	pop %rax
	add $16, %rsp
	iretq

start_controllers: /* vectors 0x20 and 0x28, only the timer's line open */
	mov $0x11, %al
	out %al, $0x20
	out %al, $0xa0
	mov $0x20, %al
	out %al, $0x21
	mov $0x28, %al
	out %al, $0xa1
	mov $4, %al
	out %al, $0x21
	mov $2, %al
	out %al, $0xa1
	mov $1, %al
	out %al, $0x21
	out %al, $0xa1
	mov $0xfe, %al
	out %al, $0x21
	mov $0xff, %al
	out %al, $0xa1
	ret

	.bss
	.balign 8
sum:	.skip 8
notes:	.skip 8 * 4096
scratch: .skip 512
