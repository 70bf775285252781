//! Helpers of the string family.

crate::helper_family! { 1; }
