/* A program at the physical address 0x100000, where -device loader puts it and lets the processor begin: 32-bit code, flat
   segments, no paging. It fills a table, waits for somebody to set `enough`, and ends the machine. */
	.code32
	.globl start, filled, enough, table
start:
	mov $table, %edi
	xor %eax, %eax
1:	mov %eax, %ecx
	imul %ecx, %ecx
	mov %ecx, (%edi, %eax, 4)
	inc %eax
	cmp $16, %eax
	jne 1b
filled:	nop
2:	cmpl $0, enough
	je 2b
	mov $0x10, %al
	out %al, $0xf4
3:	hlt
	jmp 3b

	.balign 16
table:	.fill 16, 4, 0xffffffff
enough:	.long 0
