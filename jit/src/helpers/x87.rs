//! Helpers of the x87 family.

crate::helper_family! { 4; }
