//! What the guest starts with: kernels by their boot protocols, firmware images, and what `-device loader` adds.

mod bzimage;
mod elf;
mod entry;
mod firmware;
mod handover;
mod image;
mod kernel_cache;
mod loader_device;
mod multiboot;
mod payload;
mod placement;
mod pvh;
mod unpacked;
mod zero_page;

pub use handover::BOOT_PATH as KERNEL_BOOT_PATH;
pub use placement::{Placed, Placement};

use crate::cli::config::Config;
use crate::machine::layout::Layout;
use anyhow::{Result, anyhow, bail};
use brolga_devices::fw_cfg::Items;
use brolga_jit::Registers;
use elf::Elf;
use image::Image;
use loader_device::OpenLoader;
use std::ops::Range;
use std::path::Path;

/// Ends loading with an error line about an image.
macro_rules! refuse {
    ($image:expr, $($reason:tt)*) => {
        anyhow::bail!("{}: {}", $image.named(), format_args!($($reason)*))
    };
}
use refuse;

/// Guest pages: images are aligned to them.
const PAGE: u64 = 4096;

/// Everything that is loaded, opened once and loaded at each reset.
pub struct Boot {
    kernel: Option<Kernel>,
    bios: Option<Image>,
    /// Firmware is in flash, which has its content already.
    flash: bool,
    loaders: Vec<OpenLoader>,
}

/// `-kernel` and what belongs to it.
struct Kernel {
    image: Image,
    initrd: Option<Image>,
    /// `-initrd` read as a multiboot kernel's list of modules.
    modules: Vec<ModuleFile>,
    append: String,
    seed: Option<u64>,
    /// A bzImage is unpacked here.
    unpack: bool,
    /// Other things are loaded after it, to places of their own.
    more_follows: bool,
}

/// A file of a multiboot kernel's `-initrd`.
struct ModuleFile {
    image: Image,
    /// The file name and its arguments.
    string: String,
}

/// What the machine tells the loaders.
#[derive(Clone, Copy)]
pub struct Facts {
    /// Where memory lies.
    pub layout: Layout,
    /// Where the ACPI root pointer lies.
    pub rsdp: Option<u64>,
    /// The processor model has 64-bit mode.
    pub long_mode: bool,
}

/// What a kernel's loader works with.
struct Guest<'a> {
    kernel: &'a Image,
    initrd: Option<&'a Image>,
    modules: &'a [ModuleFile],
    append: &'a str,
    /// `-seed`.
    seed: Option<u64>,
    /// A bzImage is unpacked here.
    unpack: bool,
    /// Other things are loaded after it, to places of their own.
    more_follows: bool,
    layout: Layout,
    rsdp: Option<u64>,
    long_mode: bool,
}

impl Guest<'_> {
    /// The command line with its terminating zero.
    fn command_line(&self) -> Vec<u8> {
        let mut bytes = self.append.as_bytes().to_vec();
        bytes.push(0);
        bytes
    }

    fn initrd_too_large(&self, image: &Image, size: u64) -> anyhow::Error {
        let memory = (self.layout.low + self.layout.high) >> 20;
        let size = size.div_ceil(1 << 20);
        anyhow!(
            "{}: {size} MiB do not fit beside the kernel into {memory} MiB of memory; give more with -m",
            image.named()
        )
    }
}

/// Page-aligned start for `size` bytes as high as possible within `room`.
fn initrd_start(size: u64, room: Range<u64>) -> Option<u64> {
    let start = room.end.checked_sub(size)? & !(PAGE - 1);
    (start >= room.start).then_some(start)
}

impl Boot {
    /// Opens all files that `config` names and checks that they can start a machine.
    pub fn open(config: &Config) -> Result<Self> {
        let bios = config.boot.bios.as_deref().map(|path| Image::open("-bios", path)).transpose()?;
        let kernel = config.boot.kernel.as_deref().map(|path| Kernel::open(path, config)).transpose()?;
        let loaders = config.loaders.iter().map(OpenLoader::open).collect::<Result<Vec<_>>>()?;
        let nothing = kernel.is_none() && bios.is_none() && !config.boot.flash;
        if nothing && !loaders.iter().any(OpenLoader::starts_first_cpu) {
            bail!(
                "nothing to start: give -kernel FILE, -bios FILE, or -device loader,file=FILE,addr=ADDRESS,cpu-num=0"
            );
        }
        Ok(Self { kernel, bios, flash: config.boot.flash, loaders })
    }

    /// Bytes of ROM that the firmware image needs.
    pub fn rom_size(&self) -> Result<u64> {
        self.bios.as_ref().map_or(Ok(0), firmware::size)
    }

    /// Firmware starts, from ROM.
    pub fn has_firmware(&self) -> bool {
        self.bios.is_some() || self.flash
    }

    /// A kernel is started without firmware, so the machine provides the tables that firmware would.
    pub fn has_kernel(&self) -> bool {
        self.kernel.is_some() && !self.has_firmware()
    }

