//! What Watertight's own tests stand on: the program, built once; its bundles, read; and what this machine lets tests do.
//!
//! Nothing here judges. The tests are in `tests/`, one file a promise of the project.

mod bundle;
mod privileges;
mod program;

pub use bundle::{Bundle, edit_history, pcapng_files};
pub use privileges::{Needs, missing, required, skip, trial};
pub use program::{Ran, program, run, watertight};

/// How often the tests that can be repeated are: `WATERTIGHT_REPEATS`, once unless set.
pub fn repeats() -> u32 {
    match std::env::var("WATERTIGHT_REPEATS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("WATERTIGHT_REPEATS is '{text}' and not a number of runs")),
        Err(_) => 1,
    }
}

/// The workspace's folder, as whoever runs the tests says: a test program may come from a target directory that several
/// checkouts share, and then remembers another one's.
pub fn workspace() -> std::path::PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    std::path::PathBuf::from(own).join("..")
}
