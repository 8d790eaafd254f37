// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `dist/` says about the program, as far as it takes nothing but text; `tests/packaging` has the rest.

use crate::rig::setup::run;
use crate::rig::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn dist(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join("dist").join(name)).unwrap()
}

fn help() -> String {
    run(&Host::with_devices(0), &["--help"]).stdout
}

/// Each option as it is written, such as `-c, --socket-count=INT` or `guests=LIST`, and the text that explains it.
type Entries = BTreeMap<String, String>;

fn is_option_of_a_device(word: &str) -> bool {
    let name = word.split('=').next().unwrap();
    name.len() < word.len() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

fn in_help(text: &str) -> Entries {
    let mut entries = Entries::new();
    let mut current = None;
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (option, rest) = match words[..] {
            [short, long, ..] if short.starts_with('-') && long.starts_with("--") => {
                (format!("{short} {long}"), &words[2..])
            }
            [word, ..] if word.starts_with("--") || is_option_of_a_device(word) => {
                (word.to_owned(), &words[1..])
            }
            _ if line.starts_with(' ') => {
                if let Some(option) = &current {
                    let text: &mut String = entries.get_mut(option).unwrap();
                    *text = format!("{text} {}", words.join(" "));
                }
                continue;
            }
            _ => {
                current = None;
                continue;
            }
        };
        entries.insert(option.clone(), rest.join(" "));
        current = Some(option);
    }
    entries
}

/// A line of roff without its macro, fonts and escapes: macros of two fonts join their arguments.
fn unformatted(line: &str) -> String {
    let mut line = line.replace(r"\-", "-");
    for escape in [r"\fI", r"\fP", r"\fR", r"\fB"] {
        line = line.replace(escape, "");
    }
    match line.split_once(' ') {
        Some((".B" | ".I", rest)) => rest.to_owned(),
        Some((".BR" | ".IR" | ".BI", rest)) => {
            let pieces = rest.split('"').enumerate();
            let joined = pieces.map(|(n, piece)| match n % 2 {
                0 => piece.replace(' ', ""),
                _ => piece.to_owned(),
            });
            joined.collect()
        }
        _ => line,
    }
}

fn in_man_page(text: &str) -> Entries {
    let options = text.split("\n.SH OPTIONS\n").nth(1).unwrap();
    let options = options.split("\n.SH ").next().unwrap();
    let mut entries = Entries::new();
    for entry in options.split("\n.TP\n").skip(1) {
        let mut lines = entry.lines();
        let option = unformatted(lines.next().unwrap());
        let is_text =
            |line: &&str| ![".IP", ".RS", ".RE"].contains(line) && !line.starts_with(".SS");
        let words: Vec<_> = lines.filter(is_text).map(unformatted).collect();
        entries.insert(option, words.join(" "));
    }
    entries
}

/// What `text` says of defaults: what stands in parentheses, or the word that is marked as one.
fn defaults(text: &str) -> BTreeSet<String> {
    let pieces: Vec<_> = text.split("(default").collect();
    let mut said = BTreeSet::new();
    for pair in pieces.windows(2) {
        let inside = pair[1]
            .split(')')
            .next()
            .unwrap()
            .trim_start_matches([':', ' ']);
        let before = pair[0].split_whitespace().last().unwrap_or_default();
        said.insert(if inside.is_empty() { before } else { inside }.to_owned());
    }
    said
}

fn numbers(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .filter(|word| word.bytes().all(|b| b.is_ascii_digit()) && !word.is_empty())
        .collect()
}

#[test]
fn man_page_has_the_options_values_and_defaults_of_help() {
    let (help, man) = (in_help(&help()), in_man_page(&dist("vhost-device-spi.1")));
    assert!(help.len() > 18, "{help:#?}");
    let options = |entries: &Entries| entries.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(options(&help), options(&man));
    for (option, text) in &help {
        let explained = &man[option];
        assert_eq!(defaults(text), defaults(explained), "{option}");
        let missing: Vec<_> = numbers(text)
            .difference(&numbers(explained))
            .copied()
            .collect();
        assert!(
            missing.is_empty(),
            "{option}: the man page lacks {missing:?}"
        );
    }
}

/// The options in the parser's tables: of the daemon with two dashes, of a device without.
fn in_parser() -> BTreeSet<String> {
    let read = |file| fs::read_to_string(Path::new(ROOT).join("src/start").join(file)).unwrap();
    let (daemon, device) = (read("cli.rs"), read("cli/device.rs"));
    let table = daemon.split("const OPTIONS").nth(1).unwrap();
    let table = table.split("];").next().unwrap();
    let rows = table.lines().filter(|line| line.contains("(\""));
    let long = rows.map(|row| format!("--{}", row.split('"').nth(1).unwrap()));
    let set = device.split("\nfn set(").nth(1).unwrap();
    let set = set.split("\n}\n").next().unwrap();
    let arms = set.split("=> ").filter_map(|arm| {
        let literal = arm.strip_suffix("\" ")?.rsplit_once('"')?.1;
        is_option_of_a_device(&format!("{literal}=")).then(|| literal.to_owned())
    });
    let values = ["on", "off"].map(str::to_owned);
    long.chain(arms.filter(|arm| !values.contains(arm)))
        .collect()
}

#[test]
fn parser_has_the_options_of_help() {
    let help = in_help(&help());
    let words = help.keys().flat_map(|option| option.split([' ', ',']));
    let names = words.map(|word| word.split(['=', '[']).next().unwrap());
    let long = names.filter(|name| name.starts_with("--") || !name.starts_with('-'));
    let shown: BTreeSet<_> = long
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    assert_eq!(shown, in_parser());
}

