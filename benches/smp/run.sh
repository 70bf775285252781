#!/bin/sh
# Runs the words of the command line, each NAME:THREADS:ROUNDS and perhaps :WHEN, between marks at which the host reads
# its clocks.
for word; do
	name=${word%%:*} rest=${word#*:}
	threads=${rest%%:*} rest=${rest#*:}
	rounds=${rest%%:*}
	echo "@begin $word"
	case $name in
	compile) /smp/compile "$threads" "$rounds" ;;
	*) /smp/smp "$name" "$threads" "$rounds" ;;
	esac
	echo "@end $word $?"
done
echo "@done"
# Left running, so that the host can look at the process before it ends.
sleep 1000
