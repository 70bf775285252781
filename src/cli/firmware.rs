//! `-fw_cfg` and `-acpitable`: what the user gives firmware, and the guest's drivers, to read.

use super::boot::os_reason;
use super::config::FirmwareFile;
use super::keyval::KeyValues;
use super::options::Arguments;
use super::values;
use anyhow::{Result, anyhow, bail};

/// Bytes of a table's header (ACPI specification 5.2.6), and where in it the fields are that can be given.
const HEADER: usize = 36;
const LENGTH: usize = 4;
const REVISION: usize = 8;
const CHECKSUM: usize = 9;
const OEM_REVISION: usize = 24;
const COMPILER_REVISION: usize = 32;
/// Keys of text fields, where they are, and how long.
const TEXTS: [(&str, usize, usize); 4] =
    [("sig", 0, 4), ("oem_id", 10, 6), ("oem_table_id", 16, 8), ("asl_compiler_id", 28, 4)];

fn read(what: &str, path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| anyhow!("{what}: {path} cannot be read: {}; check the path", os_reason(&e)))
}

/// `-fw_cfg [name=]NAME,file=FILE|string=TEXT`.
pub fn files(arguments: &Arguments) -> Result<Vec<FirmwareFile>> {
    let mut all: Vec<FirmwareFile> = Vec::new();
    for value in arguments.all("fw_cfg") {
        let what = format!("-fw_cfg {value}");
        let mut keys = KeyValues::parse("-fw_cfg", value, Some("name"))?;
        let (name, file, text) = (keys.take("name")?, keys.take("file")?, keys.take("string")?);
        if let Some(id) = keys.take("gen_id")? {
            return Err(keys.error("gen_id", &id, "not supported yet; use file= or string="));
        }
        keys.finish()?;
        let Some(name) = name else { bail!("{what}: name= is missing; use names of your own like opt/org.example/x") };
        let bytes = match (file, text) {
            (Some(file), None) => read(&what, &file)?,
            (None, Some(text)) => text.into_bytes(),
            _ => bail!("{what}: give either file= or string="),
        };
        if all.iter().any(|other| other.name == name) {
            bail!("{what}: there is another file called {name}; give it another name");
        }
        all.push(FirmwareFile { what, name, bytes });
    }
    Ok(all)
}

/// `-acpitable [KEY=VALUE,...]data=FILE[:FILE...]` for a table's body, or with `file=` for one with its header.
pub fn acpi_tables(arguments: &Arguments) -> Result<Vec<Vec<u8>>> {
    arguments.all("acpitable").iter().map(|value| acpi_table(value)).collect()
}

fn acpi_table(value: &str) -> Result<Vec<u8>> {
    let what = format!("-acpitable {value}");
    let mut keys = KeyValues::parse("-acpitable", value, None)?;
    let (file, data) = (keys.take("file")?, keys.take("data")?);
    let (paths, with_header) = match (file, data) {
        (Some(paths), None) => (paths, true),
        (None, Some(paths)) => (paths, false),
        _ => bail!("{what}: give either file= (with the table's header) or data= (without)"),
    };
    let mut table = if with_header { Vec::new() } else { blank_header() };
    for path in paths.split(':') {
        table.extend(read(&what, path)?);
    }
    if table.len() < HEADER {
        bail!("{what}: a table has a header of {HEADER} bytes; use data= for one without");
    }
    let mut put = |at: usize, bytes: &[u8]| table.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    for (key, at, len) in TEXTS {
        let text = keys.take_as(key, |t| match t.is_ascii() && t.len() <= len {
            true => Ok(t.to_owned()),
            false => Err(format!("it has up to {len} ASCII characters")),
        })?;
        if let Some(text) = text {
            let mut field = text.into_bytes();
            field.resize(len, if key == "sig" { b' ' } else { 0 });
            put(at, &field);
        }
    }
    if let Some(revision) = keys.take_as("rev", |t| values::number_in(t, 0, 255))? {
        put(REVISION, &[revision as u8]);
    }
    for (key, at) in [("oem_rev", OEM_REVISION), ("asl_compiler_rev", COMPILER_REVISION)] {
        if let Some(number) = keys.take_as(key, |t| values::number_in(t, 0, u32::MAX.into()))? {
            put(at, &(number as u32).to_le_bytes());
        }
    }
    keys.finish()?;
    let len = u32::try_from(table.len()).map_err(|_| anyhow!("{what}: the table is too large; give a smaller one"))?;
    let mut put = |at: usize, bytes: &[u8]| table.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    put(LENGTH, &len.to_le_bytes());
    put(CHECKSUM, &[0]);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = table.get_mut(CHECKSUM) {
        *byte = sum.wrapping_neg();
    }
    Ok(table)
}

/// A header whose fields say what they do where nothing else is asked for.
fn blank_header() -> Vec<u8> {
    let mut header = vec![0; HEADER];
    let fields: [(usize, &[u8]); 5] =
        [(0, b"OEMT"), (REVISION, &[1]), (10, b"BROLGA"), (16, b"BROLGAPC"), (28, b"BRLG")];
    for (at, bytes) in fields {
        header.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }
    header
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    fn file(name: &str, bytes: &[u8]) -> String {
        let path = std::env::temp_dir().join(format!("brolga-firmware-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn line<'a>(words: &[&'a str]) -> Vec<&'a str> {
        [&["-kernel", "/proc/self/exe"], words].concat()
    }

    #[test]
    fn files_of_the_users() {
        let path = file("a", b"from a file");
        let given = format!("opt/a,file={path}");
        let c = with(&line(&["-fw_cfg", &given, "-fw_cfg", "name=opt/b,string=x,,y"])).unwrap();
        let shown: Vec<_> = c.firmware_files.iter().map(|f| (f.name.as_str(), f.bytes.as_slice())).collect();
        assert_eq!(shown, [("opt/a", &b"from a file"[..]), ("opt/b", b"x,y")]);
        std::fs::remove_file(&path).unwrap();
        let err = |value: &str| with(&line(&["-fw_cfg", value])).unwrap_err();
        assert!(err(&given).contains("cannot be read"));
        assert!(err("opt/a").contains("either file= or string="));
        assert!(err("string=x").contains("name= is missing"));
        assert!(err("opt/a,strnig=x").contains("did you mean string?"));
        let twice = line(&["-fw_cfg", "opt/a,string=1", "-fw_cfg", "opt/a,string=2"]);
        assert!(with(&twice).unwrap_err().contains("another file called opt/a"));
    }

    #[test]
    fn tables_of_the_users() {
        let (body, tail) = (file("body", b"body"), file("tail", b"tail"));
        let given = format!("sig=TEST,rev=3,oem_id=ME,oem_rev=7,data={body}:{tail}");
        let table = with(&line(&["-acpitable", &given])).unwrap().acpi_tables.remove(0);
        assert_eq!((&table[..9], table.len(), &table[36..]), (&b"TEST\x2c\0\0\0\x03"[..], 44, &b"bodytail"[..]));
        assert_eq!((&table[10..16], table[24]), (&b"ME\0\0\0\0"[..], 7));
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let whole = file("whole", &table);
        let same = with(&line(&["-acpitable", &format!("file={whole}")])).unwrap().acpi_tables.remove(0);
        assert_eq!(same, table);
        let err = |value: String| with(&line(&["-acpitable", &value])).unwrap_err();
        assert!(err(format!("file={body}")).contains("header of 36 bytes"));
        assert!(err(format!("file={whole},data={body}")).contains("either file="));
        assert!(err(format!("file={whole},sig=TOOLONG")).contains("up to 4 ASCII"));
        for path in [body, tail, whole] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
