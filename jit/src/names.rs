//! Names of guest code, for logs.

use std::sync::OnceLock;

/// Tells the function that a linear address lies in.
type Lookup = Box<dyn Fn(u64) -> Option<String> + Send + Sync>;

static LOOKUP: OnceLock<Lookup> = OnceLock::new();

/// Has logs (`in_asm`, `exec`) name guest code by what `lookup` says of linear addresses. The first call counts.
pub fn name_code(lookup: impl Fn(u64) -> Option<String> + Send + Sync + 'static) {
    LOOKUP.get_or_init(|| Box::new(lookup));
}

/// The name of the code at `linear`; empty: it has none.
pub(crate) fn of(linear: u64) -> String {
    LOOKUP.get().and_then(|lookup| lookup(linear)).unwrap_or_default()
}
