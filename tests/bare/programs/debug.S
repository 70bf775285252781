/* Debug registers, single step, breakpoints (SDM 3B 18.2 and 18.3).

expect: execute: exception 0000000000000001 error 0000000000000000 dr6 00000000ffff0ff1
expect: resume flag: 1
expect: write: exception 0000000000000001 error 0000000000000000 dr6 00000000ffff0ff2 rip+0000000000000008
expect: a read is no write: no exception
expect: access: exception 0000000000000001 error 0000000000000000 dr6 00000000ffff0ff4 rip+0000000000000007
expect: beside it: no exception
expect: overlapping: exception 0000000000000001 error 0000000000000000 dr6 00000000ffff0ff2 rip+000000000000000c
expect: step: exception 0000000000000001 error 0000000000000000 dr6 00000000ffff4ff0 rip+0000000000000002
expect: icebp: exception 0000000000000001 error 0000000000000000 dr6 00000000ffff0ff0 rip+0000000000000001
expect: int3: exception 0000000000000003 error 0000000000000000 rip+0000000000000001
expect: general detect: exception 0000000000000001 error 0000000000000000 dr6 00000000ffff2ff0
expect: steps: 3
expect: off: no exception
*/
#include "bare.h"

	.globl main
main:
	PRINT "execute: "
	mov $here, %eax
	mov %rax, %dr0
	mov $0x401, %eax
	mov %rax, %dr7
	movq $here, provoked_at
	mov %rsp, resume_stack
	movq $after, resume_at
here:	nop
	PRINT "missed\n"
after:
	/* The handler sets RF to pass the same instruction. */
	PRINT "resume flag: "
	movq $resumes, handlers + 8
	xor %ebp, %ebp
	mov $there, %eax
	mov %rax, %dr0
	mov $0x401, %eax
	mov %rax, %dr7
there:	nop
	movq $0, handlers + 8
	mov %ebp, %eax
	call digit
	PRINT "\n"

	mov $data, %eax
	mov %rax, %dr1
	mov %rax, %dr2
	mov $0x00d00408, %eax /* breakpoint 1: writes of 4 bytes */
	mov %rax, %dr7
	PRINT "write: "
	FAULTS(movb $1, data)
	PRINT "a read is no write: "
	FAULTS(mov data, %eax)

	mov $0x0f000420, %eax /* breakpoint 2: reads and writes of 4 bytes */
	mov %rax, %dr7
	PRINT "access: "
	FAULTS(mov data, %ecx)
	PRINT "beside it: "
	FAULTS(mov data + 4, %ecx)

	mov $0x00d00408, %eax
	mov %rax, %dr7
	PRINT "overlapping: "
	FAULTS(movq $0, data - 5)

	xor %eax, %eax
	mov %rax, %dr7
	PRINT "step: "
	mov %rsp, resume_stack
	movq $after_step, resume_at
	movq $stepped, provoked_at
	pushq $0x102
	popfq
stepped: mov %eax, %eax
	nop
	nop
after_step:
	pushq $2
	popfq
	PRINT "icebp: "
	FAULTS(.byte 0xf1)
	PRINT "int3: "
	FAULTS(int3)
	PRINT "general detect: "
	mov $0x2400, %eax
	mov %rax, %dr7
	FAULTS(mov %dr0, %rax)
	xor %eax, %eax
	mov %rax, %dr7

	/* MOV SS holds the step's trap back by one instruction. */
	PRINT "steps: "
	movq $counts, handlers + 8
	xor %ebp, %ebp
	mov $KERNEL_DATA, %ecx
	pushq $0x102
	popfq
	nop
	mov %ecx, %ss
	nop
	pushq $2
	popfq
	movq $0, handlers + 8
	mov %ebp, %eax
	sub $1, %eax
	call digit
	PRINT "\noff: "
	FAULTS(mov data, %eax)
	ret

resumes:
	inc %ebp
	orl $0x10000, 16 + 16(%rsp)
	add $16, %rsp
	iretq

counts:
	inc %ebp
	add $16, %rsp
	iretq

digit:
	push %rax
	add $'0', %eax
	out %al, $0xe9
	pop %rax
	ret

	.data
	.balign 16
	.quad 0
data:	.quad 0, 0
