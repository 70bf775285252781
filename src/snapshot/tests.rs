use super::stream::Reader;
use super::*;
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;

const SIZE: u64 = 3 << 20;

/// A memory file that only the test has.
fn memory_file() -> File {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(SIZE).unwrap();
    file
}

fn makeup() -> Makeup {
    Makeup {
        program: "test".into(),
        board: "pc".into(),
        ram: 2 << 20,
        memory: SIZE,
        processors: 1,
        features: vec![[1, 2, 3, 4]],
        devices: vec![("pit".into(), "i8254".into())],
    }
}

fn machine() -> SavedMachine {
    SavedMachine {
        makeup: makeup(),
        clock: SavedClock { guest_ns: 77 },
        processors: Vec::new(),
        devices: json!({ "pit": { "count": 5 } }),
    }
}

/// Pages of different kinds: some in a row, the last one, one that is half zero, one that was touched and is zero.
fn fill(file: &File) {
    file.write_all_at(&[7; 4096 * 3 + 5], 4096).unwrap();
    file.write_all_at(b"end", SIZE - 3).unwrap();
    file.write_all_at(&[0; 4096], 1 << 20).unwrap();
    let noise: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    file.write_all_at(&noise, (1 << 20) + 100_000).unwrap();
}

fn stream() -> Vec<u8> {
    let file = memory_file();
    fill(&file);
    let mut out = Writer::new(Vec::new()).unwrap();
    machine().write(&mut out).unwrap();
    save_memory(&file, SIZE, &mut out).unwrap();
    out.finish().unwrap()
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_was_saved_comes_back_and_nothing_else() {
    let bytes = stream();
    assert!(bytes.len() < 700_000, "zero pages are left out: {}", bytes.len());
    assert_eq!(SavedMachine::read(&bytes[..], SIZE).unwrap(), machine());
    let (file, other) = (memory_file(), memory_file());
    fill(&file);
    // What is there already goes.
    other.write_all_at(&[9; SIZE as usize], 0).unwrap();
    load_memory(&bytes[..], &other, SIZE).unwrap();
    assert!(content(&file) == content(&other));
}

#[test]
fn what_follows_the_end_does_not_matter() {
    let mut bytes = stream();
    bytes.extend([0; 4096]);
    assert_eq!(SavedMachine::read(&bytes[..], SIZE).unwrap(), machine());
}

#[test]
fn every_cut_is_noticed() {
    let bytes = stream();
    let places = (0..200).chain((200..bytes.len()).step_by(997)).chain(bytes.len() - 40..bytes.len());
    for at in places {
        let error = SavedMachine::read(&bytes[..at], SIZE).unwrap_err();
        assert!(matches!(error, StreamError::Truncated | StreamError::Foreign), "{at}: {error}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = stream();
    for at in (0..200).chain((200..bytes.len()).step_by(1499)).chain(bytes.len() - 40..bytes.len()) {
        for bit in [0, 3, 7] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            assert!(SavedMachine::read(&bytes[..], SIZE).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn foreign_bytes_and_other_versions_are_named() {
    let qemu = *b"QEVM\0\0\0\x03\x07\0\0\0\x0cpc-i440fx-10.0";
    assert!(matches!(SavedMachine::read(&qemu[..], SIZE), Err(StreamError::Qemu)));
    let mut bytes = stream();
    bytes[16] = 9;
    assert!(matches!(SavedMachine::read(&bytes[..], SIZE), Err(StreamError::Version(9))));
}

/// Sections that are whole and make no sense.
#[test]
fn nonsense_with_right_checksums_is_refused() {
    let memory = |offset: u64, len: u64, packed: &[u8]| {
        let mut payload = [offset.to_le_bytes(), len.to_le_bytes()].concat();
        payload.extend(packed);
        payload
    };
    let page = pack(&[1; 4096]).unwrap();
    let bomb = pack(&vec![0; 80 << 20]).unwrap();
    let sections: [(&[u8; 4], Vec<u8>); 9] = [
        (b"memo", vec![1, 2, 3]),
        (b"memo", memory(SIZE - 4095, 4096, &page)),
        (b"memo", memory(u64::MAX, 4096, &page)),
        (b"memo", memory(0, 8192, &page)),
        (b"memo", memory(0, u64::MAX, &page)),
        (b"memo", memory(0, 4096, &bomb)),
        (b"memo", memory(0, 4096, b"no zstd")),
        (b"cloc", pack(b"{\"guest_ns\": 1}").unwrap()),
        (b"what", Vec::new()),
    ];
    for (kind, payload) in sections {
        let mut out = Writer::new(Vec::new()).unwrap();
        machine().write(&mut out).unwrap();
        out.section(*kind, &payload).unwrap();
        let bytes = out.finish().unwrap();
        let error = SavedMachine::read(&bytes[..], SIZE).unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
        assert!(load_memory(&bytes[..], &memory_file(), SIZE).is_err());
    }
    // Sections that are missing, or in another order.
    let mut out = Writer::new(Vec::new()).unwrap();
    put(&mut out, CLOCK, &machine().clock).unwrap();
    put(&mut out, MACHINE, &machine().makeup).unwrap();
    assert!(SavedMachine::read(&out.finish().unwrap()[..], SIZE).is_err());
    assert!(SavedMachine::read(&Writer::new(Vec::new()).unwrap().finish().unwrap()[..], SIZE).is_err());
}

/// Random streams with right checksums: an error, or something that was read in full.
#[test]
fn random_sections_never_panic() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..2000 {
        let mut out = Writer::new(Vec::new()).unwrap();
        if random() % 2 == 0 {
            machine().write(&mut out).unwrap();
        }
        for _ in 0..random() % 6 {
            let kinds = [MACHINE, CLOCK, PROCESSORS, DEVICES, *b"memo", *b"end "];
            let mut payload: Vec<u8> = (0..random() % 60).map(|_| random() as u8).collect();
            match random() % 4 {
                0 => payload = pack(&payload).unwrap(),
                1 => payload = pack(br#"{"guest_ns":3}"#).unwrap(),
                2 => payload.splice(0..0, [0; 16]).for_each(drop),
                _ => {}
            }
            out.section(kinds[random() as usize % kinds.len()], &payload).unwrap();
        }
        let bytes = out.finish().unwrap();
        if let Ok(read) = SavedMachine::read(&bytes[..], SIZE) {
            assert_eq!(read, machine());
        }
        let mut reader = Reader::new(&bytes[..]).unwrap();
        while let Ok(Some(_)) = reader.next() {}
    }
}

#[test]
fn machines_that_differ_say_in_what() {
    let here = makeup();
    assert_eq!(here.differs(&Makeup { program: "older".into(), ..makeup() }), None);
    let one = |saved: Makeup, word: &str| {
        let why = here.differs(&saved).unwrap();
        assert!(why.contains(word), "{why}");
    };
    one(Makeup { board: "q35".into(), ..makeup() }, "-machine q35");
    one(Makeup { ram: 512 << 20, ..makeup() }, "-m 512M, and this one has 2M");
    one(Makeup { processors: 2, ..makeup() }, "-smp 2");
    one(Makeup { features: vec![], ..makeup() }, "-cpu");
    one(Makeup { memory: 1 << 20, ..makeup() }, "firmware");
    one(Makeup { devices: vec![], ..makeup() }, "without the device pit");
    let more = [makeup().devices, vec![("hpet".into(), "hpet".into())]].concat();
    one(Makeup { devices: more, ..makeup() }, "the device hpet (hpet), which is not here");
}

/// Several passes over memory that changes between them.
#[test]
fn what_changes_is_sent_again_and_nothing_else() {
    let (file, told) = (memory_file(), Pass::default());
    fill(&file);
    let mut out = Writer::new(Vec::new()).unwrap();
    set_out(&mut out, &makeup(), Terms { answer: true }).unwrap();
    let mut copy = MemoryCopy::new(SIZE, 5);
    let first = copy.pass(&file, &mut out, &told).unwrap();
    assert!(first > 70 && told.zero.load(std::sync::atomic::Ordering::Relaxed) + first == SIZE / 4096);
    assert_eq!(copy.pass(&file, &mut out, &told).unwrap(), 0);
    file.write_all_at(&[9; 8192], 0x8000).unwrap();
    file.write_all_at(&[1], SIZE - 1).unwrap();
    // What becomes zero is sent too, whether the host holds zeroes or nothing.
    file.write_all_at(&[0; 4096], 4096).unwrap();
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, hole, (1 << 20) + 102_400, 8192).unwrap();
    assert_eq!(copy.pass(&file, &mut out, &told).unwrap(), 6);
    assert_eq!(copy.pass(&file, &mut out, &told).unwrap(), 0);
    let bytes = depart(out, &machine(), "running").unwrap();
    let other = memory_file();
    other.write_all_at(&[3; SIZE as usize], 0).unwrap();
    let arriving = Arriving::new(&bytes[..]).unwrap();
    assert!(arriving.terms.answer && arriving.makeup == makeup());
    let arrival = arriving.receive(&other, SIZE).unwrap();
    assert_eq!((arrival.saved, arrival.state.as_str()), (machine(), "running"));
    assert!(content(&file) == content(&other));
    for at in (0..300).chain((300..bytes.len()).step_by(1499)) {
        let cut = Arriving::new(&bytes[..at]).and_then(|arriving| arriving.receive(&other, SIZE).map(drop));
        assert!(matches!(cut, Err(StreamError::Truncated | StreamError::Foreign)), "{at}");
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        let flipped = Arriving::new(&bytes[..]).and_then(|arriving| arriving.receive(&other, SIZE).map(drop));
        assert!(flipped.is_err(), "byte {at}");
    }
}
