//! `-o`: what an image that is to be made is like, by format.

use crate::block::qcow2::{self, Compression, CreateOptions};
use crate::block::{self, Format, Preallocation};
use crate::words::keyval::KeyValues;
use crate::words::values;
use anyhow::{Result, anyhow, bail};
use std::path::Path;

/// An image to be made.
#[derive(Debug, Clone)]
pub enum NewImage {
    /// Bytes alone.
    Raw {
        /// Size in bytes, if it was told.
        size: Option<u64>,
        /// What is reserved, if it was told.
        preallocation: Option<Preallocation>,
    },
    /// A qcow2 image; its size counts only if it was told.
    Qcow2 {
        /// What it is like.
        options: Box<CreateOptions>,
        /// Whether `options.size` was told.
        sized: bool,
        /// `compat` as it was told.
        compat: Option<String>,
        /// Whether preallocation was told.
        preallocated: bool,
    },
}

/// Options of qcow2 that are known and refused.
const REFUSED: [(&str, &str); 3] = [
    ("encryption", "encrypted images are not supported"),
    ("encrypt.format", "encrypted images are not supported"),
    ("encrypt.key-secret", "encrypted images are not supported"),
];

/// The text of `-o help`.
pub fn help(format: Format) -> String {
    let raw = [("preallocation=<str>", "what to reserve: off, falloc, full"), ("size=<size>", "size of the disk")];
    let qcow2 = [
        ("backing_file=<str>", "image below"),
        ("backing_fmt=<str>", "its format"),
        ("cluster_size=<size>", "bytes in a cluster: 512 to 2M"),
        ("compat=<str>", "version: v2 (0.10) or v3 (1.1)"),
        ("compression_type=<str>", "for compressed clusters: zlib, zstd"),
        ("data_file=<str>", "a file of its own for the data"),
        ("data_file_raw=<on|off>", "the data file alone reads as the disk"),
        ("extended_l2=<on|off>", "clusters of 32 subclusters"),
        ("lazy_refcounts=<on|off>", "write reference counts late"),
        ("preallocation=<str>", "what to reserve: off, metadata, falloc, full"),
        ("refcount_bits=<num>", "width of a reference count: 1 to 64"),
        ("size=<size>", "size of the disk"),
    ];
    let rows: &[(&str, &str)] = if format == Format::Qcow2 { &qcow2 } else { &raw };
    let lines: String = rows.iter().map(|(name, text)| format!("  {name:<22} - {text}\n")).collect();
    format!("Supported {} options:\n{lines}", format.name())
}

/// Whether a value of `-o` asks for help.
pub fn asks_help(text: &str) -> bool {
    text.split(',').any(|part| matches!(part, "help" | "?" | "list"))
}

/// Reads all values of `-o`.
pub fn read<'a>(format: Format, texts: impl Iterator<Item = &'a str>) -> Result<NewImage> {
    let mut list = KeyValues::none("-o");
    for text in texts {
        list.add(text, None)?;
    }
    let size = list.take_as("size", |v| values::size(v, 1))?;
    let mode = |v: &str| Preallocation::from_name(v).map_err(|_| "there are off, metadata, falloc and full".to_owned());
    let preallocation = list.take_as("preallocation", mode)?;
    let new = match format {
        Format::Raw => {
            if preallocation == Some(Preallocation::Metadata) {
                bail!("-o preallocation=metadata: raw images have no metadata; there are off, falloc and full");
            }
            NewImage::Raw { size, preallocation }
        }
        Format::Qcow2 => read_qcow2(&mut list, size, preallocation)?,
        Format::Foreign(name) => bail!("{name} images cannot be made; there are qcow2 and raw"),
    };
    list.finish()?;
    Ok(new)
}

