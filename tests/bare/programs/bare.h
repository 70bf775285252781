/* What every bare-metal program shares: the layout of memory, and macros to provoke faults and to print.
 *
 * A program is `main`, called in ring 0 of 64-bit mode with interrupts off; when it returns the machine ends through
 * isa-debug-exit. Its output on debugcon (port 0xe9) must equal the lines marked `expect:` in its source.
 */
#define CS32_32BIT 0x08 /* flat 32-bit code, for the way up */
#define KERNEL_DATA 0x10
#define KERNEL_CODE 0x18
#define USER_CODE32 0x23 /* the order that SYSRET wants: 32-bit code, data, 64-bit code */
#define USER_DATA 0x2b
#define USER_CODE 0x33
#define TASK 0x38
#define SMALL_DATA 0x48   /* limit 0xfff, base in the window below */
#define ABSENT_DATA 0x50  /* not present */
#define DOWN_DATA 0x58    /* expand-down above 0xfff */
#define READ_ONLY_DATA 0x60
#define EXECUTE_ONLY 0x68 /* code that cannot be read */
#define CODE32 0x70       /* compatibility mode, ring 0 */

#define WINDOW 0x40000000 /* 2 MiB of 4 KiB pages: page_table[i] maps WINDOW + i * 0x1000 */
#define WINDOW_RAM 0x400000 /* what the window maps at first, writable, supervisor */

/* PRINT "text" keeps all registers. */
.macro PRINT text
	.pushsection .rodata
77777:	.asciz "\text"
	.popsection
	push %rsi
	lea 77777b(%rip), %rsi
	call print_text
	pop %rsi
.endm

/* HEX rax: prints 16 digits; keeps all registers. */
.macro HEX register
	push %rdi
	mov \register, %rdi
	call print_hex
	pop %rdi
.endm

/* FAULTS(instruction...): runs it expecting an exception, which is printed; goes on behind it. Uses r14, r15. */
#define FAULTS(...) \
	mov %rsp, resume_stack; \
	lea 7778f(%rip), %r15; mov %r15, resume_at; \
	lea 7777f(%rip), %r15; mov %r15, provoked_at; \
	7777: __VA_ARGS__; \
	PRINT "no exception\n"; \
	7778:

/* RING3(label): runs code at label in ring 3; it comes back by int $0x80, or by any exception, to the next line. */
#define RING3(label) \
	mov %rsp, resume_stack; mov %rsp, task_state + 4; \
	lea 7779f(%rip), %r15; mov %r15, resume_at; \
	movq $label, provoked_at; \
	pushq $USER_DATA; pushq $user_stack_top; pushfq; pushq $USER_CODE; pushq $label; \
	iretq; \
	7779:
