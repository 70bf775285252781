//! Helpers of the vec family.

crate::helper_family! { 3; }
