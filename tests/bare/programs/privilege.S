/* What ring 3 may not do, undefined opcodes, bad control registers and MSRs, the I/O permission map.

expect: ring 3
expect: exception 000000000000000d error 0000000000000000 from ring 3
expect: exception 000000000000000d error 0000000000000000 from ring 3
expect: exception 000000000000000d error 0000000000000000 from ring 3
expect: exception 000000000000000d error 0000000000000000 from ring 3
expect: exception 000000000000000d error 0000000000000000 from ring 3
expect: exception 000000000000000d error 000000000000018a from ring 3
expect: exception 0000000000000080 error 0000000000000000 rip+0000000000000002 from ring 3
expect: ports
expect: exception 000000000000000d error 0000000000000000 rip+0000000000000002 from ring 3
expect: .exception 0000000000000080 error 0000000000000000 rip+0000000000000006 from ring 3
expect: exception 000000000000000d error 0000000000000000 from ring 3
expect: undefined
expect: exception 0000000000000006 error 0000000000000000
expect: exception 0000000000000006 error 0000000000000000
expect: exception 0000000000000006 error 0000000000000000
expect: exception 0000000000000006 error 0000000000000000
expect: exception 0000000000000006 error 0000000000000000
expect: divide
expect: exception 0000000000000000 error 0000000000000000
expect: exception 0000000000000000 error 0000000000000000
expect: exception 0000000000000000 error 0000000000000000
expect: registers
expect: exception 000000000000000d error 0000000000000000
expect: exception 000000000000000d error 0000000000000000
expect: selectors
expect: exception 000000000000000d error 0000000000000000
expect: exception 000000000000000d error 00000000000000f8
expect: exception 000000000000000b error 0000000000000050
expect: exception 000000000000000d error 0000000000000068
expect: exception 000000000000000d error 0000000000000060
expect: too long
expect: exception 000000000000000d error 0000000000000000
expect: x87 and SSE
expect: exception 0000000000000007 error 0000000000000000
expect: exception 0000000000000007 error 0000000000000000
expect: exception 0000000000000010 error 0000000000000000
expect: exception 0000000000000013 error 0000000000000000
expect: exception 000000000000000d error 0000000000000000
expect: control registers
expect: exception 000000000000000d error 0000000000000000
expect: exception 000000000000000d error 0000000000000000
expect: exception 000000000000000d error 0000000000000000
*/
#include "bare.h"

	.globl main
main:
	PRINT "ring 3\n"
	RING3(does_hlt)
	RING3(does_cli)
	RING3(reads_cr0)
	RING3(does_rdmsr)
	RING3(does_lgdt)
	RING3(does_int_31) /* its gate is for ring 0 alone: error code vector * 8 + 2 */
	RING3(does_int_80)

	PRINT "ports\n"
	movb $0xff, task_state + 104 + 0xe9 / 8
	RING3(does_out)
	movb $0xfd, task_state + 104 + 0xe9 / 8
	RING3(does_out)
	RING3(does_out_wide) /* its second byte is port 0xea */

	PRINT "undefined\n"
	FAULTS(ud2)
	FAULTS(.byte 0x0f, 0xff, 0xc0)
	FAULTS(.byte 0x06)             /* PUSH ES does not exist in 64-bit mode */
	FAULTS(.byte 0xf0, 0x01, 0xc0) /* LOCK on a register */
	FAULTS(.byte 0xf0, 0x8b, 0x00) /* LOCK on a load */

	PRINT "divide\n"
	xor %ecx, %ecx
	FAULTS(div %ecx)
	mov $2, %edx
	mov $1, %ecx
	FAULTS(div %ecx)
	mov $0x80000000, %eax
	cltd
	mov $-1, %ecx
	FAULTS(idiv %ecx)

	PRINT "registers\n"
	mov $0x12345678, %ecx
	FAULTS(rdmsr)
	mov $0xc0000100, %ecx /* FS base: not canonical */
	mov $0x8000, %edx
	xor %eax, %eax
	FAULTS(wrmsr)

	PRINT "selectors\n"
	xor %eax, %eax
	mov $3, %eax
	FAULTS(mov %eax, %ss)
	mov $0xf8, %eax
	FAULTS(mov %eax, %ds)
	mov $ABSENT_DATA, %eax
	FAULTS(mov %eax, %ds)
	mov $EXECUTE_ONLY, %eax
	FAULTS(mov %eax, %ds)
	mov $READ_ONLY_DATA, %eax
	FAULTS(mov %eax, %ss)

	PRINT "too long\n"
	FAULTS(.fill 15, 1, 0x66; nop)

	PRINT "x87 and SSE\n"
	mov %cr0, %rbx
	mov %rbx, %rax
	or $8, %eax /* task switched */
	mov %rax, %cr0
	FAULTS(fld1)
	FAULTS(movaps %xmm0, %xmm1)
	mov %rbx, %cr0
	fninit
	movw $0x37b, word /* zero divide unmasked */
	fldcw word
	fld1
	fldz
	fdivrp
	FAULTS(fwait)
	fninit
	movl $0x1d80, word /* invalid unmasked and no flag set */
	movl $0x1f00, word
	ldmxcsr word
	xorps %xmm0, %xmm0
	FAULTS(divss %xmm0, %xmm0)
	movl $0x1f80, word
	ldmxcsr word
	FAULTS(movaps word + 4, %xmm0)

	PRINT "control registers\n"
	mov %cr4, %rbx
	bts $30, %rbx
	FAULTS(mov %rbx, %cr4)
	btr $30, %rbx
	btr $5, %rbx /* long mode without PAE */
	FAULTS(mov %rbx, %cr4)
	mov %cr0, %rbx
	btr $0, %rbx /* paging without protection */
	FAULTS(mov %rbx, %cr0)
	ret

does_hlt: hlt
does_cli: cli
reads_cr0: mov %cr0, %rax
does_rdmsr: rdmsr
does_lgdt: lgdt word
does_int_31: int $0x31
does_int_80: int $0x80
does_out: mov $'.', %al; out %al, $0xe9; int $0x80
does_out_wide: out %ax, $0xe9
	.data
	.balign 16
word:	.skip 32
