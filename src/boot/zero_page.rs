//! The Linux boot parameters: the setup header inside a kernel file, and the "zero page" made from it.
//! Offsets and meaning: Documentation/arch/x86/boot.rst and zero-page.rst of the Linux kernel.

use crate::machine::layout::{MemoryRange, RangeKind};

/// Size of the boot parameters.
pub const SIZE: usize = 4096;
/// Where the setup header starts, in the file and in the zero page alike.
const HEADER_START: usize = 0x1F1;
/// The header ends at 0x202 plus the byte at 0x201 (offset of the jump at 0x200).
const HEADER_JUMP: usize = 0x201;
/// Entries that the zero page has room for.
const E820_MAX: usize = 128;

/// Fields, named as in boot.rst, with their offsets.
pub mod field {
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0C0;
    pub const EXT_RAMDISK_SIZE: usize = 0x0C4;
    pub const E820_ENTRIES: usize = 0x1E8;
    pub const SETUP_SECTS: usize = 0x1F1;
    pub const SYSSIZE: usize = 0x1F4;
    pub const VID_MODE: usize = 0x1FA;
    pub const BOOT_FLAG: usize = 0x1FE;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21C;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22C;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24C;
    pub const SETUP_DATA: usize = 0x250;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    pub const E820_TABLE: usize = 0x2D0;
}

/// `loadflags`: the protected-mode code belongs at 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `loadflags`, from the kernel's first stage to the kernel: addresses were chosen at random.
const KASLR_FLAG: u8 = 2;
/// `xloadflags`: the kernel has the 64-bit entry point at offset 0x200.
const XLF_KERNEL_64: u16 = 1;
/// `xloadflags`: initrd and command line may lie above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;
/// `setup_data` type: seed of the random number generator (arch/x86/include/uapi/asm/setup_data.h).
const SETUP_RNG_SEED: u32 = 9;

/// Little-endian fields of a byte string; what lies past its end reads as zero.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn get<const N: usize>(self, at: usize) -> [u8; N] {
        self.0.get(at..at + N).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
    }
    fn u8(self, at: usize) -> u8 {
        self.get::<1>(at)[0]
    }
    fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }
    fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }
    fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }
}

/// The setup header of a kernel file.
#[derive(Clone, Copy)]
pub struct SetupHeader<'a>(Bytes<'a>);

impl<'a> SetupHeader<'a> {
    /// The header in the first bytes of a file; `None` if it is no bzImage or zImage.
    pub fn find(file: &'a [u8]) -> Option<Self> {
        let bytes = Bytes(file);
        (bytes.u16(field::BOOT_FLAG) == 0xAA55 && bytes.get(field::MAGIC) == *b"HdrS").then_some(Self(bytes))
    }

    /// Protocol version: major in the high byte.
    pub fn version(self) -> u16 {
        self.0.u16(field::VERSION)
    }

    /// Bytes of the real-mode part; the protected-mode code follows it in the file.
    pub fn setup_size(self) -> u64 {
        let sectors = match self.0.u8(field::SETUP_SECTS) {
            0 => 4, // boot.rst: for backwards compatibility
            n => n,
        };
        (u64::from(sectors) + 1) * 512
    }

    /// Bytes of the protected-mode code.
    pub fn code_size(self) -> u64 {
        u64::from(self.0.u32(field::SYSSIZE)) * 16
    }

    /// The kernel is loaded at 1 MiB (bzImage), not at 64 KiB (zImage).
    pub fn loaded_high(self) -> bool {
        self.0.u8(field::LOADFLAGS) & LOADED_HIGH != 0
    }

    fn xloadflags(self) -> u16 {
        if self.version() >= 0x20C { self.0.u16(field::XLOADFLAGS) } else { 0 }
    }

    /// It has a 64-bit entry point.
    pub fn is_64_bit(self) -> bool {
        self.xloadflags() & XLF_KERNEL_64 != 0
    }

    /// Initrd may lie above 4 GiB.
    pub fn takes_initrd_above_4g(self) -> bool {
        self.xloadflags() & XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }

