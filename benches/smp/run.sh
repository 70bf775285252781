#!/bin/sh
# Runs the words of the command line, each NAME:THREADS:ROUNDS, between marks at which the host reads its clocks.
for word; do
	name=${word%%:*} rest=${word#*:}
	echo "@begin $word"
	case $name in
	compile) /smp/compile "${rest%%:*}" "${rest#*:}" ;;
	*) /smp/smp "$name" "${rest%%:*}" "${rest#*:}" ;;
	esac
	echo "@end $word $?"
done
echo "@done"
# Left running, so that the host can look at the process before it ends.
sleep 1000
