//! Watertight's suite as data: scenarios by area, the requirements, the leak classes.
//!
//! This crate embeds the texts and depends on nothing; `watertight::scenario` and `watertight::spec` read them.

/// requirements.toml: what subjects must do.
pub const REQUIREMENTS: &str = include_str!("../requirements.toml");
/// leak-classes.toml: the ways in which they fail.
pub const LEAK_CLASSES: &str = include_str!("../leak-classes.toml");

include!(concat!(env!("OUT_DIR"), "/scenarios.rs"));
