#!/bin/sh
# The disk's share of the install benchmark, in an installed guest: each piece of work between two lines on the serial
# line. Caches are dropped before each, outside the time.
cd /root || exit 1
work() {
	name=$1
	shift
	sync
	echo 3 >/proc/sys/vm/drop_caches
	sleep 1
	echo "@begin $name"
	"$@" || echo "@failed $name: status $?"
	echo "@end $name"
}

unpack() { mkdir unpacked && tar -x -f files.tar -C unpacked && sync; }
sum_all() { find unpacked -type f -exec cat {} + | md5sum >/root/sum; }
remove() { rm -rf unpacked && sync; }

tar -c -f files.tar -C / usr/lib usr/share 2>/dev/null
work seq-write ./disk seq-write file
work seq-read ./disk seq-read file
work direct-write ./disk direct-write file
work direct-read ./disk direct-read file
work rand-write ./disk rand-write file
work rand-read ./disk rand-read file
work fsync ./disk fsync synced
work untar unpack
work read-files sum_all
work remove-files remove
rm -f file synced files.tar
echo "@done"
