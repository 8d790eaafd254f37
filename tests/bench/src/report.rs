// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results as text: tables in Markdown.

use std::fmt::{self, Write};

use crate::guest::{Wait, Work};
use crate::point::{CPU, LARGE_BUFSIZ, MAX, P50, P99, Point, RATE, SMALL_BUFSIZ, SWITCHES};
use crate::results::{AGAIN, EXISTING, FLOOR, Facts, OURS, Results};

/// Where front-end and daemon run, and how the front-end waits.
pub const PLACES: [(&str, bool, Wait); 3] = [
    ("one CPU, front-end asleep until called", false, Wait::Call),
    ("two CPUs, front-end asleep until called", true, Wait::Call),
    (
        "two CPUs, front-end watching its used ring",
        true,
        Wait::Watch,
    ),
];

/// Everything, as text.
pub fn report(results: &Results) -> Result<String, fmt::Error> {
    let mut text = String::new();
    writeln!(
        text,
        "# {EXISTING} is 0.1.0 as published, {OURS} is this one\n"
    )?;
    let rounds = results.rounds;
    writeln!(
        text,
        "Medians of {rounds} rounds. `again` is {OURS} a second time: noise."
    )?;
    writeln!(
        text,
        "`-` is what a daemon answers with errors or not at all.\n"
    )?;
    goals(&mut text, results)?;
    for place in PLACES {
        times(&mut text, results, place)?;
        spread(&mut text, results, place)?;
    }
    scale(&mut text, results)?;
    counts(&mut text, results)?;
    memory(&mut text, results)?;
    builds(&mut text, results)?;
    failures(&mut text, results)?;
    Ok(text)
}

/// A line of the table of goals: what was reached, and what it should be at most.
struct Goal {
    name: String,
    existing: String,
    reached: Option<(f64, f64)>,
    goal: f64,
    unit: &'static str,
}

fn goals(text: &mut String, results: &Results) -> fmt::Result {
    writeln!(text, "## Goals\n")?;
    writeln!(
        text,
        "Ratios are {OURS} / {EXISTING} or / {FLOOR}, from the best point to the worst.\n"
    )?;
    writeln!(
        text,
        "| what | {EXISTING} | {OURS} | goal | met |\n|---|---|---|---|---|"
    )?;
    let all = [
        count_goals(results),
        time_goals(results),
        size_goals(results),
    ];
    for goal in all.into_iter().flatten() {
        writeln!(text, "{}", goal.row())?;
    }
    writeln!(text)
}

impl Goal {
    fn row(&self) -> String {
        let Self {
            name,
            existing,
            reached,
            goal,
            unit,
        } = self;
        let met = match reached {
            Some((_, high)) if high <= goal => "yes",
            Some(_) | None => "**no**",
        };
        let reached = match reached {
            Some((low, high)) if low == high => plain(*high),
            Some((low, high)) => format!("{} to {}", plain(*low), plain(*high)),
            None => "-".to_owned(),
        };
        let goal = plain(*goal);
        format!("| {name} | {existing} | {reached}{unit} | ≤ {goal}{unit} | {met} |")
    }
}

fn exactly(value: f64) -> Option<(f64, f64)> {
    (!value.is_nan()).then_some((value, value))
}

fn count_goals(results: &Results) -> Vec<Goal> {
    let calls = |name, depth| results.highest(name, depth, |counts| counts.calls);
    let allocations =
        |name| results.highest(name, 1, |counts| counts.allocations.unwrap_or(f64::NAN));
    let goal = |name: &str, existing, reached, goal| Goal {
        name: name.to_owned(),
        existing: plain(existing),
        reached: exactly(reached),
        goal,
        unit: "",
    };
    // strace's own coming and going interrupts a wait or two.
    let slack = 0.02;
    vec![
        goal(
            "system calls a request, one at a time",
            calls(EXISTING, 1),
            calls(OURS, 1),
            3.0 + slack,
        ),
        goal(
            "system calls a request, 32 queued",
            calls(EXISTING, 32),
            calls(OURS, 32),
            1.1,
        ),
        goal(
            "allocations a request",
            allocations(EXISTING),
            allocations(OURS),
            0.0,
        ),
    ]
}

/// Which points a goal is about.
type Wanted<'a> = &'a dyn Fn(&Point) -> bool;

