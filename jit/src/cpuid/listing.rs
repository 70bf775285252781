//! Models and features by their names, for those who list them.

use super::features::{ALIASES, ALL};
use super::models::MODELS;
use super::{CpuModel, Feature};

/// Names of the models of `-cpu`; the first is the default.
pub fn model_names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|model| model.name)
}

/// The model called `name`, as it is without `+feature` and the like.
pub fn plain_model(name: &str) -> Option<CpuModel> {
    let mut model = CpuModel::of(MODELS.iter().find(|model| model.name == name)?);
    model.note_instruction_sets();
    Some(model)
}

/// Names of the features, with the names that are also taken for them.
pub fn feature_names() -> impl Iterator<Item = (&'static str, Feature)> {
    let alias = |(alias, name): &(&'static str, &str)| {
        let info = ALL.iter().find(|info| info.name == *name)?;
        Some((*alias, info.id))
    };
    ALL.iter().map(|info| (info.name, info.id)).chain(ALIASES.iter().filter_map(alias))
}

impl CpuModel {
    /// The vendor, as leaf 0 has it.
    pub fn vendor(&self) -> String {
        String::from_utf8_lossy(&self.vendor).into_owned()
    }

    /// The brand, as leaves 0x80000002 to 0x80000004 have it.
    pub fn brand_name(&self) -> &'static str {
        self.brand
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_models_and_features() {
        assert!(model_names().count() > 3);
        for name in model_names() {
            let model = plain_model(name).unwrap();
            assert!(model.has(Feature::FPU), "{name}");
            assert!(!model.brand_name().is_empty());
            assert_eq!(model.vendor().len(), 12);
        }
        assert!(plain_model("nonsense").is_none());
        assert!(feature_names().any(|(name, feature)| name == "pni" && feature == Feature::SSE3));
    }
}
