//! CPUID models: `-cpu NAME[,+feature,-feature,feature=on|off]`.

/// A processor model with its features settled.
#[derive(Clone, Debug)]
pub struct CpuModel {
    /// Name as given on the command line.
    pub name: String,
}

/// Parses the value of `-cpu`. The error is one line: what is wrong and the nearest name.
pub fn parse(spec: &str) -> Result<CpuModel, String> {
    Ok(CpuModel { name: spec.to_owned() })
}

/// The text of `-cpu help`.
pub fn help() -> String {
    String::new()
}

impl CpuModel {
    /// All features that iced lists for the instruction are in the model.
    pub fn supports(&self, _i: &iced_x86::Instruction) -> bool {
        true
    }
}
