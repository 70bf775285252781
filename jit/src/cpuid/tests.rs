use super::*;
use iced_x86::{Code, Decoder};

fn decode(bytes: &[u8]) -> Instruction {
    Decoder::new(64, bytes, 0).decode()
}

#[test]
fn names_and_features_are_parsed() {
    let m = parse("brolga,-sse4.2,+monitor,bmi2=off,sse4_1=on").unwrap();
    assert!(!m.has(Feature::SSE4_2) && m.has(Feature::MONITOR) && !m.has(Feature::BMI2) && m.has(Feature::SSE4_1));
    assert!(parse("nehalem").is_ok() && parse("Nehalem-v1").is_ok());
    assert!(!parse("max,-ssse3").unwrap().has(Feature::SSE4_1), "what builds on it goes with it");
}

#[test]
fn wrong_names_get_the_nearest_one() {
    assert_eq!(
        parse("Nehalm").unwrap_err(),
        "-cpu: unknown model 'Nehalm', did you mean 'Nehalem'?; '-cpu help' lists the models"
    );
    assert!(parse("max,+sse4.3").unwrap_err().contains("did you mean 'sse4.1'?"));
    assert!(parse("max,avx512zmm=on").unwrap_err().starts_with("-cpu: unknown feature 'avx512zmm'"));
    assert!(parse("max,aes=maybe").unwrap_err().contains("must be on or off"));
    assert!(parse("max,aes").unwrap_err().contains("+feature"));
    assert!(parse("max,-fpu").is_err());
    assert!(parse("").is_err());
}

#[test]
fn instructions_follow_the_features() {
    let popcnt = decode(&[0xf3, 0x0f, 0xb8, 0xc1]);
    let aesenc = decode(&[0x66, 0x0f, 0x38, 0xdc, 0xc1]);
    let vaddps = decode(&[0xc5, 0xf8, 0x58, 0xc1]);
    let fadd = decode(&[0xd8, 0xc1]);
    let fcmov = decode(&[0xda, 0xc1]);
    let endbr = decode(&[0xf3, 0x0f, 0x1e, 0xfa]);
    assert_eq!(endbr.code(), Code::Endbr64);
    let m = CpuModel::default();
    for i in [popcnt, aesenc, fadd, fcmov, endbr] {
        assert!(m.supports(&i), "{:?} needs {:?}", i.code(), i.cpuid_features());
    }
    assert!(!m.supports(&vaddps));
    let old = parse("qemu64").unwrap();
    assert!(!old.supports(&popcnt) && !old.supports(&aesenc) && old.supports(&fadd) && old.supports(&endbr));
    // `rep bsf` must stay a BSF there.
    let mut d = Decoder::with_ip(64, &[0xf3, 0x0f, 0xbc, 0xc1], 0, old.decoder_options());
    assert_eq!(d.decode().code(), Code::Bsf_r32_rm32);
}

#[test]
fn every_basic_instruction_is_in_every_model() {
    // MOV, SYSCALL, CLI, XCHG, LEAVE, BSWAP, CPUID, LGDT, IRETQ, multi-byte NOP, PAUSE.
    let cases: [&[u8]; 11] = [
        &[0x48, 0x89, 0xc8],
        &[0x0f, 0x05],
        &[0xfa],
        &[0x87, 0xc8],
        &[0xc9],
        &[0x0f, 0xc8],
        &[0x0f, 0xa2],
        &[0x0f, 0x01, 0x10],
        &[0x48, 0xcf],
        &[0x0f, 0x1f, 0],
        &[0xf3, 0x90],
    ];
    for name in ["qemu64", "kvm64", "Nehalem", "brolga"] {
        let m = parse(name).unwrap();
        for c in cases {
            let i = decode(c);
            assert!(m.supports(&i), "{name}: {:?} {:?}", i.code(), i.cpuid_features());
        }
    }
    assert!(CpuidFeature::values().all(|f| (f as usize) < 64 * ICED_WORDS));
}

