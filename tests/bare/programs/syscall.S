/* SYSCALL and SYSRET, SYSENTER, SWAPGS, IRET to ring 3 and to compatibility mode, segment limits there, far calls.

expect: syscall from ring 3: rcx ok r11 ok if 0 cpl 0
expect: swapgs: 1111 2222
expect: sysret to 32 bits: 23
expect: sysret: back
expect: compatibility mode: 00000000ffffffff
expect: limit
expect: exception 000000000000000d error 0000000000000000
expect: exception 000000000000000d error 0000000000000000
expect: no exception
expect: expand-down
expect: exception 000000000000000d error 0000000000000000
expect: no exception
expect: read-only
expect: exception 000000000000000d error 0000000000000000
expect: null
expect: exception 000000000000000d error 0000000000000000
expect: bound: exception 0000000000000005 error 0000000000000000
expect: into: exception 0000000000000004 error 0000000000000000 rip+0000000000000001
*/
#include "bare.h"

	.globl main
main:
	/* STAR: SYSCALL's selectors from 0x18 - 8... CS = 0x18, SS = 0x20 would be no data segment, so the table has its own
	   pair: CS 0x08 is 32-bit code that SYSCALL overrides with fixed attributes, SS 0x10. SYSRET: 0x20 + 16 and + 8. */
	mov $0xc0000081, %ecx
	xor %eax, %eax
	mov $0x00230008, %edx
	wrmsr
	mov $0xc0000082, %ecx
	mov $entry, %eax
	xor %edx, %edx
	wrmsr
	mov $0xc0000084, %ecx /* clears IF and DF */
	mov $0x600, %eax
	wrmsr
	xor %eax, %eax /* IRET to ring 3 takes segments of ring 0 away, and some processors their base with it */
	mov %eax, %gs
	mov $0xc0000101, %ecx
	mov $gs_one, %eax
	wrmsr
	mov $0xc0000102, %ecx
	mov $gs_two, %eax
	wrmsr

	RING3(user)
	PRINT "sysret: back\n"

	/* Far return to a 32-bit code segment in ring 0. */
	mov %rsp, saved_stack
	pushq $CODE32
	pushq $narrow
	lretq

	.code32
narrow:
	/* 32-bit operands and addresses: -1 + -1 wraps at 4 GiB, and INC is a one-byte instruction. */
	mov $0xfffffffe, %eax
	.byte 0x40
	ljmp $KERNEL_CODE, $wide
	.code64
wide:
	mov saved_stack, %rsp
	PRINT "compatibility mode: "
	mov %eax, %eax
	HEX %rax
	PRINT "\nlimit\n"

	mov $limit_reads, %ebx
	call in_compatibility_mode
	mov $limit_straddles, %ebx
	call in_compatibility_mode
	mov $limit_fits, %ebx
	call in_compatibility_mode
	PRINT "expand-down\n"
	mov $down_below, %ebx
	call in_compatibility_mode
	mov $down_above, %ebx
	call in_compatibility_mode
	PRINT "read-only\n"
	mov $writes_read_only, %ebx
	call in_compatibility_mode
	PRINT "null\n"
	mov $uses_null, %ebx
	call in_compatibility_mode
	PRINT "bound: "
	mov $out_of_bounds, %ebx
	call in_compatibility_mode
	PRINT "into: "
	mov $overflows, %ebx
	call in_compatibility_mode
	ret

/* Runs the 32-bit code at rbx: it sets segments, loads the address of its fault into edi, and jumps to `came_through`
   when there was none. */
in_compatibility_mode:
	mov %rsp, resume_stack
	movq $1f, resume_at
	pushq $CODE32
	push %rbx
	lretq
came_through_wide:
	mov $KERNEL_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov resume_stack, %rsp
	PRINT "no exception\n"
1:	ret

	.code32
limit_reads:
	movl $7f, provoked_at
	mov $SMALL_DATA, %eax
	mov %eax, %es
7:	mov %es:0x1000, %al
	jmp came_through
limit_straddles:
	movl $7f, provoked_at
	mov $SMALL_DATA, %eax
	mov %eax, %es
7:	mov %es:0xffd, %eax
	jmp came_through
limit_fits:
	movl $7f, provoked_at
	mov $SMALL_DATA, %eax
	mov %eax, %es
7:	mov %es:0xffc, %eax
	jmp came_through
down_below:
	movl $7f, provoked_at
	mov $DOWN_DATA, %eax
	mov %eax, %es
7:	mov %es:0xfff, %al
	jmp came_through
down_above:
	movl $7f, provoked_at
	mov $DOWN_DATA, %eax
	mov %eax, %es
7:	mov %es:0x1000, %al
	jmp came_through
writes_read_only:
	movl $7f, provoked_at
	mov $READ_ONLY_DATA, %eax
	mov %eax, %es
7:	mov %al, %es:0x400000
	jmp came_through
uses_null:
	movl $7f, provoked_at
	xor %eax, %eax
	mov %eax, %es
7:	mov %es:0x400000, %al
	jmp came_through
out_of_bounds:
	movl $7f, provoked_at
	mov $-5, %eax
7:	bound %eax, bounds
	jmp came_through
overflows:
	movl $7f, provoked_at
	mov $0x7fffffff, %eax
	inc %eax
7:	into
	jmp came_through
came_through:
	ljmp $KERNEL_CODE, $came_through_wide

	.code64
user:
	mov $user_stack_top, %esp
	std
	syscall
returned:
	cld
	int $0x80

entry: /* RCX holds the return address, R11 the flags */
	mov %rsp, %rdi
	mov resume_stack, %rsp
	PRINT "syscall from ring 3:"
	cmp $returned, %rcx
	jne 1f
	PRINT " rcx ok"
1:	bt $10, %r11
	jnc 1f
	PRINT " r11 ok"
1:	pushfq
	pop %rax
	PRINT " if "
	shr $9, %eax
	and $3, %eax /* IF and DF */
	call digit
	PRINT " cpl "
	mov %cs, %eax
	and $3, %eax
	call digit
	PRINT "\nswapgs: "
	mov %gs:0, %rax
	call four
	swapgs
	PRINT " "
	mov %gs:0, %rax
	call four
	PRINT "\nsysret to 32 bits: "
	mov $on_80, %eax
	mov %rax, handlers + 8 * 0x80
	mov $user32, %ecx
	mov $2, %r11d
	sysretl

on_80: /* first from the 32-bit code, whose code selector it shows; then on to 64 bits */
	movq $0, handlers + 8 * 0x80
	mov 24(%rsp), %rax
	and $0xff, %eax
	push %rax
	shr $4, %eax
	call digit
	pop %rax
	and $15, %eax
	call digit
	PRINT "\n"
	mov $returned_wide, %ecx
	mov $2, %r11d
	sysretq

returned_wide:
	movq $on_last, handlers + 8 * 0x80
	int $0x80

on_last:
	movq $0, handlers + 8 * 0x80
	mov $KERNEL_DATA, %eax
	mov %eax, %ss
	mov %eax, %ds
	mov %eax, %es
	mov resume_stack, %rsp
	jmp *resume_at

four: /* rax: four equal digits' first */
	push %rcx
	mov $4, %ecx
1:	push %rax
	and $15, %eax
	call digit
	pop %rax
	loop 1b
	pop %rcx
	ret

digit:
	push %rax
	add $'0', %eax
	out %al, $0xe9
	pop %rax
	ret

	.code32
user32:
	int $0x80
	.code64

	.data
	.balign 8
saved_stack: .quad 0
gs_one: .quad 1
gs_two: .quad 2
bounds: .long 0, 10
