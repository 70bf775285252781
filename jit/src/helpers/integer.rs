//! Helpers of the integer family.

crate::helper_family! { 0; }
