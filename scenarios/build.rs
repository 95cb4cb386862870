//! Embeds every scenario below this folder, its path being its id. A requirement of Linux that no scenario names fails the build.

use std::{collections::BTreeSet, env, fmt::Write, fs, path::Path};
use toml::Table;

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let mut ids = Vec::new();
    collect(Path::new(&root), Path::new(&root), &mut ids);
    ids.sort();
    check_that_all_are_named(Path::new(&root), &ids);
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

/// Ends the build if a requirement that applies to Linux is named by no scenario.
fn check_that_all_are_named(root: &Path, ids: &[String]) {
    let table = |path: &Path| -> Table {
        println!("cargo::rerun-if-changed={}", path.display());
        let text =
            fs::read_to_string(path).unwrap_or_else(|error| panic!("failed to read {}: {error}", path.display()));
        text.parse().unwrap_or_else(|error| panic!("{} is not TOML: {error}", path.display()))
    };
    let words = |table: &Table, key: &str| -> Option<Vec<String>> {
        let list = table.get(key)?.as_array()?;
        Some(list.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect())
    };
    let named: BTreeSet<String> = ids
        .iter()
        .flat_map(|id| words(&table(&root.join(format!("{id}.toml"))), "requirements").unwrap_or_default())
        .collect();
    let all = table(&root.join("requirements.toml"));
    let all = all.get("requirement").and_then(|list| list.as_array()).expect("a list of requirements");
    let missing: Vec<&str> = all
        .iter()
        .filter_map(|requirement| requirement.as_table())
        .filter(|requirement| words(requirement, "on").is_none_or(|on| on.iter().any(|system| system == "linux")))
        .filter_map(|requirement| requirement.get("id")?.as_str())
        .filter(|id| !named.contains(*id))
        .collect();
    assert!(!all.is_empty() && missing.is_empty(), "no scenario names {missing:?}; add each to one that checks it");
}