#[test]
fn leaves_describe_the_model() {
    let m = CpuModel::default();
    let d = Dynamic { apic_id: 0, topology: Topology::default(), osxsave: true, xcr0: 3, apic_enabled: true };
    let l0 = m.cpuid(0, 0, &d);
    assert_eq!(l0[0], 0x16);
    assert_eq!([l0[1], l0[3], l0[2]].map(u32::to_le_bytes).concat(), b"GenuineIntel");
    let l1 = m.cpuid(1, 0, &d);
    assert_eq!(l1[0], 0x0006_06a6);
    assert_eq!(l1[2] >> 27 & 1, 1);
    assert_eq!(m.cpuid(1, 0, &Dynamic { osxsave: false, ..d })[2] >> 27 & 1, 0);
    let [denominator, numerator, crystal, _] = m.cpuid(0x15, 0, &d);
    assert_eq!(crystal as u64 * numerator as u64 / denominator as u64, crate::board::TSC_HZ);
    assert_eq!(m.cpuid(0x8000_0008, 0, &d)[0], 40 | 48 << 8);
    let brand: Vec<u8> =
        (0x8000_0002..=0x8000_0004).flat_map(|l| m.cpuid(l, 0, &d)).flat_map(u32::to_le_bytes).collect();
    assert!(brand.starts_with(b"Brolga Virtual CPU\0"));
    let hv = m.cpuid(0x4000_0000, 0, &d);
    assert_eq!(hv[1..].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>(), b"BrolgaBrolga");
    assert_eq!(m.cpuid(0x4000_0010, 0, &d)[0] as u64 * 1000, crate::board::TSC_HZ);
    assert_eq!(m.cpuid(0xd, 0, &d), [3, 576, 576, 0]);
    assert_eq!(m.cpuid(4, 4, &d), [0; 4]);
    assert_eq!(m.cpuid(0xffff_ffff, 0, &d), m.cpuid(0x16, 0, &d));
}

#[test]
fn avx_state_shows_in_leaf_0d() {
    if !helpers::vec::host_has_avx2() {
        assert!(parse("max,+avx2").unwrap_err().contains("takes a host with AVX2"));
        assert!(!parse("max").unwrap().has(Feature::AVX));
        return;
    }
    let m = parse("max").unwrap();
    let d = Dynamic { xcr0: 3, ..Dynamic::default() };
    assert_eq!(m.cpuid(0xd, 0, &d), [7, 576, 832, 0]);
    assert_eq!(m.cpuid(0xd, 0, &Dynamic { xcr0: 7, ..d })[1], 832);
    assert_eq!((m.cpuid(0xd, 1, &d)[1], m.cpuid(0xd, 1, &Dynamic { xcr0: 7, ..d })[1]), (576, 832));
    assert_eq!(m.cpuid(0xd, 2, &d), [256, 576, 0, 0]);
    assert_eq!(m.cpuid(1, 0, &d)[2] >> 28 & 3, 3);
    let without = parse("max,-avx").unwrap();
    let gone = [Feature::AVX2, Feature::FMA, Feature::F16C, Feature::VAES, Feature::VPCLMULQDQ];
    assert!(gone.iter().all(|f| !without.has(*f)), "what builds on AVX goes with it");
    assert_eq!((without.xcr0_mask(), without.cpuid(0xd, 2, &d)), (3, [0; 4]));
    assert!(m.supports(&decode(&[0xc5, 0xf8, 0x58, 0xc1])));
    // vaddps zmm0, zmm0, zmm1
    assert!(!m.supports(&decode(&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1])));
}

#[test]
fn leaves_describe_the_topology() {
    let topology = Topology { sockets: 2, dies: 1, cores: 3, threads: 2 };
    let d = Dynamic { apic_id: topology.apic_id(11), topology, osxsave: false, xcr0: 1, apic_enabled: true };
    let m = CpuModel::default();
    let l1 = m.cpuid(1, 0, &d);
    assert_eq!((l1[1] >> 24, l1[1] >> 16 & 0xff, l1[3] >> 28 & 1), (13, 8, 1));
    assert_eq!(m.cpuid(0xb, 0, &d), [1, 2, 1 << 8, 13]);
    assert_eq!(m.cpuid(0xb, 1, &d), [3, 6, 2 << 8 | 1, 13]);
    assert_eq!(m.cpuid(0xb, 2, &d), [0, 0, 2, 13]);
    let cache = |n: u32| (m.cpuid(4, n, &d)[0] >> 14 & 0xfff, m.cpuid(4, n, &d)[0] >> 26);
    assert_eq!([cache(0), cache(2), cache(3)], [(1, 3), (1, 3), (7, 3)]);
    let amd = parse("qemu64").unwrap();
    assert_eq!(amd.cpuid(0x8000_0008, 0, &d)[2], 3 << 12 | 5);
    // Without dies, leaf 1FH is out of range.
    assert_eq!(m.cpuid(0x1f, 0, &d), m.cpuid(0x16, 0, &d));
    let topology = Topology { sockets: 1, dies: 2, cores: 2, threads: 1 };
    let d = Dynamic { topology, ..d };
    assert_eq!([0, 1, 2, 3].map(|n| m.cpuid(0x1f, n, &d)[0]), [0, 1, 2, 0]);
    assert_eq!([0, 1, 2, 3].map(|n| m.cpuid(0x1f, n, &d)[2] >> 8), [1, 2, 5, 0]);
}

#[test]
fn help_lists_models_and_features() {
    let h = help();
    assert!(h.contains("  Nehalem ") && h.contains(" pclmulqdq") && h.lines().all(|l| l.len() <= 80));
}
