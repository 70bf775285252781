/* Interrupts: the PIT through the 8259s, the shadow of STI, HLT, the local APIC's timer, stacks.

expect: shadow of sti: 1 0
expect: popf opens: 1
expect: halt wakes: 1
expect: interrupt flag in handler: 0
expect: interrupt stack
expect: one-shot: 1
expect: periodic: 5
expect: masked: 0
expect: deadline: 1
expect: self: 1
expect: priority: 0 1
*/
#include "bare.h"

#define APIC 0xfee00000
#define COUNT r12

	.globl main
main:
	movq $on_pit, handlers + 8 * 0x20
	movq $on_apic, handlers + 8 * 0x40
	movq $on_apic, handlers + 8 * 0x51
	call start_controllers

	/* A pending interrupt comes one instruction after STI; CLI in that place keeps it out. */
	call one_tick_pending
	sti
	cli
	mov %COUNT, %rbx /* 0: the shadow covered CLI */
	sti
	nop
	cli
	PRINT "shadow of sti: "
	mov %COUNT, %rax
	call digit
	PRINT " "
	mov %rbx, %rax
	call digit
	PRINT "\n"

	call one_tick_pending
	pushq $0x202
	popfq
	nop
	cli
	PRINT "popf opens: "
	mov %COUNT, %rax
	call digit
	PRINT "\n"

	xor %COUNT, %COUNT
	call start_tick
	sti
	hlt
	cli
	PRINT "halt wakes: "
	mov %COUNT, %rax
	call digit
	PRINT "\ninterrupt flag in handler: "
	mov flags_seen, %rax
	shr $9, %rax
	and $1, %eax
	call digit
	PRINT "\n"

	/* A gate with an interrupt stack switches even in ring 0. */
	movb $1, gates + 16 * 0x20 + 4
	call one_tick_pending
	sti
	nop
	cli
	movb $0, gates + 16 * 0x20 + 4
	mov stack_seen, %rax
	sub $interrupt_stack_top - 64, %rax
	cmp $64, %rax
	ja 1f
	PRINT "interrupt stack\n"
1:
	/* The local APIC: software enable; divide by 1. */
	mov $APIC, %ebx
	movl $0x1ff, 0xf0(%rbx)
	movl $0xb, 0x3e0(%rbx)
	xor %COUNT, %COUNT
	movl $0x40, 0x320(%rbx)
	movl $100000, 0x380(%rbx)
	sti
1:	test %COUNT, %COUNT
	jz 1b
	call short_wait
	cli
	PRINT "one-shot: "
	mov %COUNT, %rax
	call digit
	PRINT "\n"

	xor %COUNT, %COUNT
	movl $0x20040, 0x320(%rbx)
	movl $1000000, 0x380(%rbx)
	sti
1:	hlt
	cmp $5, %COUNT
	jb 1b
	cli
	movl $0x30040, 0x320(%rbx)
	movl $0, 0x380(%rbx)
	PRINT "periodic: " /* a late look may have found more */
	cmp $5, %COUNT
	jbe 1f
	mov $5, %COUNT
1:	mov %COUNT, %rax
	call digit
	PRINT "\n"
	sti
	nop
	cli

	xor %COUNT, %COUNT
	movl $0x10040, 0x320(%rbx)
	movl $10000, 0x380(%rbx)
	sti
	call short_wait
	cli
	PRINT "masked: "
	mov %COUNT, %rax
	call digit
	PRINT "\n"

	/* TSC-deadline mode where the processor has it. */
	xor %COUNT, %COUNT
	mov $1, %eax
	cpuid
	mov $APIC, %ebx
	bt $24, %ecx
	jnc 2f
	movl $0x40040, 0x320(%rbx)
	mfence
	rdtsc
	shl $32, %rdx
	or %rdx, %rax
	add $2000000, %rax
	mov %rax, %rdx
	shr $32, %rdx
	mov $0x6e0, %ecx
	wrmsr
	sti
1:	hlt
	test %COUNT, %COUNT
	jz 1b
	cli
	jmp 3f
2:	mov $1, %COUNT
3:	PRINT "deadline: "
	mov %COUNT, %rax
	call digit
	PRINT "\n"

	xor %COUNT, %COUNT
	movl $0x40051, 0x300(%rbx) /* to itself */
	sti
	call wait_for_one
	cli
	PRINT "self: "
	mov %COUNT, %rax
	call digit
	PRINT "\n"

	/* The task priority holds class 5 back. */
	xor %COUNT, %COUNT
	mov $5, %eax
	mov %rax, %cr8
	movl $0x40051, 0x300(%rbx)
	sti
	call short_wait
	mov %COUNT, %rbp
	xor %eax, %eax
	mov %rax, %cr8
	call wait_for_one
	cli
	PRINT "priority: "
	mov %rbp, %rax
	call digit
	PRINT " "
	mov %COUNT, %rax
	call digit
	PRINT "\n"
	ret

on_pit:
	push %rax
	inc %COUNT
	mov %rsp, stack_seen
	pushfq
	popq flags_seen
	mov $0x20, %al
	out %al, $0x20
	pop %rax
	add $16, %rsp
	iretq

on_apic:
	inc %COUNT
	push %rax
	mov $APIC, %eax
	movl $0, 0xb0(%rax)
	pop %rax
	add $16, %rsp
	iretq

digit: /* rax */
	push %rax
	add $'0', %eax
	out %al, $0xe9
	pop %rax
	ret

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

start_tick: /* PIT channel 0, mode 0: one edge after 1 ms */
	mov $0x30, %al
	out %al, $0x43
	mov $0xa9, %al
	out %al, $0x40
	mov $0x04, %al
	out %al, $0x40
	ret

one_tick_pending: /* with interrupts off, until the PIC has the request */
	xor %COUNT, %COUNT
	call start_tick
	mov $0x0a, %al /* OCW3: reads give the requests */
	out %al, $0x20
1:	in $0x20, %al
	test $1, %al
	jz 1b
	ret

short_wait: /* port reads take their time: far more than the timer's 100000 cycles */
	mov $30000, %ecx
1:	in $0x61, %al
	loop 1b
	ret

wait_for_one: /* messages between APICs take their time: until one came, or for long */
	mov $100000000, %ecx
1:	test %COUNT, %COUNT
	jnz 2f
	pause
	loop 1b
2:	ret

	.data
stack_seen: .quad 0
flags_seen: .quad 0
