//! Embeds every scenario below this folder, its path being its id.

use std::{env, fmt::Write, fs, path::Path};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let mut ids = Vec::new();
    collect(Path::new(&root), Path::new(&root), &mut ids);
    ids.sort();
    let mut code = String::from("/// Every scenario: id and text, by id.\npub const SCENARIOS: &[(&str, &str)] = &[\n");
    for id in ids {
        writeln!(code, "    ({id:?}, include_str!({:?})),", format!("{root}/{id}.toml")).expect("writing to a string");
    }
    code.push_str("];\n");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("scenarios.rs"), code).expect("the build folder is writable");
}

/// Scenarios lie in folders by area; the files beside this one are not scenarios.
fn collect(root: &Path, folder: &Path, ids: &mut Vec<String>) {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut entries: Vec<_> =
        fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "src" && name != "target") {
            collect(root, &path, ids);
        } else if folder != root && path.extension().is_some_and(|ending| ending == "toml") {
            let id = path.strip_prefix(root).expect("below it").with_extension("");
            ids.push(id.to_str().expect("names are UTF-8").replace('\\', "/"));
        }
    }
}