fn ratio_goal(
    results: &Results,
    what: &str,
    (name, to): (&str, &str),
    (metric, goal): (usize, f64),
    wanted: Wanted<'_>,
) -> Goal {
    Goal {
        name: format!("{what}, {name} / {to}"),
        existing: if to == EXISTING { "1" } else { "" }.to_owned(),
        reached: results.range(name, to, metric, wanted),
        goal,
        unit: "",
    }
}

fn is_at(place: usize, point: &Point) -> bool {
    let (_, two_cpus, wait) = PLACES[place];
    point.two_cpus == two_cpus && point.work.wait == wait
}

fn is_small_and_alone(point: &Point) -> bool {
    point.work.depth == 1 && point.work.len <= SMALL_BUFSIZ
}

fn one_cpu_goals(results: &Results) -> Vec<Goal> {
    let small = |p: &Point| is_at(0, p) && is_small_and_alone(p);
    let queued = |p: &Point| is_at(0, p) && p.work.depth > 1 && p.work.len <= 256;
    let long = |p: &Point| {
        let large = p.bufsiz == LARGE_BUFSIZ && p.work.len > SMALL_BUFSIZ;
        is_at(0, p) && p.work.depth == 1 && large
    };
    let goal = |what: &str, names, most, wanted: Wanted<'_>| {
        ratio_goal(results, what, names, most, wanted)
    };
    let (to_existing, to_floor) = ((OURS, EXISTING), (OURS, FLOOR));
    let cpu = "CPU a request, one at a time, one CPU";
    let p50 = "p50, one at a time, one CPU";
    vec![
        goal(cpu, to_existing, (CPU, 0.6), &small),
        goal(cpu, to_floor, (CPU, 1.15), &small),
        goal(p50, to_existing, (P50, 0.7), &small),
        goal(p50, to_floor, (P50, 1.15), &small),
        goal(
            "p50, 65,536 bytes, large bufsiz",
            to_existing,
            (P50, 0.6),
            &long,
        ),
        goal(
            "p50, 32 queued, up to 256 bytes",
            to_existing,
            (P50, 1.0),
            &queued,
        ),
    ]
}

fn time_goals(results: &Results) -> Vec<Goal> {
    let mut goals = one_cpu_goals(results);
    // A daemon that polls, where there is one, is what these two are for.
    let polls = results.names.iter().find(|name| is_variant(name));
    let ours = polls.map_or(OURS, String::as_str);
    for (place, most) in [(1, 0.6), (2, 0.15)] {
        let what = format!("p50, one at a time, {}", PLACES[place].0);
        let wanted = |p: &Point| is_at(place, p) && is_small_and_alone(p);
        let names = (ours, EXISTING);
        goals.push(ratio_goal(results, &what, names, (P50, most), &wanted));
    }
    goals
}

fn is_variant(name: &str) -> bool {
    ![EXISTING, OURS, AGAIN, FLOOR].contains(&name)
}

fn size_goals(results: &Results) -> Vec<Goal> {
    let (Some(existing), Some(ours)) = (results.facts(EXISTING), results.facts(OURS)) else {
        return Vec::new();
    };
    let goal = |name: &str, of: fn(&Facts) -> f64, goal, unit| Goal {
        name: name.to_owned(),
        existing: format!("{}{unit}", plain(of(existing))),
        reached: exactly(of(ours)),
        goal,
        unit,
    };
    let start = ours.start_ms / existing.start_ms;
    vec![
        goal("stripped size", stripped_kb, 400.0, " kB"),
        goal("private dirty memory, idle", idle_kib, 150.0, " KiB"),
        goal("the same, each guest more", each_guest_kib, 20.0, " KiB"),
        goal("threads with 64 guests", threads, 1.0, ""),
        Goal {
            name: format!("exec to listening, {OURS} / {EXISTING}"),
            existing: "1".to_owned(),
            reached: exactly(start),
            goal: 0.5,
            unit: "",
        },
    ]
}

fn stripped_kb(facts: &Facts) -> f64 {
    facts.build.stripped_len as f64 / 1000.0
}

fn idle_kib(facts: &Facts) -> f64 {
    let first = facts.loads.first();
    first.map_or(f64::NAN, |load| load.idle.private_dirty as f64)
}

fn threads(facts: &Facts) -> f64 {
    let last = facts.loads.last();
    last.map_or(f64::NAN, |load| load.connected_threads as f64)
}

