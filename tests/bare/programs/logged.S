/* For logs: one thing of each kind, from 16-bit code of the firmware's to 64-bit code here.

expect: logged
*/
#include "bare.h"

	.globl main, looped, wrong, on_ud, untouched
main:
	movq $on_ud, handlers + 8 * 6
	mov $300, %ecx
looped:	dec %ecx
	jnz looped
wrong:	ud2
	/* An interrupt of the program's own. */
	movq $on_own, handlers + 8 * 0x31
	int $0x31
	/* Memory where nothing is. */
	mov $0xb0000000, %eax
	mov %eax, %edx
	/* A page fault goes through its gate and back. */
	movq $on_pf, handlers + 8 * 14
	mov $0x8000000000, %rax
	mov (%rax), %rbx
	mov $0xc8000000, %eax
	mov (%rax), %ebx
	mov %cr0, %rax
	mov %rax, %cr0
	mov %cr3, %rax
	mov %rax, %cr3
	movabs $0x123456789abcdef0, %rax
	PRINT "logged\n"
	ret

on_ud:	addq $2, 16(%rsp) /* behind UD2 */
on_own:	add $16, %rsp
	iretq

on_pf:	addq $3, 16(%rsp) /* behind the MOV */
	add $16, %rsp
	iretq