#[test]
fn help_fits_in_80_columns() {
    let help = help();
    let long: Vec<_> = help
        .lines()
        .filter(|line| line.chars().count() >= 80)
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn man_page_has_the_device_tree_that_the_demonstration_boots() {
    let man = dist("vhost-device-spi.1")
        .replace(r"\-", "-")
        .replace(r"\(dq", "\"");
    let section = man.split("\n.SH DEVICE TREES\n").nth(1).unwrap();
    let section = section.split("\n.SH ").next().unwrap();
    let examples: Vec<_> = section
        .split("\n.EX\n")
        .skip(1)
        .map(|rest| rest.split("\n.EE").next().unwrap())
        .collect();
    for (example, file) in examples.iter().zip(["spi-mmio.dts", "spi-pci.dts"]) {
        let tree = fs::read_to_string(Path::new(ROOT).join("tests/guest").join(file)).unwrap();
        let known: BTreeSet<_> = tree.lines().map(str::trim).collect();
        assert!(example.lines().count() > 8, "{example}");
        for line in example
            .lines()
            .map(str::trim)
            .filter(|line| *line != "/* as above */")
        {
            assert!(known.contains(line), "{file} lacks {line}");
        }
    }
}

#[test]
fn man_page_has_an_example_of_each_option_with_a_value() {
    let text = dist("vhost-device-spi.1")
        .replace(r"\-", "-")
        .replace(r"\fI", "");
    let help = in_help(&help());
    for option in help.keys().flat_map(|option| option.split([' ', ','])) {
        let Some((name, value)) = option.split_once('=') else {
            continue;
        };
        let name = format!("{}=", name.trim_end_matches('['));
        let placeholder = format!("{name}{value}").replace('|', r"\fR|\fP");
        let used = text.matches(&name).count() - text.matches(&placeholder).count();
        assert!(used > 0, "no example of {option}");
    }
}

#[test]
fn man_page_check_sees_what_differs() {
    let help = in_help(
        "Usage: x\n\n  -c, --count=INT  how many; 1 to 64 (default 1)\n      --kind=a|b which, for\n                   all: a (default)\n                guests=LIST  these\n  -h, --help  print\n\nEnd.\n",
    );
    let names: Vec<_> = help.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["--kind=a|b", "-c, --count=INT", "-h, --help", "guests=LIST"]
    );
    assert_eq!(help["--kind=a|b"], "which, for all: a (default)");
    let man = in_man_page(
        "\n.SH OPTIONS\nText.\n.TP\n.BR \\-c \", \" \\-\\-count=\\fIINT\\fP\nHow\n.I many\n(default 2).\n.SS Further\n.TP\n.B \\-\\-kind=a\\fR|\\fPb\nA.\n.SH END\n.TP\nx\n",
    );
    let names: Vec<_> = man.keys().map(String::as_str).collect();
    assert_eq!(names, ["--kind=a|b", "-c, --count=INT"]);
    assert_eq!(man["-c, --count=INT"], "How many (default 2).");
    assert_eq!(
        defaults("x (default 2), y (default), (default: z w)"),
        ["2", "y", "z w"].map(str::to_owned).into()
    );
    assert_eq!(numbers("1 to 64, 0x7 and PATH0"), ["1", "64"].into());
}

#[test]
fn units_name_options_that_exist_only() {
    let known = in_help(&help());
    let known: BTreeSet<_> = known
        .keys()
        .flat_map(|option| option.split([' ', ',', '=', '[']))
        .collect();
    let mut seen = 0;
    for unit in ["vhost-device-spi.service", "vhost-device-spi@.service"] {
        let text = dist(unit);
        for word in text
            .split([' ', '"', '`', '\n', '='])
            .filter(|word| word.starts_with("--"))
        {
            assert!(known.contains(word), "{unit}: {word}");
            seen += 1;
        }
    }
    assert!(seen > 5);
}

/// By the schema of OpenVEX 0.2.0, and of what is built here: a crate that is updated needs a look at its statements.
#[test]
fn vex_is_about_this_version_and_the_crates_that_are_in_it() {
    let vex: serde_json::Value =
        serde_json::from_str(&dist("vhost-device-spi.openvex.json")).unwrap();
    assert_eq!(vex["@context"], "https://openvex.dev/ns/v0.2.0");
    for field in ["@id", "author", "timestamp"] {
        assert!(vex[field].is_string(), "{field}");
    }
    assert!(vex["version"].as_u64() >= Some(1));
    let lock = fs::read_to_string(Path::new(ROOT).join("Cargo.lock")).unwrap();
    let statements = vex["statements"].as_array().unwrap();
    assert!(!statements.is_empty());
    for statement in statements {
        assert!(statement["vulnerability"]["name"].is_string());
        let explained = match statement["status"].as_str().unwrap() {
            "not_affected" => "justification",
            "affected" => "action_statement",
            "fixed" | "under_investigation" => "status",
            other => panic!("{other}"),
        };
        assert!(statement[explained].is_string(), "{statement}");
        let product = &statement["products"][0];
        let program = concat!("pkg:generic/vhost-device-spi@", env!("CARGO_PKG_VERSION"));
        assert_eq!(product["@id"], program);
        let part = product["subcomponents"][0]["@id"].as_str().unwrap();
        let part = part.strip_prefix("pkg:cargo/").unwrap();
        let (name, version) = part.split_once('@').unwrap();
        let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        assert!(lock.contains(&entry), "{part} is not in Cargo.lock");
    }
}
