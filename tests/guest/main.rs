//! Real kernels booted through the real binary, judged by what the guest printed and how the process ended.
//!
//! The images come from `tools/setup`; a missing one fails its test with that hint. To hold the tests
//! themselves against another emulator, `BROLGA_TEST_PROGRAM=qemu-system-x86_64` puts it in Brolga's place.
#![forbid(unsafe_code)]

mod boot;
mod bridges;
mod console;
mod crash;
mod debugger;
mod disk_errors;
mod disks;
mod firmware;
mod floppy;
mod harness;
mod hotplug;
mod kernels;
mod lsi;
mod migration;
mod network;
mod peripherals;
mod ports;
mod power;
mod processors;
mod qmp;
mod rescue;
mod root;
mod saving;
mod services;
mod sharing;
mod storage;
mod time;
mod uefi;
mod unpacked;
mod userland;
mod vga;
