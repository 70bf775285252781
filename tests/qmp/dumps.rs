//! Guest memory in makedumpfile's form, read as crash reads it, and held against `pmemsave`.

use super::harness::{Machine, Scratch};
use flate2::read::ZlibDecoder;
use serde_json::json;
use std::io::Read;

const BLOCK: usize = 4096;
const RAM: usize = 16 << 20;

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(wide)
}

/// A page of the dump; `None`: it has none of that number.
fn page(dump: &[u8], page: usize) -> Option<Vec<u8>> {
    let (second, bitmaps) = (number::<4>(dump, 432) as usize, number::<4>(dump, 436) as usize);
    let bits = &dump[(1 + second) * BLOCK..][..bitmaps / 2 * BLOCK];
    let is_there = |page: usize| bits[page / 8] >> (page % 8) & 1 != 0;
    let before = (0..page).filter(|page| is_there(*page)).count();
    let descriptor = (1 + second + bitmaps) * BLOCK + 24 * before;
    let (at, len) = (number::<8>(dump, descriptor) as usize, number::<4>(dump, descriptor + 8) as usize);
    let bytes = &dump[at..at + len];
    is_there(page).then(|| match number::<4>(dump, descriptor + 12) {
        0 => bytes.to_vec(),
        _ => {
            let mut plain = Vec::new();
            ZlibDecoder::new(bytes).read_to_end(&mut plain).expect("zlib");
            plain
        }
    })
}

/// Puts the parts of a flattened file where they belong.
fn arranged(flat: &[u8]) -> Vec<u8> {
    assert!(flat.starts_with(b"makedumpfile\0"));
    let (mut at, mut file) = (BLOCK, Vec::new());
    let part = |at: usize| {
        let word = |at: usize| i64::from_be_bytes(flat[at..at + 8].try_into().expect("eight bytes"));
        (word(at), word(at + 8))
    };
    while part(at) != (-1, -1) {
        let (offset, len) = (part(at).0 as usize, part(at).1 as usize);
        file.resize(file.len().max(offset + len), 0);
        file[offset..offset + len].copy_from_slice(&flat[at + 16..][..len]);
        at += 16 + len;
    }
    assert_eq!(at + 16, flat.len());
    file
}

#[test]
fn makedumpfiles_form_has_all_pages() {
    let files = Scratch::new("dump-files");
    let noise: Vec<u8> = (0..3 * BLOCK as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    std::fs::write(files.path("noise"), noise).expect("a file");
    let loader = format!("loader,file={},addr=0x200000,force-raw=on", files.path("noise"));
    let machine = Machine::start("dumps", &["-smp", "2", "-device", &loader]);
    let mut client = machine.client();
    client.run("stop", json!({})).expect("it stops");
    assert_eq!(client.hmp(&format!("dump-guest-memory -z -R {}", files.path("raw"))), "");
    let told = client.event("DUMP_COMPLETED");
    assert_eq!((&told["result"]["status"], told.get("error")), (&json!("completed"), None));
    let flat = json!({ "paging": false, "protocol": format!("file:{}", files.path("flat")), "format": "kdump-zlib" });
    client.run("dump-guest-memory", flat).expect("it is written");
    assert_eq!(client.hmp(&format!("pmemsave 0 {RAM} \"{}\"", files.path("memory"))), "");
    let [raw, flat, memory] =
        ["raw", "flat", "memory"].map(|name| std::fs::read(files.path(name)).expect("it is there"));
    assert!(raw == arranged(&flat), "both forms hold the same");
    assert!(raw.starts_with(b"KDUMP   \x06\0\0\0") && raw[12 + 4 * 65..].starts_with(b"x86_64\0"));
    assert!(raw.len() < 300_000, "what is zero is there once: {}", raw.len());
    assert_eq!(number::<4>(&raw, 460), 2, "processors");
    let (notes, len) = (number::<8>(&raw, BLOCK + 48) as usize, number::<8>(&raw, BLOCK + 56) as usize);
    assert_eq!(raw[notes..notes + len].windows(5).filter(|name| name == b"CORE\0").count(), 2);
    for n in (0..160).chain((256..RAM / BLOCK).step_by(37)).chain(512..516) {
        assert!(page(&raw, n).as_deref() == Some(&memory[n * BLOCK..][..BLOCK]), "page {n}");
    }
    assert_eq!(page(&raw, 0xa0), None, "no memory is at A0000");
}

#[test]
fn forms_that_are_not_written_are_named() {
    let machine = Machine::start("dump-forms", &["-S"]);
    let mut client = machine.client();
    let formats = client.run("query-dump-guest-memory-capability", json!({})).expect("it is told");
    assert_eq!(formats, json!({ "formats": ["elf", "kdump-zlib", "kdump-raw-zlib"] }));
    for (line, word) in [
        ("-l", "kdump-lzo is not available"),
        ("-s -R", "kdump-raw-snappy is not available"),
        ("-w", "win-dmp is not available"),
        ("-z -l", "only one of"),
        ("-z -p", "doesn't support paging or filter"),
    ] {
        let said = client.hmp(&format!("dump-guest-memory {line} /nowhere/dump"));
        assert!(said.contains(word) && said.lines().count() == 1, "{line}: {said}");
    }
    let said = client.hmp("dump-guest-memory -z /nowhere/dump 0 4096");
    assert!(said.contains("doesn't support paging or filter"), "{said}");
}
