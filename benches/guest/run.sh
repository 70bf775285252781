#!/bin/bash
# In the guest: runs each named workload between two marks on the console, at which the host reads its clocks.
for name; do
	echo "@begin $name"
	case $name in
	app-*) /bench/apps "${name#app-}" ;;
	*) /bench/bench "$name" ;;
	esac
	echo "@end $name $?"
done
echo "@done"
# Left running, so that the host can look at the process before it ends.
sleep 1000