fn read_qcow2(list: &mut KeyValues, size: Option<u64>, preallocation: Option<Preallocation>) -> Result<NewImage> {
    for (key, why) in REFUSED {
        if let Some(value) = list.take(key)? {
            return Err(list.error(key, &value, why));
        }
    }
    let compat = list.take("compat")?;
    let version = match compat.as_deref() {
        None | Some("1.1" | "v3") => 3,
        Some("0.10" | "v2") => 2,
        Some(other) => return Err(list.error("compat", other, "there are 0.10 (v2) and 1.1 (v3)")),
    };
    let width = |v: &str| match values::number(v)? {
        n if n.is_power_of_two() && n <= 64 => Ok(n as u32),
        _ => Err("a power of two from 1 to 64 is needed".to_owned()),
    };
    let cluster = |v: &str| match values::size(v, 1)? {
        n if n.is_power_of_two() && (512..=2 << 20).contains(&n) => Ok(n),
        _ => Err("a power of two from 512 to 2M is needed".to_owned()),
    };
    let compression = |v: &str| match v {
        "zlib" => Ok(Compression::Zlib),
        "zstd" => Ok(Compression::Zstd),
        _ => Err("there are zlib and zstd".to_owned()),
    };
    let defaults = CreateOptions::default();
    let backing = list.take("backing_file")?.filter(|b| !b.is_empty());
    let backing_format = list.take_as("backing_fmt", super::images::format)?;
    let options = CreateOptions {
        size: size.unwrap_or(0),
        cluster_size: list.take_as("cluster_size", cluster)?.unwrap_or(defaults.cluster_size),
        refcount_bits: list.take_as("refcount_bits", width)?.unwrap_or(defaults.refcount_bits),
        version,
        lazy_refcounts: list.take_switch("lazy_refcounts")?.unwrap_or(false),
        preallocation: preallocation.unwrap_or_default(),
        compression: list.take_as("compression_type", compression)?.unwrap_or_default(),
        backing: backing.map(|file| (file, backing_format)),
        extended_l2: list.take_switch("extended_l2")?.unwrap_or(false),
        data_file: list.take("data_file")?.filter(|f| !f.is_empty()),
        data_file_raw: list.take_switch("data_file_raw")?.unwrap_or(false),
    };
    check_version(&options)?;
    Ok(NewImage::Qcow2 {
        options: Box::new(options),
        sized: size.is_some(),
        compat,
        preallocated: preallocation.is_some(),
    })
}

/// What version 2 has not (QEMU: docs/interop/qcow2.rst, header fields of version 3).
fn check_version(options: &CreateOptions) -> Result<()> {
    let wrong = [
        (options.refcount_bits != 16, "refcount_bits other than 16"),
        (options.lazy_refcounts, "lazy_refcounts=on"),
        (options.compression == Compression::Zstd, "compression_type=zstd"),
        (options.extended_l2, "extended_l2=on"),
        (options.data_file.is_some(), "data_file"),
    ];
    match wrong.iter().find(|(is, _)| *is && options.version == 2) {
        Some((_, what)) => Err(anyhow!("-o {what}: not in version 2; use compat=1.1")),
        None => Ok(()),
    }
}

impl NewImage {
    /// Its format.
    pub fn format(&self) -> Format {
        match self {
            NewImage::Raw { .. } => Format::Raw,
            NewImage::Qcow2 { .. } => Format::Qcow2,
        }
    }

    /// The size if it was told.
    pub fn size(&self) -> Option<u64> {
        match self {
            NewImage::Raw { size, .. } => *size,
            NewImage::Qcow2 { options, sized, .. } => sized.then_some(options.size),
        }
    }

    /// Tells the size. Disks are whole sectors of 512 bytes.
    pub fn set_size(&mut self, bytes: u64) -> Result<()> {
        let whole = bytes.checked_next_multiple_of(512).filter(|&n| n <= i64::MAX as u64);
        let whole = whole.ok_or_else(|| anyhow!("{bytes} bytes are more than an image can have"))?;
        match self {
            NewImage::Raw { size, .. } => *size = Some(whole),
            NewImage::Qcow2 { options, sized, .. } => {
                options.size = whole;
                *sized = true;
            }
        }
        Ok(())
    }

    /// The image below, as it was told, and its format.
    pub fn backing(&self) -> Option<(&str, Option<Format>)> {
        match self {
            NewImage::Qcow2 { options, .. } => options.backing.as_ref().map(|(file, format)| (file.as_str(), *format)),
            NewImage::Raw { .. } => None,
        }
    }

