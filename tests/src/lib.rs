//! Watertight's own tests.