    /// Adds to what firmware is told a kernel that it is to start. Whether there is one.
    pub fn hand_over(&self, facts: Facts, items: &mut Items) -> Result<bool> {
        let Some(kernel) = self.kernel.as_ref().filter(|_| self.has_firmware()) else { return Ok(false) };
        let guest = kernel.guest(facts);
        match Format::of(&kernel.image)? {
            Format::BzImage(head) => handover::provide(&guest, &head, items)?,
            _ => refuse!(
                kernel.image,
                "firmware starts Linux's bzImages only; start it without firmware, or use another kernel"
            ),
        }
        Ok(true)
    }

    /// Loads everything. The result are the states of processors that do not start at the reset vector.
    pub fn load(&self, facts: Facts, placement: &mut Placement) -> Result<Vec<(u32, Registers)>> {
        let mut starts = Vec::new();
        if let Some(bios) = &self.bios {
            firmware::load(bios, facts.layout.rom, placement)?;
        }
        if let Some(kernel) = self.kernel.as_ref().filter(|_| !self.has_firmware()) {
            starts.push((0, kernel.load(facts, placement)?));
        }
        for loader in &self.loaders {
            starts.extend(loader.load(facts.long_mode, placement)?);
        }
        Ok(starts)
    }
}

impl Kernel {
    fn open(path: &Path, config: &Config) -> Result<Self> {
        let image = Image::open("-kernel", path)?;
        let format = Format::of(&image)?;
        let (mut initrd, mut modules) = (None, Vec::new());
        if let Some(path) = config.boot.initrd.as_deref() {
            if format.is_multiboot() {
                modules = ModuleFile::open_list(&path.to_string_lossy())?;
            } else {
                initrd = Some(Image::open("-initrd", path)?);
            }
        }
        Ok(Self {
            image,
            initrd,
            modules,
            append: config.boot.append.clone(),
            seed: config.seed,
            unpack: config.machine.unpack_kernel,
            more_follows: !config.loaders.is_empty(),
        })
    }

    fn guest(&self, facts: Facts) -> Guest<'_> {
        Guest {
            kernel: &self.image,
            initrd: self.initrd.as_ref(),
            modules: &self.modules,
            append: &self.append,
            seed: self.seed,
            unpack: self.unpack,
            more_follows: self.more_follows,
            layout: facts.layout,
            rsdp: facts.rsdp,
            long_mode: facts.long_mode,
        }
    }

    fn load(&self, facts: Facts, placement: &mut Placement) -> Result<Registers> {
        let guest = self.guest(facts);
        match Format::of(&self.image)? {
            Format::BzImage(head) => bzimage::load(&guest, &head, placement),
            Format::Multiboot(header) => multiboot::load(&guest, header, placement),
            Format::Elf(elf) => match pvh::entry_point(&guest, &elf)? {
                Some(eip) => pvh::load(&guest, &elf, eip, placement),
                None => refuse!(
                    self.image,
                    "an ELF file with neither a PVH note nor a multiboot header; configure Linux with CONFIG_PVH, or \
                     start it with -device loader,file=FILE,cpu-num=0"
                ),
            },
        }
    }
}

/// What kind of kernel a file is.
enum Format {
    /// Linux bzImage; the start of the file.
    BzImage(Vec<u8>),
    Multiboot(multiboot::Header),
    Elf(Elf),
}

impl Format {
    fn of(image: &Image) -> Result<Self> {
        let mut head = vec![0; image.size()?.min(multiboot::PROBE as u64) as usize];
        image.read_at(0, &mut head)?;
        if zero_page::SetupHeader::find(&head).is_some() {
            return Ok(Self::BzImage(head));
        }
        if let Some(header) = multiboot::Header::find(&head) {
            return Ok(Self::Multiboot(header));
        }
        match Elf::read(image)? {
            Some(elf) => Ok(Self::Elf(elf)),
            None => refuse!(
                image,
                "not a kernel; give a Linux bzImage, an ELF kernel with a PVH note, or a multiboot kernel"
            ),
        }
    }

    fn is_multiboot(&self) -> bool {
        matches!(self, Self::Multiboot(_))
    }
}

impl ModuleFile {
    /// Opens `FILE[ ARGUMENTS][,FILE...]`; a comma in a name is doubled.
    fn open_list(list: &str) -> Result<Vec<Self>> {
        let mut parts = vec![String::new()];
        let mut rest = list.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                ',' if rest.next_if_eq(&',').is_none() => parts.push(String::new()),
                c => parts.last_mut().expect("it begins with one part").push(c),
            }
        }
        let open = |string: String| {
            let file = string.split(' ').next().unwrap_or_default();
            Ok(Self { image: Image::open("-initrd", Path::new(file))?, string })
        };
        parts.into_iter().map(open).collect()
    }
}

#[cfg(test)]
mod tests;
