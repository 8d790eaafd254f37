// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `tests/RULES.md` and the threat model, so that they cannot rot: whatever they name exists and is
//! run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// All Rust sources below `dir`.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    found
}

/// Name of each test, and how often it is there; those that are ignored are not run, and so not tests.
fn tests_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut marked, mut ignored) = (false, false);
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            (marked, ignored) = (true, false);
        } else if line.starts_with("#[ignore") {
            ignored = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            if marked && !ignored {
                names.push(rest.split('(').next().unwrap().to_owned());
            }
            marked = false;
        }
    }
    names
}

fn tests() -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for dir in ["tests/integration", "src"] {
        for file in sources(&Path::new(ROOT).join(dir)) {
            for name in tests_in(&fs::read_to_string(file).unwrap()) {
                *all.entry(name).or_default() += 1;
            }
        }
    }
    all
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The rows of the tables that say what shows a rule: the rule, and that. In Rust files the tables
/// are in the module's documentation.
fn rows(text: &str) -> Vec<(String, Vec<&str>)> {
    let mut found = Vec::new();
    let mut wanted = false;
    for line in text.lines() {
        let line = line.trim_start_matches("//! ");
        if line.contains("| shown by |") {
            wanted = true;
        } else if !line.starts_with('|') {
            wanted = false;
        } else if wanted && !line.starts_with("|---") {
            let (rule, shown) = line.trim_end_matches('|').rsplit_once('|').unwrap();
            found.push((rule.to_owned(), quoted(shown)));
        }
    }
    found
}

#[test]
fn rules_table_names_tests_that_exist_only() {
    check("tests/RULES.md", 80);
}

#[test]
fn threats_name_tests_that_exist_only() {
    check("src/threats.rs", 20);
}

#[test]
fn threats_have_an_asset_a_damage_and_a_treatment() {
    let text = fs::read_to_string(Path::new(ROOT).join("src/threats.rs")).unwrap();
    let assets = ["chips", "data", "time", "daemon", "host"];
    let mut count = 0;
    for (threat, _) in rows(&text) {
        let cells: Vec<_> = threat.trim_matches(['|', ' ']).split(" | ").collect();
        let [_, asset, damage, treatment, _] = cells[..] else {
            panic!("{cells:?}")
        };
        assert!(asset.split(", ").all(|asset| assets.contains(&asset)));
        assert!(!damage.is_empty(), "{cells:?}");
        assert!(["avoided", "reduced"].contains(&treatment), "{cells:?}");
        count += 1;
    }
    assert!(count > 20, "{count} threats: are they read rightly?");
    let (_, rest) = text.split_once("# Not defended").unwrap();
    let items = rest.lines().filter_map(|line| line.strip_prefix("//! - "));
    for item in items {
        let marked = item.strip_prefix('(').and_then(|item| item.split_once(')'));
        let (asset, treatment) = marked.and_then(|(mark, _)| mark.split_once(", ")).unwrap();
        assert!(assets.contains(&asset), "{item}");
        assert!(["shared", "retained"].contains(&treatment), "{item}");
    }
}

#[test]
fn readme_names_tests_that_exist_only() {
    check("README.md", 9);
}

#[test]
fn integration_names_tests_that_exist_only() {
    check("dist/INTEGRATION.md", 12);
}

#[test]
fn readme_has_300_lines_or_fewer() {
    let text = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let count = text.lines().count();
    assert!((100..=300).contains(&count), "{count} lines");
}

/// Words of a text that can only be paths of this repository.
fn paths(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| c.is_whitespace() || "`()[]|,;:#'\"".contains(c));
    let words = words.map(|word| word.trim_end_matches(['.', '/']));
    let words = words.map(|word| word.strip_prefix("./").unwrap_or(word));
    words
        .filter(|word| {
            ["tests/", "src/", "dist/", ".ci/", ".github/"]
                .iter()
                .any(|dir| word.starts_with(dir))
        })
        .filter(|word| !word.contains(['*', '<', '{', '$']))
        .collect()
}

#[test]
fn documents_name_files_that_exist_only() {
    let mut count = 0;
    let documents = [
        "README.md",
        "dist/README.md",
        "dist/CHANGELOG.md",
        "dist/INTEGRATION.md",
        "tests/README.md",
        "tests/RULES.md",
        ".github/SECURITY.md",
        ".github/VULNERABILITY_REPORT.md",
        "src/lib.rs",
        "src/threats.rs",
    ];
    for document in documents {
        let text = fs::read_to_string(Path::new(ROOT).join(document)).unwrap();
        for path in paths(&text) {
            let beside = Path::new(ROOT).join(document).with_file_name("").join(path);
            assert!(
                Path::new(ROOT).join(path).exists() || beside.exists(),
                "{document} names {path}"
            );
            count += 1;
        }
    }
    assert!(count > 60, "{count} paths: are they read rightly?");
}

