//! The machine.
pub mod acpi;
pub mod layout;
pub mod smbios;
