//! The tables as firmware takes them: files, and commands that say where each goes and which pointers and checksums
//! depend on that (QEMU's "etc/table-loader" interface, as SeaBIOS and OVMF read it).

use super::{AcpiConfig, AcpiError, RSDP_LENGTH, build};

/// File of the root pointer.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// File of all other tables.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// File of the commands.
pub const COMMANDS_FILE: &str = "etc/table-loader";

/// Length of a command, and of a file name in it.
const COMMAND: usize = 128;
const NAME: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Where a file goes: anywhere, or from 0xF0000 to 0xFFFFF.
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;
/// Alignment of the tables, for the FACS, and of the root pointer, for those who look for it.
const TABLES_ALIGNMENT: u32 = 64;
const RSDP_ALIGNMENT: u32 = 16;
/// Offset of the checksum in a table's header, and of the two of the root pointer, with what they cover.
const CHECKSUM: usize = 9;
const RSDP_CHECKSUMS: [(usize, usize); 2] = [(8, 20), (32, RSDP_LENGTH)];

/// What goes into the three files.
pub struct Files {
    /// [`RSDP_FILE`].
    pub rsdp: Vec<u8>,
    /// [`TABLES_FILE`].
    pub tables: Vec<u8>,
    /// [`COMMANDS_FILE`].
    pub commands: Vec<u8>,
}

#[derive(Default)]
struct Commands(Vec<u8>);

impl Commands {
    fn add(&mut self, command: u32, names: &[&str], rest: &[u8]) {
        let end = self.0.len() + COMMAND;
        self.0.extend(command.to_le_bytes());
        for name in names {
            let end = self.0.len() + NAME;
            self.0.extend(name.bytes());
            self.0.resize(end, 0);
        }
        self.0.extend(rest);
        self.0.resize(end, 0);
    }

    fn allocate(&mut self, file: &str, alignment: u32, zone: u8) {
        self.add(ALLOCATE, &[file], &[&alignment.to_le_bytes()[..], &[zone]].concat());
    }

    /// The pointer of `size` bytes at `offset` of `file` counts from the start of the tables' file.
    fn pointer(&mut self, file: &str, offset: usize, size: u8) {
        self.add(ADD_POINTER, &[file, TABLES_FILE], &[&(offset as u32).to_le_bytes()[..], &[size]].concat());
    }

    fn checksum(&mut self, file: &str, at: usize, start: usize, len: usize) {
        let words = [at, start, len].map(|word| (word as u32).to_le_bytes());
        self.add(ADD_CHECKSUM, &[file], &words.concat());
    }
}

/// Makes the files.
pub fn files(config: &AcpiConfig) -> Result<Files, AcpiError> {
    let built = build(config, 0)?;
    let mut tables = built.blob;
    let mut rsdp = tables[..RSDP_LENGTH].to_vec();
    let mut commands = Commands::default();
    commands.allocate(RSDP_FILE, RSDP_ALIGNMENT, ZONE_FSEG);
    commands.allocate(TABLES_FILE, TABLES_ALIGNMENT, ZONE_HIGH);
    for (at, size) in built.pointers {
        commands.pointer(if at < RSDP_LENGTH { RSDP_FILE } else { TABLES_FILE }, at, size);
    }
    // A checksum is made over the byte that takes it, so that one begins at 0.
    for table in built.pointing {
        tables[table.start + CHECKSUM] = 0;
        commands.checksum(TABLES_FILE, table.start + CHECKSUM, table.start, table.len());
    }
    for (at, len) in RSDP_CHECKSUMS {
        rsdp[at] = 0;
        commands.checksum(RSDP_FILE, at, 0, len);
    }
    // Its place is taken by the file of its own.
    tables[..RSDP_LENGTH].fill(0);
    Ok(Files { rsdp, tables, commands: commands.0 })
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    /// Does what firmware does; the tables end up at `base`.
    fn load(files: &Files, base: u64) -> (Vec<u8>, Vec<u8>) {
        let (mut rsdp, mut tables) = (files.rsdp.clone(), files.tables.clone());
        for command in files.commands.chunks(COMMAND) {
            let is_rsdp = command[4..].starts_with(RSDP_FILE.as_bytes());
            let file = if is_rsdp { &mut rsdp } else { &mut tables };
            match word(command, 0) as u32 {
                ADD_POINTER => {
                    assert!(command[60..].starts_with(TABLES_FILE.as_bytes()));
                    let (at, size) = (word(command, 116), usize::from(command[120]));
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(&file[at..at + size]);
                    let value = u64::from_le_bytes(value) + base;
                    file[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
                }
                ADD_CHECKSUM => {
                    let (at, start, len) = (word(command, 60), word(command, 64), word(command, 68));
                    let sum = file[start..start + len].iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
                    file[at] = file[at].wrapping_sub(sum);
                }
                other => assert_eq!(other, ALLOCATE),
            }
        }
        (rsdp, tables)
    }

    #[test]
    fn loaded_tables_equal_those_built_for_the_place() {
        let base = 0x7FE_0040;
        let (rsdp, tables) = load(&files(&config()).unwrap(), base);
        let direct = build(&config(), base).unwrap().blob;
        assert_eq!(rsdp, direct[..RSDP_LENGTH]);
        assert_eq!(tables[RSDP_LENGTH..], direct[RSDP_LENGTH..]);
    }
}
