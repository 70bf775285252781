//! CPUID models: `-cpu NAME[,+feature,-feature,feature=on|off]`.

mod features;
mod leaves;
mod listing;
mod models;
mod topology;

pub use features::Feature;
pub use leaves::Dynamic;
pub use listing::{feature_names, model_names, plain_model};
pub use topology::Topology;

use crate::helpers;
use features::{ALL, ALWAYS, info, word};
use iced_x86::{CpuidFeature, DecoderOptions, Instruction};
use models::{AVX2_SET, MODELS, Template};

/// The model that has all that the host can do.
const EVERYTHING: &str = "max";

/// Words of the bit set over iced's features.
const ICED_WORDS: usize = 4;

/// A processor model with its features settled.
#[derive(Clone, Debug)]
pub struct CpuModel {
    /// Name as given on the command line.
    pub name: String,
    vendor: [u8; 12],
    signature: u32,
    brand: &'static str,
    /// Feature words, indexed by [`features::word`].
    words: [u32; word::COUNT],
    /// Instruction sets, a bit per [`CpuidFeature`].
    iced: [u64; ICED_WORDS],
}

/// EAX of leaf 1.
fn signature((family, model, stepping): (u32, u32, u32)) -> u32 {
    let (base, extended) = if family >= 15 { (15, family - 15) } else { (family, 0) };
    stepping & 15 | (model & 15) << 4 | base << 8 | (model >> 4 & 15) << 16 | extended << 20
}

/// Parses the value of `-cpu`. The error is one line: what is wrong and the nearest name.
pub fn parse(spec: &str) -> Result<CpuModel, String> {
    let mut parts = spec.split(',');
    let name = parts.next().unwrap_or_default();
    let template = find_model(name)?;
    let mut model = CpuModel::of(template);
    if template.name == EVERYTHING && !helpers::vec::host_has_avx2() {
        AVX2_SET.iter().for_each(|f| model.set(*f, false));
    }
    for part in parts {
        let (feature, on) = parse_feature(part)?;
        model.set(feature, on);
    }
    if let Some(f) = AVX2_SET.iter().find(|f| model.has(**f) && !helpers::vec::host_has_avx2()) {
        let feature = info(*f).name;
        return Err(format!(
            "-cpu: feature '{feature}' takes a host with AVX2, FMA and F16C; add '-{feature}' or use 'max'"
        ));
    }
    model.settle()?;
    model.name = name.to_owned();
    Ok(model)
}

fn find_model(name: &str) -> Result<&'static Template, String> {
    let base = name.strip_suffix("-v1").unwrap_or(name);
    if let Some(t) = MODELS.iter().find(|t| t.name.eq_ignore_ascii_case(base)) {
        return Ok(t);
    }
    let near = nearest(base, MODELS.iter().map(|t| t.name));
    Err(format!("-cpu: unknown model '{name}'{near}; '-cpu help' lists the models"))
}

fn parse_feature(part: &str) -> Result<(Feature, bool), String> {
    let (name, on) = if let Some(n) = part.strip_prefix('+') {
        (n, true)
    } else if let Some(n) = part.strip_prefix('-') {
        (n, false)
    } else {
        match part.split_once('=') {
            Some((n, "on" | "yes" | "true")) => (n, true),
            Some((n, "off" | "no" | "false")) => (n, false),
            Some((n, v)) => return Err(format!("-cpu: value '{v}' of feature '{n}' must be on or off")),
            None => return Err(format!("-cpu: '{part}' must be +feature, -feature or feature=on|off")),
        }
    };
    match features::by_name(name) {
        Some(i) => Ok((i.id, on)),
        None => {
            let near = nearest(name, ALL.iter().map(|i| i.name));
            Err(format!("-cpu: unknown feature '{name}'{near}; '-cpu help' lists the features"))
        }
    }
}

