//! The specification that the project carries: requirements and leak classes, by id.

use crate::scenario::{Manager, Profile};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// How binding a requirement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A violation is a failure.
    Must,
    /// A violation is a failure under `--strict`.
    Should,
}

/// One checkable statement.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Requirement {
    /// Stable.
    pub id: String,
    /// How binding.
    pub level: Level,
    /// Platforms; `None` is every desktop platform.
    #[serde(default)]
    pub on: Option<Vec<String>>,
    /// The statement.
    pub text: String,
    /// Where it comes from.
    pub seed: String,
}

impl Requirement {
    /// Whether it applies to Linux.
    pub fn on_linux(&self) -> bool {
        self.on.as_ref().is_none_or(|on| on.iter().any(|platform| platform == "linux"))
    }

    /// Whether it says something about a client of this profile: what is about one DNS method applies where that method is the
    /// right one.
    pub fn applies_to(&self, profile: Profile) -> bool {
        let family = self.id.split('-').next().unwrap_or_default();
        let manager = match family {
            "STA" => Manager::Nobody,
            "RSD" => Manager::SystemdResolved,
            "NMG" => Manager::NetworkManager,
            "RCF" => Manager::Resolvconf,
            _ if self.id == "SEL-3" => Manager::Resolvconf,
            // A service that goes and comes back is what shows it.
            _ if self.id == "SEL-5" => Manager::SystemdResolved,
            _ => return self.on_linux(),
        };
        self.on_linux() && profile.manager() == manager
    }
}

/// One known way for DNS to get past a VPN.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LeakClass {
    /// Stable.
    pub id: String,
    /// In a few words.
    pub name: String,
    /// Where it was seen.
    pub source: String,
}

#[derive(Deserialize)]
struct Requirements {
    requirement: Vec<Requirement>,
}

#[derive(Deserialize)]
struct Groups {
    group: std::collections::BTreeMap<String, Group>,
}

#[derive(Deserialize)]
struct Group {
    classes: Vec<LeakClass>,
}

static REQUIREMENTS: LazyLock<Vec<Requirement>> = LazyLock::new(|| {
    toml::from_str::<Requirements>(watertight_scenarios::REQUIREMENTS).expect("the suite's tests read it").requirement
});

static LEAK_CLASSES: LazyLock<Vec<LeakClass>> = LazyLock::new(|| {
    let groups: Groups = toml::from_str(watertight_scenarios::LEAK_CLASSES).expect("the suite's tests read it");
    let mut classes: Vec<_> = groups.group.into_values().flat_map(|group| group.classes).collect();
    classes.sort_by(|a, b| a.id.cmp(&b.id));
    classes
});

/// All requirements, in the specification's order.
pub fn requirements() -> &'static [Requirement] {
    &REQUIREMENTS
}

/// All leak classes, by id.
pub fn leak_classes() -> &'static [LeakClass] {
    &LEAK_CLASSES
}

/// A requirement by its id.
pub fn requirement(id: &str) -> Option<&'static Requirement> {
    REQUIREMENTS.iter().find(|requirement| requirement.id == id)
}

/// A leak class by its id.
pub fn leak_class(id: &str) -> Option<&'static LeakClass> {
    LEAK_CLASSES.iter().find(|class| class.id == id)
}
