/* For a debugger: instructions that do not simply lead to the next one, code that is rewritten, a second processor in 16-bit
   mode; round and round until somebody sets `enough`.

expect: enough
*/
#include "bare.h"

#define APIC 0xfee00000
#define AP_CODE 0x8000
#define AP_COUNT 0x9000

	.globl main, tick, at_spot, at_ud, on_ud, at_iret, after_iret, at_syscall, entry, at_hlt, after_hlt, after_vectors
	.globl rounds, enough, halts, at_rep, after_rep
main:
	movq $on_ud, handlers + 8 * 6
	movq $on_nmi, handlers + 8 * 2
	mov $0xc0000081, %ecx /* STAR: see syscall.S */
	xor %eax, %eax
	mov $0x00230008, %edx
	wrmsr
	mov $0xc0000082, %ecx
	mov $entry, %eax
	xor %edx, %edx
	wrmsr
	/* Vector registers of 32 bytes, where there are any. */
	mov $1, %eax
	cpuid
	bt $28, %ecx
	jnc after_vectors
	mov %cr4, %rax
	or $0x40000, %rax
	mov %rax, %cr4
	xor %ecx, %ecx
	xor %edx, %edx
	mov $7, %eax
	xsetbv
	vbroadcastsd pattern, %ymm5
after_vectors:
	/* The second processor: INIT, then start-up at AP_CODE. */
	mov $second, %esi
	mov $AP_CODE, %edi
	mov $(second_end - second), %ecx
	rep movsb
	mov $APIC, %ebx
	movl $0x1ff, 0xf0(%rbx)
	movl $0xc4500, 0x300(%rbx)
	movl $(0xc4600 | AP_CODE >> 12), 0x300(%rbx)

round:
tick:	incq rounds
	/* An instruction that is another one in each round. */
	mov rounds, %al
	mov %al, at_spot + 1
at_spot: mov $0, %bl
	nop
	mov $target, %edi
	mov $3, %ecx
at_rep:	rep stosb
after_rep:
	nop
at_ud:	ud2
	nop
	mov %rsp, %rax
	pushq $KERNEL_DATA
	pushq %rax
	pushq $2
	pushq $KERNEL_CODE
	pushq $after_iret
at_iret: iretq
	nop
after_iret:
	nop
at_syscall: syscall
	nop
after_syscall: /* back to a selector that IRET can load */
	pushq $KERNEL_CODE
	pushq $1f
	lretq
1:	cmpl $0, halts
	je 2f
at_hlt:	hlt
after_hlt:
	nop
2:	cmpl $0, enough
	je round
	PRINT "enough\n"
	ret

entry:	jmp after_syscall

on_ud: /* vector and error code lie before what IRET takes */
	add $16, %rsp
	addq $2, (%rsp)
	iretq

on_nmi:	add $16, %rsp
	movl $0, halts
	iretq

	.code16
second:
	xor %ax, %ax
	mov %ax, %ds
1:	incl AP_COUNT
	nop
	jmp 1b
second_end:
	.code64

	.data
	.balign 8
rounds:	.quad 0
enough:	.long 0
halts:	.long 0
target:	.quad 0
pattern: .quad 0x1122334455667788
