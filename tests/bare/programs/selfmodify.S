/* Code that changes itself: from the instruction before, on the running page, across pages, through an alias.

expect: next instruction: 2
expect: earlier code: 1 2 3
expect: the immediate of a loop: 0000000000000b60
expect: across a page: 5 6
expect: through an alias: 7 8
expect: by a string instruction: 9
expect: another mapping: 3 4
expect: rep movs over itself: 1
*/
#include "bare.h"

#define RUN(address) mov $(address), %eax; call *%rax; call digit
#define MAP(page, entry) movabs $(entry), %rax; mov %rax, page_table + 8 * (page); invlpg WINDOW + (page) * 0x1000
#define RAM(page) (WINDOW_RAM + (page) * 0x1000)

	.globl main
main:
	PRINT "next instruction: "
	movb $2, 1f + 1
1:	mov $1, %al
	call digit

	PRINT "\nearlier code:"
	movb $1, patched + 1
	mov $3, %ebp
1:	PRINT " "
	call patched
	call digit
	incb patched + 1
	dec %ebp
	jnz 1b

	/* A hot loop whose body counts up its own immediate: 1 + 2 + ... + 76, each 8 bits. */
	PRINT "\nthe immediate of a loop: "
	xor %eax, %eax
	mov $76, %ecx
	movb $1, 2f + 2
1:	jmp 2f
2:	add $1, %eax
	incb 2b + 2
	dec %ecx
	jnz 1b
	sub $14, %eax
	HEX %rax

	/* MOV AL, imm8; RET with the immediate on the next page. */
	PRINT "\nacross a page: "
	movb $0xb0, WINDOW + 0x2fff
	movb $5, WINDOW + 0x3000
	movb $0xc3, WINDOW + 0x3001
	RUN(WINDOW + 0x2fff)
	PRINT " "
	movb $6, WINDOW + 0x3000
	RUN(WINDOW + 0x2fff)

	PRINT "\nthrough an alias: "
	MAP(9, RAM(4) + 3)
	movl $0xc307b0, WINDOW + 0x4100
	RUN(WINDOW + 0x4100)
	PRINT " "
	movb $8, WINDOW + 0x9101
	RUN(WINDOW + 0x4100)

	PRINT "\nby a string instruction: "
	movl $0xc309b0, WINDOW + 0x5000
	mov $WINDOW + 0x5000, %esi
	mov $WINDOW + 0x4100, %edi
	mov $3, %ecx
	rep movsb
	RUN(WINDOW + 0x4100)

	PRINT "\nanother mapping: "
	movl $0xc303b0, WINDOW + 0x6000
	movl $0xc304b0, WINDOW + 0x7000
	MAP(8, RAM(6) + 3)
	RUN(WINDOW + 0x8000)
	PRINT " "
	MAP(8, RAM(7) + 3)
	RUN(WINDOW + 0x8000)

	/* REP MOVSB that overwrites what follows it takes effect before that runs. */
	PRINT "\nrep movs over itself: "
	mov $1f, %edi
	mov $9f, %esi
	mov $2, %ecx
	xor %eax, %eax
	rep movsb
1:	mov $0, %al
	call digit
	PRINT "\n"
	ret

9:	mov $1, %al

patched:
	mov $0, %al
	ret

digit: /* al */
	push %rax
	add $'0', %al
	out %al, $0xe9
	pop %rax
	ret
