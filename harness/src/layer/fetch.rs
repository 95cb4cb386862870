//! Gets a layer: packages by `apt-get download`, unpacked by `dpkg-deb`. Nothing is installed, and apt's lists and caches
//! are the layer cache's own, so that the machine's stay as they are.

use super::{Layer, PACKAGES, Package, cache};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A layer that could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A program that is needed for it is missing, or could not be started.
    #[error("failed to run {program}: {source}; layers are made of Debian's or Ubuntu's packages, on such a machine")]
    Program {
        /// Which.
        program: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
    /// A program failed.
    #[error("`{command}` ended with {status}: {said}; is there a package source that can be reached?")]
    Failed {
        /// As one would type it.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it wrote to standard error.
        said: String,
    },
    /// The packages do not contain what the layer is for.
    #[error("the packages of {layer} have no {program}; this release of the distribution is not known to work")]
    Incomplete {
        /// The layer.
        layer: &'static str,
        /// What is missing.
        program: &'static str,
    },
    /// A file or folder of the cache.
    #[error("failed to {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
}

/// Gets a layer into the cache, whatever the machine has. A layer that was there is replaced, as a whole.
pub fn fetch(layer: &Layer) -> Result<(), FetchError> {
    let folder = layer.folder();
    let parent = folder.parent().expect("below the cache");
    make(parent)?;
    let work = tempfile::Builder::new().prefix(".fetch-").tempdir_in(parent).map_err(|source| FetchError::File {
        action: "make a folder in",
        path: parent.into(),
        source,
    })?;
    let apt = Apt::new()?;
    let packages = apt.needed(layer)?;
    let downloads = work.path().join("downloads");
    make(&downloads)?;
    if !packages.is_empty() {
        apt.download(&packages, &downloads)?;
    }
    let tree = work.path().join("tree");
    make(&tree)?;
    for package in entries(&downloads)? {
        run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&tree), "dpkg-deb")?;
    }
    merge_usr(&tree)?;
    for program in layer.programs {
        if !tree.join("usr").join(program).is_file() && !Path::new("/usr").join(program).is_file() {
            return Err(FetchError::Incomplete { layer: layer.name, program });
        }
    }
    let list: String = packages.iter().map(|package| format!("{} {}\n", package.name, package.version)).collect();
    let file = tree.join(PACKAGES);
    fs::write(&file, list).map_err(|source| FetchError::File { action: "write", path: file, source })?;
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|source| FetchError::File {
            action: "remove",
            path: folder.clone(),
            source,
        })?;
    }
    fs::rename(&tree, &folder).map_err(|source| FetchError::File { action: "move a layer to", path: folder, source })
}

/// apt with lists and caches of its own (apt.conf(5)).
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new() -> Result<Self, FetchError> {
        let own = cache().join("apt");
        let lists = own.join("lists");
        make(&lists.join("partial"))?;
        make(&own.join("archives/partial"))?;
        let mut options = vec![
            format!("Dir::Cache={}", own.display()),
            "APT::Sandbox::User=root".into(),
            "APT::Install-Recommends=false".into(),
        ];
        // The machine's lists serve where it has some: they are only read.
        let machine = Path::new("/var/lib/apt/lists");
        let has_lists = fs::read_dir(machine).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        });
        if has_lists {
            return Ok(Apt { options });
        }
        options.push(format!("Dir::State::Lists={}", lists.display()));
        let apt = Apt { options };
        run(apt.command().arg("update"), "apt-get")?;
        Ok(apt)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.arg("-qq").args(self.options.iter().flat_map(|option| ["-o", option.as_str()]));
        command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// The packages that would be installed, the machine's own left out.
    fn needed(&self, layer: &Layer) -> Result<Vec<Package>, FetchError> {
        let said = run(self.command().args(["--simulate", "install"]).args(layer.packages), "apt-get")?;
        Ok(said.lines().filter_map(installed).collect())
    }

    fn download(&self, packages: &[Package], to: &Path) -> Result<(), FetchError> {
        let names = packages.iter().map(|package| format!("{}={}", package.name, package.version));
        run(self.command().arg("download").args(names).current_dir(to), "apt-get").map(drop)
    }
}

/// A line of a simulated installation: `Inst NAME [OLD] (VERSION ORIGIN [ARCH])`.
fn installed(line: &str) -> Option<Package> {
    let rest = line.strip_prefix("Inst ")?;
    let (name, rest) = rest.split_once(' ')?;
    let version = rest.split_once('(')?.1.split([' ', ')']).next()?;
    Some(Package { name: name.into(), version: version.into() })
}

/// Moves what a package has in `/bin`, `/sbin` and `/lib` below `/usr`, where these folders are links to.
fn merge_usr(tree: &Path) -> Result<(), FetchError> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let from = tree.join(name);
        if from.is_dir() && !from.is_symlink() {
            move_into(&from, &tree.join("usr").join(name))?;
        }
    }
    Ok(())
}

fn move_into(from: &Path, to: &Path) -> Result<(), FetchError> {
    make(to)?;
    for entry in entries(from)? {
        let target = to.join(entry.file_name().unwrap_or_default());
        if entry.is_dir() && !entry.is_symlink() {
            move_into(&entry, &target)?;
        } else {
            fs::rename(&entry, &target).map_err(|source| FetchError::File { action: "move", path: entry, source })?;
        }
    }
    fs::remove_dir(from).map_err(|source| FetchError::File { action: "remove", path: from.into(), source })
}

fn make(folder: &Path) -> Result<(), FetchError> {
    fs::create_dir_all(folder).map_err(|source| FetchError::File { action: "make", path: folder.into(), source })
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, FetchError> {
    let read = || fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    let mut found = read().map_err(|source| FetchError::File { action: "read", path: folder.into(), source })?;
    found.sort();
    Ok(found)
}

/// Runs a program to its end and gives back what it wrote.
fn run(command: &mut Command, program: &'static str) -> Result<String, FetchError> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| FetchError::Program { program, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().filter(|line| !line.starts_with("W:")).collect();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>();
    Err(FetchError::Failed {
        command: format!("{program} {}", arguments.join(" ")),
        status: output.status,
        said: said[said.len().saturating_sub(5)..].join("; "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_installation_names_packages_and_versions() {
        let package = |name: &str, version: &str| Some(Package { name: name.into(), version: version.into() });
        let line = "Inst systemd [252.38-1~deb12u1] (252.39-1~deb12u2 Debian:12.15/oldstable [amd64]) []";
        assert_eq!(installed(line), package("systemd", "252.39-1~deb12u2"));
        let line = "Inst openresolv (3.12.0-3 Debian:12.15/oldstable [all])";
        assert_eq!(installed(line), package("openresolv", "3.12.0-3"));
        assert_eq!(installed("Conf openresolv (3.12.0-3 Debian:12.15/oldstable [all])"), None);
    }

    #[test]
    fn folders_outside_usr_are_merged_into_it() {
        let tree = tempfile::tempdir().unwrap();
        let write = |path: &str| {
            let path = tree.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        };
        write("lib/systemd/systemd-resolved");
        write("usr/lib/systemd/resolv.conf");
        merge_usr(tree.path()).unwrap();
        assert!(tree.path().join("usr/lib/systemd/systemd-resolved").is_file());
        assert!(tree.path().join("usr/lib/systemd/resolv.conf").is_file());
        assert!(!tree.path().join("lib").exists());
    }
}
