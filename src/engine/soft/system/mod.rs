//! What kernels use.
