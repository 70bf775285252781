"""What pexpect's users do at -serial mon:stdio: arguments are the program and a machine."""

import sys

import pexpect

guest = pexpect.spawn(sys.argv[1], [*sys.argv[2:], "-serial", "mon:stdio"], timeout=60, encoding="utf-8")
guest.sendcontrol("a")
guest.send("c")
guest.expect(r"\(brolga\) ")
guest.sendline("info status")
guest.expect_exact("VM status: paused (prelaunch)")
guest.expect_exact("(brolga) ")
# To the guest and back.
guest.sendcontrol("a")
guest.send("c")
guest.sendline("for the guest")
guest.sendcontrol("a")
guest.send("c")
guest.sendline("info nmae\x7f\x7f\x7fame")
guest.expect_exact("(brolga) ")
guest.sendcontrol("a")
guest.send("x")
guest.expect_exact("terminated")
guest.expect(pexpect.EOF)
guest.close()
assert guest.exitstatus == 0, (guest.exitstatus, guest.signalstatus)
print("monitor, guest, monitor, end")
