//! The suite as data: what it names exists, what must be checked is, and the published schemas are those of the types.
//!
//! `UPDATE_SCHEMAS=1` writes the schemas anew; that they changed is then seen in review.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};
use watertight::{
    coverage::Coverage,
    report::ReportFile,
    scenario::{Scenario, suite},
    spec,
};
use watertight_leaky::DEFECTS;

#[test]
fn every_requirement_of_linux_is_checked_on_every_profile_that_it_applies_to() {
    let coverage = Coverage::of(&suite().expect("the suite loads"));
    assert!(coverage.unchecked().is_empty(), "no scenario checks {:?}", coverage.unchecked());
    assert!(coverage.applicable() > 600, "{} pairs of a requirement and a profile", coverage.applicable());
}

#[test]
fn ids_are_unique_and_of_one_shape_and_everything_says_where_it_comes_from() {
    let mut seen = BTreeSet::new();
    for requirement in spec::requirements() {
        let (family, number) =
            requirement.id.split_once('-').unwrap_or_else(|| panic!("{} is FAMILY-NUMBER", requirement.id));
        assert!(family.len() == 3 && family.chars().all(|letter| letter.is_ascii_uppercase()), "{}", requirement.id);
        assert!(number.parse::<u32>().is_ok_and(|number| number > 0), "{}", requirement.id);
        assert!(seen.insert(&requirement.id), "{} is there twice", requirement.id);
        assert!(
            requirement.text.ends_with('.') && !requirement.seed.is_empty(),
            "{}: {}",
            requirement.id,
            requirement.text
        );
    }
    for class in spec::leak_classes() {
        assert!(class.id.len() == 3 && class.id[1..].parse::<u32>().is_ok(), "{} is a letter and two digits", class.id);
        assert!(seen.insert(&class.id), "{} is there twice", class.id);
        assert!(!class.name.is_empty() && !class.source.is_empty(), "{} has a name and a source", class.id);
    }
    // What the texts hold is what the types give: nothing is lost in between.
    let ids = |text: &str, start: &str| text.lines().filter(|line| line.trim_start().starts_with(start)).count();
    assert_eq!(spec::requirements().len(), ids(watertight_scenarios::REQUIREMENTS, "id = \""));
    assert_eq!(spec::leak_classes().len(), ids(watertight_scenarios::LEAK_CLASSES, "{ id = \""));
}

#[test]
fn scenarios_are_sentences_about_the_world_with_ids_that_are_paths() {
    let suite = suite().expect("the suite loads");
    assert!(suite.len() >= 25, "{} scenarios", suite.len());
    for (id, scenario) in &suite {
        let (area, name) = id.split_once('/').unwrap_or_else(|| panic!("{id} is AREA/NAME"));
        let plain = |part: &str| {
            part.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-')
        };
        assert!(plain(area) && plain(name), "{id}: lower-case words joined by hyphens");
        let title = &scenario.title;
        assert!(title.split_whitespace().count() >= 5, "{id}: the title is a sentence: {title}");
        assert!(
            title.starts_with(char::is_uppercase) && !title.ends_with('.'),
            "{id}: a capital, no full stop: {title}"
        );
        let once = |list: &[String]| list.iter().collect::<BTreeSet<_>>().len() == list.len();
        assert!(once(&scenario.requirements) && once(&scenario.classes), "{id} names something twice");
        assert!(!scenario.steps.is_empty(), "{id} has steps");
        let cases = scenario.matrix.cases();
        assert_eq!(
            cases.iter().map(|axes| axes.id()).collect::<BTreeSet<_>>().len(),
            cases.len(),
            "{id}: case ids are unique"
        );
    }
    let titles: BTreeSet<&str> = suite.values().map(|scenario| scenario.title.as_str()).collect();
    assert_eq!(titles.len(), suite.len(), "two scenarios say the same");
}

#[test]
fn every_defect_names_what_it_breaks_and_a_case_that_exists() {
    let suite = suite().expect("the suite loads");
    assert!(DEFECTS.len() >= 20, "{} defects", DEFECTS.len());
    let mut names = BTreeSet::new();
    for defect in DEFECTS {
        let name = defect.name;
        assert!(names.insert(name), "{name} is there twice");
        assert!(defect.summary.ends_with('.'), "{name}: {}", defect.summary);
        assert!(spec::requirement(defect.requirement).is_some(), "{name}: no requirement {}", defect.requirement);
        assert!(spec::leak_class(defect.class).is_some(), "{name}: no leak class {}", defect.class);
        assert!(
            ["LEAK", "NOT-RESTORED", "OVERBLOCK", "FAILED"].contains(&defect.verdict),
            "{name}: {}",
            defect.verdict
        );
        let scenario = suite.get(defect.scenario).unwrap_or_else(|| panic!("{name}: no scenario {}", defect.scenario));
        let cases: BTreeMap<String, _> = scenario.matrix.cases().into_iter().map(|axes| (axes.id(), axes)).collect();
        assert!(cases.contains_key(defect.case), "{name}: {} has the cases {:?}", defect.scenario, cases.keys());
    }
}

#[test]
fn the_schema_of_scenarios_is_that_of_the_type() {
    published("scenarios/scenario.schema.json", schemars::schema_for!(Scenario));
}

#[test]
fn the_schema_of_reports_is_that_of_the_type() {
    published("docs/report.schema.json", schemars::schema_for!(ReportFile));
}

fn published(file: &str, schema: schemars::Schema) {
    let path = watertight_tests::workspace().join(file);
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
    text.push('\n');
    if std::env::var_os("UPDATE_SCHEMAS").is_some_and(|value| value == "1") {
        fs::write(&path, &text).unwrap_or_else(|error| panic!("failed to write {file}: {error}"));
    }
    let there = fs::read_to_string(&path).unwrap_or_else(|error| panic!("failed to read {file}: {error}"));
    assert!(
        there == text,
        "{file} is not the schema of the types any more; UPDATE_SCHEMAS=1 writes it anew, and the change is to be reviewed"
    );
}
