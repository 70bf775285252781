//! Pictures of the screen, as files.

use brolga::descriptors;
use brolga_devices::vga::Picture;
use std::io::{self, BufWriter, Write};

/// Forms of a picture file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFormat {
    /// Portable pixmap, binary.
    #[default]
    Ppm,
    /// Portable network graphics.
    Png,
}

impl ImageFormat {
    /// The form that is called so.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "ppm" => Some(Self::Ppm),
            "png" => Some(Self::Png),
            _ => None,
        }
    }
}

/// Writes a picture to a new file.
pub fn save(picture: &Picture, path: &str, format: ImageFormat) -> Result<(), String> {
    let reason = |e: io::Error| crate::cli::os_reason(&e);
    let file = descriptors::create(path).map_err(|e| format!("failed to open file '{path}': {}", reason(e)))?;
    let mut out = BufWriter::new(file);
    let written = write(picture, format, &mut out).and_then(|()| out.flush());
    written.map_err(|e| format!("{path}: the picture cannot be written: {}", reason(e)))
}

fn write(picture: &Picture, format: ImageFormat, out: &mut impl Write) -> io::Result<()> {
    let Picture { width, height, rgb } = picture;
    if format == ImageFormat::Ppm {
        write!(out, "P6\n{width} {height}\n255\n")?;
        return out.write_all(rgb);
    }
    let mut encoder = png::Encoder::new(out, *width as u32, *height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_what_they_should_be() {
        let picture = Picture { width: 2, height: 1, rgb: vec![255, 0, 1, 2, 3, 4] };
        let mut out = Vec::new();
        write(&picture, ImageFormat::Ppm, &mut out).unwrap();
        assert_eq!(out, b"P6\n2 1\n255\n\xff\x00\x01\x02\x03\x04");
        out.clear();
        write(&picture, ImageFormat::Png, &mut out).unwrap();
        let mut reader = png::Decoder::new(io::Cursor::new(out)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert_eq!((info.width, info.height, &bytes[..]), (2, 1, &picture.rgb[..]));
        assert!(save(&picture, "/nowhere/at/all", ImageFormat::Ppm).unwrap_err().contains("failed to open file"));
    }
}