    /// Highest address of the initrd's last byte, below 4 GiB.
    pub fn initrd_addr_max(self) -> u64 {
        match self.version() {
            // Kernels that take it anywhere still give the limit of older loaders here.
            _ if self.takes_initrd_above_4g() => u32::MAX.into(),
            v if v >= 0x203 => self.0.u32(field::INITRD_ADDR_MAX).into(),
            _ => 0x37FF_FFFF,
        }
    }

    /// Longest command line without its terminating zero.
    pub fn cmdline_size(self) -> u64 {
        if self.version() >= 0x206 { self.0.u32(field::CMDLINE_SIZE).into() } else { 255 }
    }

    /// Offset, counted from the protected-mode code, and length of the packed kernel (protocol 2.08).
    pub fn payload(self) -> (u64, u64) {
        (self.0.u32(field::PAYLOAD_OFFSET).into(), self.0.u32(field::PAYLOAD_LENGTH).into())
    }

    /// Where the unpacked kernel was linked to lie, and how much memory it needs from there on (protocol 2.10).
    pub fn preferred(self) -> (u64, u64) {
        (self.0.u64(field::PREF_ADDRESS), self.0.u32(field::INIT_SIZE).into())
    }

    /// What the kernel's address must be a multiple of (protocol 2.05).
    pub fn alignment(self) -> u64 {
        self.0.u32(field::KERNEL_ALIGNMENT).into()
    }

    /// End of the memory that the kernel needs before it looks at its memory map, if loaded at `load`.
    pub fn needs_until(self, load: u64) -> u64 {
        if self.version() < 0x20A {
            return load + self.code_size();
        }
        load.max(self.0.u64(field::PREF_ADDRESS)).saturating_add(self.0.u32(field::INIT_SIZE).into())
    }
}

/// The boot parameters being filled in.
pub struct ZeroPage(Box<[u8; SIZE]>);

impl ZeroPage {
    /// All zero but for the setup header, copied from `file`.
    pub fn new(file: &[u8]) -> Self {
        let mut page = Box::new([0; SIZE]);
        let end = 0x202 + usize::from(file.get(HEADER_JUMP).copied().unwrap_or(0));
        if let Some(header) = file.get(HEADER_START..end) {
            page[HEADER_START..end].copy_from_slice(header);
        }
        Self(page)
    }

    /// Sets a byte.
    pub fn set_u8(&mut self, at: usize, value: u8) {
        self.0[at] = value;
    }
    /// Sets a 16-bit field.
    pub fn set_u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    /// Sets a 32-bit field.
    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    /// Sets a 64-bit field.
    pub fn set_u64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Says that the kernel's addresses were chosen at random.
    pub fn set_randomised(&mut self) {
        self.0[field::LOADFLAGS] |= KASLR_FLAG;
    }

    /// Says where the initrd lies.
    pub fn set_initrd(&mut self, start: u64, size: u64) {
        self.set_u32(field::RAMDISK_IMAGE, start as u32);
        self.set_u32(field::RAMDISK_SIZE, size as u32);
        self.set_u32(field::EXT_RAMDISK_IMAGE, (start >> 32) as u32);
        self.set_u32(field::EXT_RAMDISK_SIZE, (size >> 32) as u32);
    }

    /// Writes the memory map.
    pub fn set_memory_map(&mut self, map: &[MemoryRange]) {
        let count = map.len().min(E820_MAX);
        self.set_u8(field::E820_ENTRIES, count as u8);
        for (i, range) in map[..count].iter().enumerate() {
            let at = field::E820_TABLE + 20 * i;
            self.set_u64(at, range.start);
            self.set_u64(at + 8, range.size);
            self.set_u32(at + 16, e820_type(range.kind));
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0[..]
    }
}

/// Address range types of ACPI (15.1) and of the E820 call.
pub fn e820_type(kind: RangeKind) -> u32 {
    match kind {
        RangeKind::Ram => 1,
        RangeKind::Reserved => 2,
    }
}

/// A `setup_data` node with a seed for the guest's random number generator, the last of its list.
pub fn rng_seed_node(seed: &[u8]) -> Vec<u8> {
    let mut node = Vec::with_capacity(16 + seed.len());
    node.extend(0u64.to_le_bytes());
    node.extend(SETUP_RNG_SEED.to_le_bytes());
    node.extend((seed.len() as u32).to_le_bytes());
    node.extend(seed);
    node
}
