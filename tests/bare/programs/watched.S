/* For watchpoints: instructions that read a device and write memory. Each read of these devices has an effect: the e1000's
 * ICR at offset 0xc0 clears itself, the data port of fw_cfg goes on to the next byte. An e1000 card is in slot 5.
 *
expect: enough
*/
#include "bare.h"

#define SLOT_5_BAR 0x80002810
#define ICR 0xc0
#define ICS 0xc8
#define LINK_CHANGED 4

	.globl main, again, copied, pushed, lettered, seen, slot, letters, enough, bad
main:
	mov $0xcf8, %edx
	mov $SLOT_5_BAR, %eax
	out %eax, %dx
	mov $0xcfc, %edx
	in %dx, %eax
	and $~15, %eax
	mov %eax, %ebp
again:	movl $0, seen
	movq $0, slot
	movl $0, letters
	/* Device to memory. */
	movl $LINK_CHANGED, ICS(%rbp)
	lea ICR(%rbp), %rsi
	mov $seen, %edi
	cld
	movsl
copied:	cmpl $LINK_CHANGED, seen
	je 1f
	incl bad
1:	/* Device to stack. */
	movl $LINK_CHANGED, ICS(%rbp)
	mov %rsp, %rbx
	mov $slot + 8, %esp
	push ICR(%rbp)
pushed:	mov %rbx, %rsp
	cmpl $LINK_CHANGED, slot
	je 1f
	incl bad
1:	/* Ports to memory. */
	xor %eax, %eax
	mov $0x510, %edx
	out %ax, %dx
	inc %edx
	mov $letters, %edi
	mov $4, %ecx
	rep insb
lettered: cmpl $0x554d4551, letters /* QEMU */
	je 1f
	incl bad
1:	cmpl $0, enough
	je again
	cmpl $0, bad
	jne 1f
	PRINT "enough\n"
1:	ret

	.data
	.balign 4096
seen:	.long 0
letters: .long 0
slot:	.quad 0
enough:	.long 0
bad:	.long 0
