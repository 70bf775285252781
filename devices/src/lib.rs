//! Device models. This crate knows nothing of the CPU engine and nothing of the host: whatever a model needs
//! from outside is a trait in [`services`], implemented by the program.
#![forbid(unsafe_code)]

pub mod a20;
pub mod acpi_pm;
pub mod bus;
pub mod cpu_hotplug;
pub mod debug_ports;
pub mod diag;
pub mod e1000;
pub mod fdc;
pub mod fpu_error;
pub mod fw_cfg;
pub mod hpet;
pub mod i6300esb;
pub mod i8042;
pub mod ide;
pub mod ioapic;
pub mod isa_dma;
pub mod lapic;
pub mod lsi;
pub mod microwire;
pub mod offload;
pub mod pci;
pub mod pflash;
pub mod pic;
pub mod pit;
pub mod pvpanic;
mod ranges;
pub mod rtc;
pub mod rtl8139;
pub mod scsi;
pub mod services;
pub mod state;
pub mod trace;
pub mod uart;
pub mod vga;
pub mod virtio;
pub mod wire;

#[cfg(test)]
mod board_tests;
#[cfg(test)]
pub(crate) mod fakes;
