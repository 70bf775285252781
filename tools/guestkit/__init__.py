"""Builds what the guest tests and benchmarks boot: kernels and initramfs images from Debian packages."""
