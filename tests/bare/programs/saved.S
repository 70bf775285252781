/* State in every corner of the processor, ticks of two timers, and a clock that may not jump: what a machine that is
   saved and brought back in the middle has to keep.

expect: begins
expect: whole
*/
#include "bare.h"

#define APIC 0xfee00000
#define TICKS 250
#define SAVED (16 * 32 + 512 + 64)

	.globl main
main:
	movq $on_pit, handlers + 8 * 0x20
	movq $on_apic, handlers + 8 * 0x40
	/* The 8259s, only the timer's line open. */
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
	/* PIT channel 0, mode 2: 100 times a second. */
	mov $0x34, %al
	out %al, $0x43
	mov $0x9c, %al
	out %al, $0x40
	mov $0x2e, %al
	out %al, $0x40
	/* The APIC's timer, periodic, 10 ms: its clock is the bus's, divided by 1. */
	mov $APIC, %ebx
	movl $0x1ff, 0xf0(%rbx)
	movl $0xb, 0x3e0(%rbx)
	movl $0x20040, 0x320(%rbx)
	movl $10000000, 0x380(%rbx)
	/* AVX. */
	mov %cr4, %rax
	or $0x40000, %eax
	mov %rax, %cr4
	xor %ecx, %ecx
	xor %edx, %edx
	mov $7, %eax
	xsetbv
	/* FS and GS, a debug register, the system call's MSRs. */
	mov $0xc0000100, %ecx
	mov $0x11112222, %eax
	mov $0x7fff, %edx
	wrmsr
	mov $0xc0000102, %ecx
	mov $0x33334444, %eax
	wrmsr
	mov $0xc0000082, %ecx
	mov $0x55556666, %eax
	wrmsr
	mov $0x123456789ab, %rax
	mov %rax, %dr2
	ldmxcsr rounding
	fninit
	fldcw x87_control
	fldpi
	fldl2e
	fldln2
	/* Sixteen vectors, each with a pattern of its own. */
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	mov $0x0101010101010101 * (\n + 1), %rax
	vmovq %rax, %xmm\n
	vpbroadcastq %xmm\n, %ymm\n
	.endr
	vextractf128 $1, %ymm9, %xmm9 /* an upper half of zero */
	call take
	mov $first, %edi
	call put
	PRINT "begins\n"
	rdtsc
	shl $32, %rdx
	or %rdx, %rax
	mov %rax, last
	sti
again:
	call take
	mov $second, %edi
	call put
	mov $first, %esi
	mov $second, %edi
	mov $(SAVED >> 3), %ecx
	repe cmpsq
	jne broken
	/* Time goes on, and takes no leap: of 1000 s, at a nanosecond each. */
	rdtsc
	shl $32, %rdx
	or %rdx, %rax
	mov %rax, %rdx
	sub last, %rdx
	js backwards
	mov $1000000000000, %rcx
	cmp %rcx, %rdx
	ja leap
	mov %rax, last
	/* Flags that a comparison left live across what may come between. */
	mov $5, %eax
	cmp $7, %eax
	mov pit_ticks, %rbx
	mov apic_ticks, %rbp
	jae broken
	cmp $TICKS, %rbx
	jb again
	cmp $TICKS, %rbp
	jb again
	cli
	PRINT "whole\n"
	ret

broken:
	cli
	PRINT "registers are not what they were\n"
	ret
backwards:
	cli
	PRINT "time went backwards\n"
	ret
leap:
	cli
	PRINT "time leapt\n"
	ret


take: /* all of it to `area`; keeps vectors and x87 */
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovdqu %ymm\n, area + 32 * \n
	.endr
	fxsave64 area + 512
	mov $0xc0000100, %ecx
	rdmsr
	mov %eax, area + 1024
	mov %edx, area + 1028
	mov $0xc0000102, %ecx
	rdmsr
	mov %eax, area + 1032
	mov %edx, area + 1036
	mov $0xc0000082, %ecx
	rdmsr
	mov %eax, area + 1040
	mov %edx, area + 1044
	mov %dr2, %rax
	mov %rax, area + 1048
	mov %cr4, %rax
	mov %rax, area + 1056
	xor %ecx, %ecx
	xgetbv
	mov %eax, area + 1064
	ret

put: /* `area` to rdi */
	mov $area, %esi
	mov $(SAVED >> 3), %ecx
	rep movsq
	ret

on_pit:
	incq pit_ticks
	push %rax
	mov $0x20, %al
	out %al, $0x20
	pop %rax
	add $16, %rsp
	iretq

on_apic:
	incq apic_ticks
	push %rax
	mov $APIC, %eax
	movl $0, 0xb0(%rax)
	pop %rax
	add $16, %rsp
	iretq

	.data
	.balign 64
area:	.fill 2048, 1, 0
first:	.fill 2048, 1, 0
second:	.fill 2048, 1, 0
last:	.quad 0
pit_ticks: .quad 0
apic_ticks: .quad 0
rounding: .long 0x7f80 /* towards zero */
x87_control: .word 0x0f7f