/// What each guest adds, from the smallest to the largest number of them.
fn each_guest_kib(facts: &Facts) -> f64 {
    match (facts.loads.first(), facts.loads.last()) {
        (Some(few), Some(many)) if many.guests > few.guests => {
            let more = many.connected.private_dirty as f64 - few.connected.private_dirty as f64;
            more / (many.guests - few.guests) as f64
        }
        _ => f64::NAN,
    }
}

/// A number with as many digits as say something.
fn plain(value: f64) -> String {
    match value {
        v if v.is_nan() => "-".to_owned(),
        v if v.fract() == 0.0 || v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn micros(nanos: f64) -> String {
    plain(nanos / 1000.0)
}

fn row_name(point: &Point) -> String {
    let bufsiz = match point.bufsiz {
        SMALL_BUFSIZ => "",
        _ => " (large bufsiz)",
    };
    let event_idx = if point.work.event_idx { "yes" } else { "no" };
    format!(
        "{} | {event_idx} | {}{bufsiz}",
        point.work.depth, point.work.len
    )
}

fn at_place(results: &Results, (_, two_cpus, wait): (&str, bool, Wait)) -> Vec<Point> {
    let points = results.points.iter().copied();
    points
        .filter(|point| point.two_cpus == two_cpus && point.work.wait == wait)
        .collect()
}

fn times(text: &mut String, results: &Results, place: (&str, bool, Wait)) -> fmt::Result {
    writeln!(text, "## Times: {}\n", place.0)?;
    for (title, metric) in [
        ("p50 in microseconds, of all that are queued", P50),
        ("The daemon's CPU time a request in microseconds", CPU),
    ] {
        writeln!(text, "{title}:\n")?;
        compared(text, results, &at_place(results, place), metric)?;
        writeln!(text)?;
    }
    Ok(())
}

/// A table of one metric: all contenders, and how they compare.
fn compared(text: &mut String, results: &Results, points: &[Point], metric: usize) -> fmt::Result {
    let names = results.names.iter().map(String::as_str);
    let mut ratios = vec![(OURS, EXISTING), (OURS, FLOOR), (AGAIN, OURS)];
    let variants = names.clone().filter(|name| is_variant(name));
    ratios.extend(variants.map(|name| (name, EXISTING)));
    write!(text, "| queued | EVENT_IDX | bytes ")?;
    names
        .clone()
        .try_for_each(|name| write!(text, "| {name} "))?;
    let titles = ratios.iter();
    titles
        .clone()
        .try_for_each(|(name, to)| write!(text, "| {name} / {to} "))?;
    writeln!(
        text,
        "|\n|{}",
        "---|".repeat(3 + results.names.len() + ratios.len())
    )?;
    for point in points {
        write!(text, "| {} ", row_name(point))?;
        for name in names.clone() {
            write!(text, "| {} ", micros(results.value(point, name, metric)))?;
        }
        for (name, to) in &ratios {
            write!(text, "| {} ", plain(results.ratio(point, name, to, metric)))?;
        }
        writeln!(text, "|")?;
    }
    Ok(())
}

fn spread(text: &mut String, results: &Results, place: (&str, bool, Wait)) -> fmt::Result {
    let titles = ["p99 µs", "max µs", "1,000 requests/s", "switches/request"];
    writeln!(text, "The rest: {EXISTING} / {OURS} / {FLOOR}.\n")?;
    writeln!(
        text,
        "| queued | EVENT_IDX | bytes | {} |",
        titles.join(" | ")
    )?;
    writeln!(text, "|{}", "---|".repeat(7))?;
    for point in at_place(results, place) {
        write!(text, "| {} ", row_name(&point))?;
        for (metric, unit) in [(P99, 1e3), (MAX, 1e3), (RATE, 1e3), (SWITCHES, 1.0)] {
            let values = [EXISTING, OURS, FLOOR]
                .map(|name| plain(results.value(&point, name, metric) / unit));
            write!(text, "| {} ", values.join(" / "))?;
        }
        writeln!(text, "|")?;
    }
    writeln!(text)
}

fn scale(text: &mut String, results: &Results) -> fmt::Result {
    writeln!(
        text,
        "## What must not matter: idle guests, ring size, regions\n"
    )?;
    writeln!(
        text,
        "16 bytes, one at a time, one CPU, EVENT_IDX; microseconds.\n"
    )?;
    let (e, o) = (EXISTING, OURS);
    writeln!(
        text,
        "| | CPU {e} | CPU {o} | CPU {AGAIN} | p50 {e} | p50 {o} | p50 {AGAIN} |"
    )?;
    writeln!(text, "|{}", "---|".repeat(7))?;
    for (title, point) in &results.scale_points {
        write!(text, "| {title} ")?;
        for metric in [CPU, P50] {
            for name in [EXISTING, OURS, AGAIN] {
                write!(text, "| {} ", micros(results.value(point, name, metric)))?;
            }
        }
        writeln!(text, "|")?;
    }
    writeln!(text)
}

fn work_name(work: &Work) -> String {
    let event_idx = if work.event_idx {
        "EVENT_IDX"
    } else {
        "no EVENT_IDX"
    };
    format!("{} queued, {event_idx}", work.depth)
}

fn counts(text: &mut String, results: &Results) -> fmt::Result {
    writeln!(
        text,
        "## System calls and allocations a request, 16 bytes\n"
    )?;
    writeln!(
        text,
        "| daemon | work | calls | which | allocations |\n|---|---|---|---|---|"
    )?;
    for name in &results.names {
        for (work, counts) in results.facts(name).into_iter().flat_map(|f| &f.counts) {
            let mut which: Vec<_> = counts.by_name.iter().collect();
            which.sort_by(|a, b| b.1.total_cmp(a.1));
            let which: Vec<String> = which
                .into_iter()
                .filter(|(_, count)| **count >= 0.005)
                .map(|(name, count)| format!("{name} {count:.2}"))
                .collect();
            let allocations = counts.allocations.map_or_else(String::new, plain);
            let (work, calls, which) = (work_name(work), counts.calls, which.join(", "));
            writeln!(
                text,
                "| {name} | {work} | {calls:.2} | {which} | {allocations} |"
            )?;
        }
    }
    writeln!(text)
}

fn memory(text: &mut String, results: &Results) -> fmt::Result {
    writeln!(text, "## Memory in KiB, and threads\n")?;
    writeln!(
        text,
        "Without guest memory and the faked spidev. RSS / PSS / private clean / private dirty.\n"
    )?;
    writeln!(
        text,
        "| daemon | sockets | idle | threads | all connected | threads |"
    )?;
    writeln!(text, "|{}", "---|".repeat(6))?;
    for name in &results.names {
        for load in results.facts(name).into_iter().flat_map(|f| &f.loads) {
            let [idle, connected] = [load.idle, load.connected].map(|m| {
                format!(
                    "{} / {} / {} / {}",
                    m.rss, m.pss, m.private_clean, m.private_dirty
                )
            });
            let (guests, before, after) = (load.guests, load.idle_threads, load.connected_threads);
            writeln!(
                text,
                "| {name} | {guests} | {idle} | {before} | {connected} | {after} |"
            )?;
        }
    }
    writeln!(text)
}

fn builds(text: &mut String, results: &Results) -> fmt::Result {
    writeln!(text, "## Programs\n")?;
    writeln!(
        text,
        "| daemon | stripped bytes | libraries | crates | exec to listening | first kicks lost |"
    )?;
    writeln!(text, "|{}", "---|".repeat(6))?;
    for name in [EXISTING, OURS] {
        if let Some(facts) = results.facts(name) {
            let build = &facts.build;
            let libraries = build.libraries.join(", ");
            writeln!(
                text,
                "| {name} | {} | {libraries} | {} | {:.2} ms | {} |",
                build.stripped_len, build.crates, facts.start_ms, facts.lost_kicks
            )?;
        }
    }
    if let Some(facts) = results.facts(FLOOR) {
        writeln!(
            text,
            "| {FLOOR} | - | - | - | {:.2} ms | - |",
            facts.start_ms
        )?;
    }
    writeln!(text)
}

fn failures(text: &mut String, results: &Results) -> fmt::Result {
    writeln!(text, "## Not compared\n")?;
    if results.failures.is_empty() {
        return writeln!(text, "Everybody could do everything.");
    }
    writeln!(
        text,
        "| daemon | where | queued | EVENT_IDX | bytes | why |\n|---|---|---|---|---|---|"
    )?;
    for ((point, name), why) in &results.failures {
        let place = PLACES
            .iter()
            .find(|(_, two_cpus, wait)| *two_cpus == point.two_cpus && *wait == point.work.wait);
        let place = place.map_or("", |place| place.0);
        writeln!(text, "| {name} | {place} | {} | {why} |", row_name(point))?;
    }
    Ok(())
}