/// Files without a line that says the licence: sources, programs, and what ships; not texts and data.
fn unlicensed(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let data = ["corpus", "regressions", "grown", "artifacts", "target"];
            if !data.iter().any(|name| path.ends_with(name)) {
                found.extend(unlicensed(&path));
            }
            continue;
        }
        let extension = path.extension().and_then(|ext| ext.to_str());
        if matches!(
            extension,
            Some("md" | "lock" | "toml" | "config" | "txt" | "json")
        ) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let start: Vec<_> = text.lines().take(2).collect();
        if !start
            .iter()
            .any(|line| line.contains("SPDX-License-Identifier: "))
        {
            found.push(path);
        }
    }
    found
}

#[test]
fn programs_and_what_is_installed_say_their_licence() {
    for dir in ["src", "dist", "tests", ".ci"] {
        let found = unlicensed(&Path::new(ROOT).join(dir));
        assert!(found.is_empty(), "{found:#?}");
    }
}

fn check(file: &str, at_least: usize) {
    let text = fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    let (rows, tests) = (rows(&text), tests());
    assert!(
        rows.len() > at_least,
        "{} rows: is it read rightly?",
        rows.len()
    );
    let mut wrong = Vec::new();
    for (rule, shown) in &rows {
        if shown.is_empty() {
            wrong.push(format!("nothing shows: {rule}"));
        }
        for name in shown {
            let there = if name.starts_with("tests/") {
                usize::from(Path::new(ROOT).join(name).is_file())
            } else {
                tests.get(*name).copied().unwrap_or(0)
            };
            if there != 1 {
                wrong.push(format!("there are {there} of {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The rooms from top to bottom, as the table in `src/lib.rs` has them.
fn rooms() -> Vec<String> {
    let text = fs::read_to_string(Path::new(ROOT).join("src/lib.rs")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("//! | [`"));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap());
    let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names.map(str::to_owned).collect()
}

/// What a room's sources name of the crate, tests and comments left out.
fn uses(room: &str) -> Vec<String> {
    let src = Path::new(ROOT).join("src");
    let folder = src.join(room);
    let files = if folder.is_dir() {
        sources(&folder)
    } else {
        vec![src.join(format!("{room}.rs"))]
    };
    let tests = Path::new("confine/seccomp");
    let mut all = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.parent() != Some(&src.join(tests)))
    {
        let text = fs::read_to_string(file).unwrap();
        let code = text.split("\n#[cfg(test)]\n").next().unwrap();
        let code = code.lines().filter(|line| !line.trim().starts_with("//"));
        for line in code {
            for part in line.split("crate::").skip(1) {
                let name = part
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next();
                all.push(name.unwrap_or_default().to_owned());
            }
        }
    }
    all
}

#[test]
fn rooms_use_only_those_below_them() {
    let rooms = rooms();
    assert!(rooms.len() >= 9, "{rooms:?}: is it read rightly?");
    let mut count = 0;
    for (place, room) in rooms.iter().enumerate() {
        for used in uses(room).iter().filter(|used| *used != room) {
            let at = rooms.iter().position(|other| other == used);
            assert!(at > Some(place), "{room} uses {used}");
            count += 1;
        }
    }
    assert!(count > 80, "{count} uses: are they read rightly?");
}

#[test]
fn rules_check_sees_what_is_no_test() {
    let text = "#[test]\nfn one() {}\nfn helper() {}\n#[test]\n#[ignore = \"x\"]\nfn two() {}\n#[test]\n#[should_panic]\nfn three() {}";
    assert_eq!(tests_in(text), ["one", "three"]);
    let rows = rows("| rule | shown by |\n|---|---|\n| a `b` c | `d`, `e/f` |\n| g | h |");
    let shown: Vec<_> = rows.iter().map(|(_, shown)| shown.clone()).collect();
    assert_eq!(shown, [vec!["d", "e/f"], vec![]]);
    let found = paths("see `tests/run`, [x](dist/README.md), ./src/lib.rs: /tests/no tests/*.rs.");
    assert_eq!(found, ["tests/run", "dist/README.md", "src/lib.rs"]);
}
