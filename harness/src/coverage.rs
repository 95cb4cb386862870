//! Which requirements the scenarios check, on which profiles: the table of the suite, and the figure of a run.

use crate::{
    judge::{CaseVerdict, Verdict},
    scenario::{Profile, Scenario},
    spec::{self, Requirement},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Scenarios that name a requirement, by profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    rows: Vec<Row>,
}

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    requirement: &'static Requirement,
    /// For each profile of [`Profile::ALL`] the number of scenarios; none where the requirement does not apply.
    scenarios: Vec<Option<usize>>,
}

impl Coverage {
    /// The table of a suite.
    pub fn of(suite: &BTreeMap<String, Scenario>) -> Self {
        let rows = spec::requirements().iter().map(|requirement| {
            let naming: Vec<&Scenario> =
                suite.values().filter(|scenario| scenario.requirements.contains(&requirement.id)).collect();
            let count = |profile: Profile| {
                naming.iter().filter(|scenario| scenario.matrix.profiles().contains(&profile)).count()
            };
            let scenarios =
                Profile::ALL.iter().map(|profile| requirement.applies_to(*profile).then(|| count(*profile))).collect();
            Row { requirement, scenarios }
        });
        Self { rows: rows.collect() }
    }

    /// Requirements that apply to a profile and that no scenario checks there.
    pub fn unchecked(&self) -> Vec<(&'static str, Profile)> {
        let pairs = self.rows.iter().flat_map(|row| {
            let profiles = Profile::ALL.iter().zip(&row.scenarios);
            profiles.filter(|(_, count)| **count == Some(0)).map(|(profile, _)| (row.requirement.id.as_str(), *profile))
        });
        pairs.collect()
    }

    /// Pairs of a requirement and a profile that it applies to.
    pub fn applicable(&self) -> usize {
        self.rows.iter().flat_map(|row| &row.scenarios).flatten().count()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Scenarios that check a requirement, by profile (· where it does not apply):\n")?;
        for (number, profile) in Profile::ALL.iter().enumerate() {
            writeln!(f, "  {:>2}  {profile}", number + 1)?;
        }
        let heads: String = (1..=Profile::ALL.len()).map(|number| format!("{number:>3}")).collect();
        writeln!(f, "\n{:<7}{heads}", "")?;
        for Row { requirement, scenarios } in &self.rows {
            let cells: String = scenarios
                .iter()
                .map(|count| count.map_or_else(|| "  ·".to_owned(), |count| format!("{count:>3}")))
                .collect();
            let platforms = match &requirement.on {
                Some(on) if !requirement.on_linux() => format!("({}) ", on.join(", ")),
                _ => String::new(),
            };
            writeln!(f, "{:<7}{cells}  {platforms}{}", requirement.id, requirement.text)?;
        }
        let unchecked = self.unchecked();
        let checked = self.applicable() - unchecked.len();
        writeln!(f, "\n{checked} of {} pairs of a requirement and a profile are checked", self.applicable())?;
        for (requirement, profile) in unchecked {
            writeln!(f, "  {requirement} on {profile} is not")?;
        }
        Ok(())
    }
}

/// Pairs of a requirement and a profile in the cases of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Each case that checks them passed.
    pub passed: usize,
    /// A case checks them.
    pub checked: usize,
    /// The requirement applies to one of the profiles that were run.
    pub applicable: usize,
}

impl Pairs {
    /// The figure of these cases.
    pub fn of(verdicts: &[CaseVerdict]) -> Self {
        let mut worst: BTreeMap<(&str, Profile), Verdict> = BTreeMap::new();
        let mut profiles = BTreeSet::new();
        for case in verdicts {
            let Some(profile) = profile(&case.case) else { continue };
            profiles.insert(profile);
            for requirement in &case.requirements {
                let applies = spec::requirement(&requirement.id).is_some_and(|known| known.applies_to(profile));
                // What is found against a requirement counts wherever it is found.
                if applies || requirement.verdict.is_finding() {
                    let entry = worst.entry((&requirement.id, profile)).or_insert(Verdict::Pass);
                    *entry = (*entry).min(requirement.verdict);
                }
            }
        }
        let applicable = profiles
            .iter()
            .map(|profile| spec::requirements().iter().filter(|known| known.applies_to(*profile)).count())
            .sum();
        Self {
            passed: worst.values().filter(|verdict| **verdict == Verdict::Pass).count(),
            checked: worst.len(),
            applicable,
        }
    }
}

/// The profile in a case's id, which begins with it.
fn profile(case: &str) -> Option<Profile> {
    let word = case.split('+').next()?;
    Profile::ALL.iter().copied().find(|profile| profile.to_string() == word)
}
