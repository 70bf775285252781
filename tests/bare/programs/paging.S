/* Page faults of every access type: error codes (SDM 3A 4.7), CR2, accessed and dirty bits.

expect: not present
expect: exception 000000000000000e error 0000000000000000 address 0000000040000123
expect: exception 000000000000000e error 0000000000000002 address 0000000040000123
expect: exception 000000000000000e error 0000000000000002 address 0000000040000120
expect: exception 000000000000000e error 0000000000000000 address 0000000040001000
expect: read-only
expect: exception 000000000000000e error 0000000000000003 address 0000000040001008
expect: exception 000000000000000e error 0000000000000003 address 0000000040001010
expect: no exception
expect: crossing into a page that is not present
expect: exception 000000000000000e error 0000000000000000 address 0000000040004000
expect: exception 000000000000000e error 0000000000000002 address 0000000040004000
expect: 1122334455667788
expect: no execution
expect: exception 000000000000000e error 0000000000000011 address 0000000040005000
expect: reserved bits
expect: exception 000000000000000e error 0000000000000009 address 0000000040006000
expect: exception 000000000000000e error 000000000000000b address 0000000040006000
expect: not canonical
expect: exception 000000000000000d error 0000000000000000
expect: exception 000000000000000d error 0000000000000000
expect: exception 000000000000000c error 0000000000000000
expect: user access
expect: exception 000000000000000e error 0000000000000005 address 0000000040008000 from ring 3
expect: exception 000000000000000e error 0000000000000007 address 0000000040008008 from ring 3
expect: exception 000000000000000e error 0000000000000004 address 0000000040009000 from ring 3
expect: exception 000000000000000e error 0000000000000015 address 0000000040008000 from ring 3
expect: accessed and dirty
expect: 0000000000000003
expect: 0000000000000023
expect: 0000000000000063
*/
#include "bare.h"

#define MAP(page, entry) movabs $(entry), %rax; mov %rax, page_table + 8 * (page); invlpg WINDOW + (page) * 0x1000
#define RAM(page) (WINDOW_RAM + (page) * 0x1000)

	.globl main
main:
	PRINT "not present\n"
	MAP(0, 0)
	FAULTS(mov WINDOW + 0x123, %al)
	FAULTS(movb $1, WINDOW + 0x123)
	FAULTS(lock incl WINDOW + 0x120)
	MAP(1, 0)
	FAULTS(mov WINDOW + 0x1000, %rax)

	PRINT "read-only\n"
	MAP(1, RAM(1) + 1)
	mov WINDOW + 0x1000, %rax
	FAULTS(mov %rax, WINDOW + 0x1008)
	FAULTS(lock xadd %rax, WINDOW + 0x1010)
	mov %cr0, %rbx /* without CR0.WP the supervisor may write */
	mov %rbx, %rcx
	and $~0x10000, %rcx
	mov %rcx, %cr0
	FAULTS(mov %rax, WINDOW + 0x1008)
	mov %rbx, %cr0

	PRINT "crossing into a page that is not present\n"
	MAP(4, 0)
	movabs $0x1122334455667788, %rax
	mov %rax, WINDOW + 0x3ff8
	FAULTS(mov WINDOW + 0x3ffc, %rax)
	movabs $-1, %rax
	FAULTS(mov %rax, WINDOW + 0x3ffc)
	mov WINDOW + 0x3ff8, %rax /* no part of the store may have happened */
	HEX %rax
	PRINT "\n"

	PRINT "no execution\n"
	MAP(5, RAM(5) + 3 + (1 << 63))
	movb $0xc3, WINDOW + 0x5000
	mov $WINDOW + 0x5000, %ebx
	movq $WINDOW + 0x5000, provoked_here
	FAULTS(call jump_there)

	PRINT "reserved bits\n"
	MAP(6, RAM(6) + 3 + (1 << 51))
	FAULTS(mov WINDOW + 0x6000, %al)
	FAULTS(mov %al, WINDOW + 0x6000)

	PRINT "not canonical\n"
	movabs $0x800000000000, %rbx
	FAULTS(mov (%rbx), %al)
	FAULTS(mov %al, (%rbx))
	mov %rbx, %rbp
	FAULTS(mov (%rbp), %al)

	PRINT "user access\n"
	MAP(8, RAM(8) + 3)
	MAP(9, 0)
	RING3(user_reads)
	RING3(user_writes)
	RING3(user_reads_nothing)
	MAP(8, RAM(8) + 3)
	RING3(WINDOW + 0x8000)

	PRINT "accessed and dirty\n"
	MAP(10, RAM(10) + 3)
	call show_bits
	mov WINDOW + 0xa000, %al
	call show_bits
	mov %al, WINDOW + 0xa000
	call show_bits
	ret

show_bits:
	mov page_table + 8 * 10, %rax
	and $0xfff, %eax
	HEX %rax
	PRINT "\n"
	ret

jump_there: /* leaves the address that the handler compares with */
	mov provoked_here, %r15
	mov %r15, provoked_at
	jmp *%rbx

user_reads: mov WINDOW + 0x8000, %al
user_writes: mov %al, WINDOW + 0x8008
user_reads_nothing: mov WINDOW + 0x9000, %al

	.data
provoked_here: .quad 0
