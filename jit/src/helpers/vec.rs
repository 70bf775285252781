//! Helpers of the vec family.

crate::helper_family! { 3; }
pub use super::vec_pending::*;
