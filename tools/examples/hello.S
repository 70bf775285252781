/* A program for the time before there is a kernel: 16-bit code at 0x7c00, where a boot sector lies. It prints on the first
   serial port and ends the machine through isa-debug-exit. */
	.code16
	.globl start
start:
	xor %ax, %ax
	mov %ax, %ds
	mov $text, %si
	cld
1:	lodsb
	test %al, %al
	jz 3f
	mov %al, %bl
	mov $0x3fd, %dx /* line status: bit 5 says that the transmitter can take a byte */
2:	in %dx, %al
	test $0x20, %al
	jz 2b
	mov $0x3f8, %dx
	mov %bl, %al
	out %al, %dx
	jmp 1b
3:	mov $0x10, %al
	out %al, $0xf4
4:	hlt
	jmp 4b

text:	.asciz "Hello from before the kernel\n"
