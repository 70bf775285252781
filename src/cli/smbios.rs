//! `-smbios type=0|1|2|3|11,...`.

use super::boot::readable;
use super::config::SmbiosConfig;
use super::keyval::KeyValues;
use super::options::Arguments;
use super::values;
use anyhow::{Result, anyhow, bail};

/// All occurrences; a later one adds to or replaces fields of an earlier one, as with QEMU.
pub fn settle(arguments: &Arguments) -> Result<SmbiosConfig> {
    let mut tables = SmbiosConfig::default();
    for value in arguments.all("smbios") {
        let mut keys = KeyValues::parse("-smbios", value, None)?;
        if let Some(file) = keys.take("file")? {
            return Err(keys.error("file", &file, "binary tables are not supported yet; give the fields with type="));
        }
        let Some(kind) = keys.take_as("type", values::number)? else {
            bail!("-smbios {value}: type= is missing; use -smbios type=1,serial=...");
        };
        one_type(&mut tables, kind, &mut keys, value)?;
        keys.finish()?;
    }
    Ok(tables)
}

fn one_type(tables: &mut SmbiosConfig, kind: u64, keys: &mut KeyValues, value: &str) -> Result<()> {
    match kind {
        0 => {
            let t = &mut tables.bios;
            text(keys, "vendor", &mut t.vendor)?;
            text(keys, "version", &mut t.version)?;
            text(keys, "date", &mut t.date)?;
            t.release = keys.take_as("release", release)?.or(t.release);
            t.uefi = keys.take_switch("uefi")?.or(t.uefi);
        }
        1 => {
            let t = &mut tables.system;
            text(keys, "manufacturer", &mut t.manufacturer)?;
            text(keys, "product", &mut t.product)?;
            text(keys, "version", &mut t.version)?;
            text(keys, "serial", &mut t.serial)?;
            text(keys, "sku", &mut t.sku)?;
            text(keys, "family", &mut t.family)?;
            t.uuid = keys.take_as("uuid", values::uuid)?.or(t.uuid);
        }
        2 => {
            let t = &mut tables.board;
            text(keys, "manufacturer", &mut t.manufacturer)?;
            text(keys, "product", &mut t.product)?;
            text(keys, "version", &mut t.version)?;
            text(keys, "serial", &mut t.serial)?;
            text(keys, "asset", &mut t.asset)?;
            text(keys, "location", &mut t.location)?;
        }
        3 => {
            let t = &mut tables.chassis;
            text(keys, "manufacturer", &mut t.manufacturer)?;
            text(keys, "version", &mut t.version)?;
            text(keys, "serial", &mut t.serial)?;
            text(keys, "asset", &mut t.asset)?;
            text(keys, "sku", &mut t.sku)?;
        }
        11 => oem_strings(tables, keys)?,
        _ => bail!("-smbios {value}: type {kind} is not supported yet; there are types 0, 1, 2, 3 and 11"),
    }
    Ok(())
}

/// A string field; an empty one counts as given, as with QEMU.
fn text(keys: &mut KeyValues, key: &'static str, field: &mut Option<String>) -> Result<()> {
    if let Some(value) = keys.take(key)? {
        *field = Some(value);
    }
    Ok(())
}

/// `MAJOR.MINOR`.
fn release(text: &str) -> Result<(u8, u8), values::Refusal> {
    let parts = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    parts.ok_or_else(|| format!("'{text}' is not a release; write MAJOR.MINOR, each 0 to 255"))
}

fn oem_strings(tables: &mut SmbiosConfig, keys: &mut KeyValues) -> Result<()> {
    tables.oem_strings.extend(keys.take_all("value"));
    for path in keys.take_all("path") {
        let what = format!("-smbios type=11,path={path}");
        readable(&what, &path)?;
        let bytes =
            std::fs::read(&path).map_err(|e| anyhow!("{what}: cannot be read: {}", super::boot::os_reason(&e)))?;
        if bytes.contains(&0) {
            bail!("{what}: contains a zero byte, which ends an SMBIOS string; use a text file");
        }
        let text = String::from_utf8(bytes).map_err(|_| anyhow!("{what}: is not UTF-8 text; use a text file"))?;
        tables.oem_strings.push(text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    #[test]
    fn fields_and_oem_strings() {
        let c = with(&[
            "-smbios",
            "type=1,serial=ds=nocloud;s=http://10.0.2.2:1/,manufacturer=A,,B",
            "-smbios",
            "type=1,family=F",
            "-smbios",
            "type=11,value=one,value=two",
            "-smbios",
            "type=0,release=3.14,uefi=on",
        ])
        .unwrap()
        .smbios;
        assert_eq!(c.system.serial.as_deref(), Some("ds=nocloud;s=http://10.0.2.2:1/"));
        assert_eq!(c.system.manufacturer.as_deref(), Some("A,B"));
        assert_eq!(c.system.family.as_deref(), Some("F"));
        assert_eq!(c.oem_strings, ["one", "two"]);
        assert_eq!((c.bios.release, c.bios.uefi), (Some((3, 14)), Some(true)));
    }

    #[test]
    fn refusals() {
        let err = |v| with(&["-smbios", v]).unwrap_err();
        assert!(err("serial=1").contains("type= is missing"));
        assert!(err("type=17,size=3").contains("there are types 0, 1, 2, 3 and 11"));
        assert!(err("type=1,sreial=3").contains("did you mean serial?"));
        assert!(err("type=0,release=1.300").contains("MAJOR.MINOR"));
        assert!(err("type=11,path=/no").contains("no such file"));
    }
}