    /// Puts it on another image.
    pub fn set_backing(&mut self, file: &str, format: Option<Format>) -> Result<()> {
        match self {
            NewImage::Raw { .. } => bail!("-b: raw images cannot have a backing file; use the format qcow2"),
            NewImage::Qcow2 { options, .. } => options.backing = Some((file.to_owned(), format)),
        }
        Ok(())
    }

    /// Whether its space is reserved when it is made.
    pub fn preallocation(&self) -> Preallocation {
        match self {
            NewImage::Raw { preallocation, .. } => preallocation.unwrap_or_default(),
            NewImage::Qcow2 { options, .. } => options.preallocation,
        }
    }

    /// What `create` says about it, `asked` being the size before it was rounded.
    pub fn describe(&self, name: &str, asked: u64) -> String {
        let switch = |on: bool| if on { "on" } else { "off" };
        let reserved = |mode: Preallocation| match mode {
            Preallocation::Off => "off",
            Preallocation::Metadata => "metadata",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        };
        match self {
            NewImage::Raw { preallocation, .. } => {
                let tail = preallocation.map_or(String::new(), |p| format!(" preallocation={}", reserved(p)));
                format!("Formatting '{name}', fmt=raw size={asked}{tail}")
            }
            NewImage::Qcow2 { options: o, compat, preallocated, .. } => {
                let extended = switch(o.extended_l2);
                let mut text =
                    format!("Formatting '{name}', fmt=qcow2 cluster_size={} extended_l2={extended}", o.cluster_size);
                if *preallocated {
                    text += &format!(" preallocation={}", reserved(o.preallocation));
                }
                text += &format!(" compression_type={} size={asked}", o.compression.name());
                text += &compat.as_ref().map_or(String::new(), |c| format!(" compat={c}"));
                if let Some((file, format)) = &o.backing {
                    text += &format!(" backing_file={file}");
                    text += &format.map_or(String::new(), |f| format!(" backing_fmt={}", f.name()));
                }
                if let Some(file) = &o.data_file {
                    text += &format!(" data_file={file}");
                }
                if o.data_file_raw {
                    text += " data_file_raw=on";
                }
                text + &format!(" lazy_refcounts={} refcount_bits={}", switch(o.lazy_refcounts), o.refcount_bits)
            }
        }
    }

    /// Makes it. A file that is there loses its content.
    pub fn create(&self, path: &Path) -> Result<()> {
        super::images::refuse_busy(path)?;
        match self {
            NewImage::Raw { size, preallocation } => {
                block::create_raw(path, size.unwrap_or(0), preallocation.unwrap_or_default())?;
            }
            NewImage::Qcow2 { options, .. } => qcow2::create(path, options)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_shown() {
        let text = "cluster_size=4k,compat=0.10,preallocation=metadata,backing_file=b,backing_fmt=raw";
        let mut new = read(Format::Qcow2, [text, "size=1M"].into_iter()).unwrap();
        assert_eq!((new.size(), new.backing()), (Some(1 << 20), Some(("b", Some(Format::Raw)))));
        new.set_size(1000).unwrap();
        assert_eq!(
            new.describe("x", 1000),
            "Formatting 'x', fmt=qcow2 cluster_size=4096 extended_l2=off preallocation=metadata compression_type=zlib \
             size=1000 compat=0.10 backing_file=b backing_fmt=raw lazy_refcounts=off refcount_bits=16"
        );
        assert_eq!(new.size(), Some(1024));
    }

    #[test]
    fn wrong_options_are_told() {
        for (format, text, error) in [
            (Format::Raw, "foo=1", "-o: unknown or unsupported key 'foo'; known: size, preallocation"),
            (
                Format::Raw,
                "preallocation=metadata",
                "-o preallocation=metadata: raw images have no metadata; there are off, falloc and full",
            ),
            (Format::Qcow2, "cluster_size=5k", "-o cluster_size=5k: a power of two from 512 to 2M is needed"),
            (
                Format::Qcow2,
                "compat=0.10,refcount_bits=8",
                "-o refcount_bits other than 16: not in version 2; use compat=1.1",
            ),
            (Format::Qcow2, "encryption=on", "-o encryption=on: encrypted images are not supported"),
        ] {
            assert_eq!(read(format, [text].into_iter()).unwrap_err().to_string(), error);
        }
    }
}