/// `, did you mean 'x'?` for the name fewest edits away, if it is near.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let name = name.to_ascii_lowercase();
    let best = names.map(|n| (distance(&name, &n.to_ascii_lowercase()), n)).min();
    match best {
        Some((d, n)) if d <= 1 + n.len() / 3 => format!(", did you mean '{n}'?"),
        _ => String::new(),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The text of `-cpu help`.
pub fn help() -> String {
    let mut out = String::from("Available CPUs:\n");
    for t in MODELS {
        out.push_str(&format!("  {:<16} {}\n", t.name, t.description));
    }
    out.push_str("\nRecognized features (+feature, -feature, feature=on|off):\n");
    let mut line = String::new();
    for i in ALL {
        if line.len() + i.name.len() + 1 > 76 {
            out.push_str(&format!(" {line}\n"));
            line.clear();
        }
        line.push(' ');
        line.push_str(i.name);
    }
    out.push_str(&format!(" {line}\n"));
    out
}

impl Default for CpuModel {
    /// The default model.
    fn default() -> Self {
        let mut m = Self::of(&MODELS[0]);
        m.note_instruction_sets();
        m
    }
}

/// Features that need another one.
const NEEDS: &[(Feature, Feature)] = &[
    (Feature::SSE, Feature::FXSR),
    (Feature::SSE2, Feature::SSE),
    (Feature::SSE3, Feature::SSE2),
    (Feature::SSSE3, Feature::SSE3),
    (Feature::SSE4_1, Feature::SSSE3),
    (Feature::SSE4_2, Feature::SSE4_1),
    (Feature::AES, Feature::SSE2),
    (Feature::PCLMULQDQ, Feature::SSE2),
    (Feature::SHA_NI, Feature::SSE2),
    (Feature::AVX, Feature::XSAVE),
    (Feature::AVX, Feature::SSE4_2),
    (Feature::AVX2, Feature::AVX),
    (Feature::FMA, Feature::AVX),
    (Feature::F16C, Feature::AVX),
    (Feature::VAES, Feature::AVX2),
    (Feature::VAES, Feature::AES),
    (Feature::VPCLMULQDQ, Feature::AVX2),
    (Feature::VPCLMULQDQ, Feature::PCLMULQDQ),
    (Feature::XSAVEOPT, Feature::XSAVE),
    (Feature::XSAVEC, Feature::XSAVE),
    (Feature::XGETBV1, Feature::XSAVE),
    (Feature::XSAVES, Feature::XSAVE),
    (Feature::LM, Feature::PAE),
    (Feature::LM, Feature::SSE2),
    (Feature::PCID, Feature::LM),
    (Feature::X2APIC, Feature::APIC),
    (Feature::TSC_DEADLINE, Feature::APIC),
];

impl CpuModel {
    fn of(t: &Template) -> Self {
        let mut m = Self {
            name: t.name.to_owned(),
            vendor: *t.vendor,
            signature: signature(t.signature),
            brand: t.brand,
            words: [0; _],
            iced: [0; _],
        };
        for f in t.features.iter().flat_map(|l| l.iter()) {
            m.set(*f, true);
        }
        m
    }

    fn set(&mut self, f: Feature, on: bool) {
        let i = info(f);
        let bit = 1 << i.bit;
        if on {
            self.words[i.word] |= bit;
        } else {
            self.words[i.word] &= !bit;
        }
    }

    /// Drops what lost its ground (`-sse2` takes SSE3 with it), then works out the instruction sets.
    fn settle(&mut self) -> Result<(), String> {
        if !self.has(Feature::FPU) {
            return Err("-cpu: feature 'fpu' cannot be switched off: there is no processor without x87 here".into());
        }
        for (f, needed) in NEEDS {
            if self.has(*f) && !self.has(*needed) {
                self.set(*f, false);
            }
        }
        self.note_instruction_sets();
        Ok(())
    }

    fn note_instruction_sets(&mut self) {
        self.iced = [0; _];
        let mut add = |f: CpuidFeature| self.iced[f as usize / 64 % ICED_WORDS] |= 1 << (f as usize % 64);
        ALWAYS.iter().for_each(|f| add(*f));
        let on = ALL.iter().filter(|i| self.words[i.word] >> i.bit & 1 != 0);
        on.flat_map(|i| i.iced.iter()).for_each(|f| add(*f));
    }

    /// The model has the feature.
    pub fn has(&self, f: Feature) -> bool {
        let i = info(f);
        self.words[i.word] >> i.bit & 1 != 0
    }

    /// XGETBV with ECX = 1 works.
    pub fn xgetbv1(&self) -> bool {
        self.has(Feature::XGETBV1)
    }

    /// State components that XCR0 can enable: x87, SSE and AVX.
    pub fn xcr0_mask(&self) -> u64 {
        1 | (self.has(Feature::SSE) as u64) << 1 | (self.has(Feature::AVX) as u64) << 2
    }

    /// EAX of leaf 1, which is also EDX after reset.
    pub fn signature(&self) -> u32 {
        self.signature
    }

    fn intel(&self) -> bool {
        &self.vendor == b"GenuineIntel"
    }

    /// All features that iced lists for the instruction are in the model.
    #[inline]
    pub fn supports(&self, i: &Instruction) -> bool {
        i.cpuid_features().iter().all(|f| {
            let n = *f as usize;
            self.iced[n / 64 % ICED_WORDS] >> (n % 64) & 1 != 0
        })
    }

    /// How instructions are decoded for this model: without LZCNT and BMI1 their encodings are BSR and BSF with a prefix
    /// that does nothing (SDM 2A, LZCNT, TZCNT).
    pub fn decoder_options(&self) -> u32 {
        let mut o = DecoderOptions::NONE;
        if !self.has(Feature::BMI1) {
            o |= DecoderOptions::NO_MPFX_0FBC;
        }
        if !self.has(Feature::LZCNT) {
            o |= DecoderOptions::NO_MPFX_0FBD;
        }
        o
    }
}

#[cfg(test)]
mod tests;
