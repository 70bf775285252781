#!/bin/sh
# Runs the words of the command line, each WHAT:PORT:COUNT, on the only card.
modprobe af_packet 2>/dev/null
modprobe e1000
modprobe virtio_pci && modprobe virtio_net
udhcpc -i eth0 -n -q -t 10 >/dev/null 2>&1 || { echo "@failed no lease"; exit 1; }
card=$(readlink -f /sys/class/net/eth0/device)
case $card in */virtio*) card=${card%/*} ;; esac
for word in "$@"; do
	what=${word%%:*} rest=${word#*:}
	/bench/net "$what" "${rest%%:*}" "${rest#*:}" "$card" || { echo "@failed $word"; exit 1; }
done
echo "@done"
