//! Helpers of the system family.

crate::helper_family! { 2; }
