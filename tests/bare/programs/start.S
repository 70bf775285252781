/* The way from multiboot's 32-bit protected mode to `main` in long mode; exception handlers; printing. */
#include "bare.h"

	.section .multiboot, "a"
	.balign 4
	.long 0x1badb002, 0, -0x1badb002

	.text
	.code32
	.globl _start
_start:
	cli
	lgdt gdt_pointer
	/* PAE, FXSAVE and SIMD exceptions; then long mode with SYSCALL and NX; then paging with write protection. */
	mov $0x620, %eax
	mov %eax, %cr4
	mov $top_table, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	rdmsr
	or $0x901, %eax
	wrmsr
	mov $0x80010033, %eax
	mov %eax, %cr0
	ljmp $KERNEL_CODE, $long_mode

	.code64
long_mode:
	mov $KERNEL_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %eax, %fs
	mov %eax, %gs
	mov $stack_top, %esp
	/* The gates point to the stubs, 16 bytes apart. */
	mov $gates, %edi
	mov $stubs, %eax
	mov $256, %ecx
1:	mov %ax, (%rdi)
	movw $KERNEL_CODE, 2(%rdi)
	movw $0x8e00, 4(%rdi)
	mov %eax, %edx
	shr $16, %edx
	mov %dx, 6(%rdi)
	movq $0, 8(%rdi)
	add $16, %edi
	add $16, %eax
	loop 1b
	movb $0xee, gates + 16 * 0x80 + 5
	lidt idt_pointer
	/* The task state's stack for ring 0, interrupt stack 1, and the I/O permission map behind it. */
	movq $stack_top, task_state + 4
	movq $interrupt_stack_top, task_state + 36
	movw $104, task_state + 102
	mov $task_state, %eax
	mov %ax, gdt + TASK + 2
	shr $16, %eax
	mov %al, gdt + TASK + 4
	mov %ah, gdt + TASK + 7
	mov $TASK, %eax
	ltr %ax
	/* Mask both interrupt controllers. */
	mov $0xff, %al
	out %al, $0x21
	out %al, $0xa1
	call main
	.globl finish
finish:
	mov $0x10, %eax
	out %eax, $0xf4
1:	hlt
	jmp 1b

	.globl print_text
print_text: /* rsi: the text */
	push %rax
	pushfq
	cld
1:	lodsb
	test %al, %al
	jz 2f
	out %al, $0xe9
	jmp 1b
2:	popfq
	pop %rax
	ret

	.globl print_hex
print_hex: /* rdi: the number */
	push %rax
	push %rcx
	push %rdi
	pushfq
	mov $16, %ecx
1:	rol $4, %rdi
	mov %edi, %eax
	and $15, %eax
	add $'0', %eax
	cmp $'9', %eax
	jbe 2f
	add $('a' - '9' - 1), %eax
2:	out %al, $0xe9
	loop 1b
	popfq
	pop %rdi
	pop %rcx
	pop %rax
	ret

	.balign 16
stubs:
	.set vector, 0
	.rept 256
	.balign 16
	/* The vectors that come with an error code: SDM 3A table 6-1. */
	.if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
	.else
	push $0
	.endif
	push $vector
	jmp exception
	.set vector, vector + 1
	.endr

exception: /* on the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS */
	push %rax
	push %rdi
	mov 16(%rsp), %rax
	/* A program may take a vector for itself. */
	mov handlers(, %rax, 8), %rdi
	test %rdi, %rdi
	jz 1f
	mov %rdi, handler
	pop %rdi
	pop %rax
	jmp *handler
1:	PRINT "exception "
	mov 16(%rsp), %rdi
	call print_hex
	PRINT " error "
	mov 24(%rsp), %rdi
	call print_hex
	cmpq $14, 16(%rsp)
	jne 2f
	PRINT " address "
	mov %cr2, %rdi
	call print_hex
2:	cmpq $1, 16(%rsp)
	jne 2f
	PRINT " dr6 "
	mov %dr6, %rdi
	call print_hex
	mov $0xffff0ff0, %edi
	mov %rdi, %dr6
2:	mov 32(%rsp), %rdi
	sub provoked_at, %rdi
	jz 3f
	PRINT " rip+"
	call print_hex
3:	testb $3, 40(%rsp)
	jz 3f
	PRINT " from ring 3"
3:	PRINT "\n"
	mov $KERNEL_DATA, %eax
	mov %eax, %ss
	mov %eax, %ds
	mov %eax, %es
	mov resume_stack, %rsp
	jmp *resume_at

	.data
	.balign 16
	.globl gdt
gdt:	.quad 0
	.quad 0x00cf9b000000ffff /* 32-bit code */
	.quad 0x00cf93000000ffff /* data */
	.quad 0x00af9b000000ffff /* 64-bit code */
	.quad 0x00cffb000000ffff /* user, 32-bit code */
	.quad 0x00cff3000000ffff /* user, data */
	.quad 0x00affb000000ffff /* user, 64-bit code */
	.quad 0x0000890000000000 + 104 + 8192, 0 /* task */
	.quad 0x4040930000000fff /* small data, at WINDOW */
	.quad 0x00cf13000000ffff /* absent */
	.quad 0x00c0970000000000 /* expand-down: from 0x1000 up */
	.quad 0x00cf91000000ffff /* read-only */
	.quad 0x00cf99000000ffff /* execute-only */
	.quad 0x00cf9b000000ffff /* compatibility mode */
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt
idt_pointer:
	.word 4095
	.quad gates

	.globl handlers, resume_at, resume_stack, provoked_at
handlers: .fill 256, 8, 0
handler: .quad 0
resume_at: .quad 0
resume_stack: .quad 0
provoked_at: .quad 0

	.balign 4096
top_table:
	.quad lower_gigabytes + 0x7
	.fill 511, 8, 0
lower_gigabytes:
	.quad first_gigabyte + 0x7, second_gigabyte + 0x7, 0
	.quad 0xc0000000 + 0x83 /* the gigabyte of the APICs, as one page */
	.fill 508, 8, 0
first_gigabyte: /* user code may run anywhere here: programs take that away where they need to */
	.set at, 0
	.rept 512
	.quad at + 0x87
	.set at, at + 0x200000
	.endr
second_gigabyte:
	.quad page_table + 0x7
	.fill 511, 8, 0
	.globl page_table, top_table, first_gigabyte
page_table:
	.set at, WINDOW_RAM
	.rept 512
	.quad at + 0x3
	.set at, at + 0x1000
	.endr

	.bss
	.balign 4096
	.globl gates, task_state, user_stack_top, stack_top, interrupt_stack_top
gates:	.skip 4096
task_state: .skip 104 + 8193
	.balign 16
	.skip 8192
stack_top:
	.skip 8192
user_stack_top:
	.skip 4096
interrupt_stack_top:
