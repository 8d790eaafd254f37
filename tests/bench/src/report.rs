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
        let (reached, met) = match goal.reached {
            Some((low, high)) if low == high => (plain(high), high <= goal.goal),
            Some((low, high)) => (
                format!("{} to {}", plain(low), plain(high)),
                high <= goal.goal,
            ),
            None => ("-".to_owned(), false),
        };
        let met = if met { "yes" } else { "**no**" };
        let Goal {
            name,
            existing,
            goal,
            unit,
            ..
        } = goal;
        writeln!(
            text,
            "| {name} | {existing} | {reached}{unit} | ≤ {}{unit} | {met} |",
            plain(goal)
        )?;
    }
    writeln!(text)
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

fn time_goals(results: &Results) -> Vec<Goal> {
    let small = |point: &Point| point.work.len <= SMALL_BUFSIZ;
    let alone = |point: &Point| point.work.depth == 1;
    let at = |place: usize| {
        let (_, two_cpus, wait) = PLACES[place];
        move |point: &Point| point.two_cpus == two_cpus && point.work.wait == wait
    };
    let polling = results.names.iter().find(|name| is_variant(name));
    let goal =
        |name: &str, ours: &str, to: &str, metric, most, wanted: &dyn Fn(&Point) -> bool| Goal {
            name: format!("{name}, {ours} / {to}"),
            existing: if to == EXISTING { "1" } else { "" }.to_owned(),
            reached: results.range(ours, to, metric, wanted),
            goal: most,
            unit: "",
        };
    let one_cpu = |p: &Point| at(0)(p) && alone(p) && small(p);
    let queued = |p: &Point| at(0)(p) && !alone(p) && p.work.len <= 256;
    let long = |p: &Point| at(0)(p) && alone(p) && !small(p) && p.bufsiz == LARGE_BUFSIZ;
    let mut goals = vec![
        goal(
            "CPU a request, one at a time",
            OURS,
            EXISTING,
            CPU,
            0.6,
            &one_cpu,
        ),
        goal(
            "CPU a request, one at a time",
            OURS,
            FLOOR,
            CPU,
            1.15,
            &one_cpu,
        ),
        goal("p50, one CPU", OURS, EXISTING, P50, 0.7, &one_cpu),
        goal("p50, one CPU", OURS, FLOOR, P50, 1.15, &one_cpu),
        goal(
            "p50, 65,536 bytes, large bufsiz",
            OURS,
            EXISTING,
            P50,
            0.6,
            &long,
        ),
        goal(
            "p50, 32 queued, up to 256 bytes",
            OURS,
            EXISTING,
            P50,
            1.0,
            &queued,
        ),
    ];
    for (place, most) in [(1, 0.6), (2, 0.15)] {
        let ours = polling.map_or(OURS, |name| name);
        let wanted = |p: &Point| at(place)(p) && alone(p) && small(p);
        goals.push(goal(
            &format!("p50, {}", PLACES[place].0),
            ours,
            EXISTING,
            P50,
            most,
            &wanted,
        ));
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
    let goal = |name: &str, existing: f64, reached, goal, unit| Goal {
        name: name.to_owned(),
        existing: format!("{}{unit}", plain(existing)),
        reached: exactly(reached),
        goal,
        unit,
    };
    let kb = |facts: &Facts| facts.build.stripped_len as f64 / 1000.0;
    let idle = |facts: &Facts| {
        facts
            .loads
            .first()
            .map_or(f64::NAN, |l| l.idle.private_dirty as f64)
    };
    let threads = |facts: &Facts| {
        facts
            .loads
            .last()
            .map_or(f64::NAN, |l| l.connected_threads as f64)
    };
    vec![
        goal("stripped size", kb(existing), kb(ours), 400.0, " kB"),
        goal(
            "private dirty memory, idle",
            idle(existing),
            idle(ours),
            150.0,
            " KiB",
        ),
        goal(
            "private dirty memory, each guest more",
            each_guest(existing),
            each_guest(ours),
            20.0,
            " KiB",
        ),
        goal(
            "threads with 64 guests",
            threads(existing),
            threads(ours),
            1.0,
            "",
        ),
        goal(
            "exec to listening, ratio",
            1.0,
            ours.start_ms / existing.start_ms,
            0.5,
            "",
        ),
    ]
}

/// What each guest adds, from the smallest to the largest number of them.
fn each_guest(facts: &Facts) -> f64 {
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
    let variants: Vec<&String> = results
        .names
        .iter()
        .filter(|name| is_variant(name))
        .collect();
    writeln!(text, "## Times: {}\n", place.0)?;
    for (title, metric) in [
        ("p50 in microseconds, of all that are queued", P50),
        ("The daemon's CPU time a request in microseconds", CPU),
    ] {
        writeln!(text, "{title}:\n")?;
        write!(
            text,
            "| queued | EVENT_IDX | bytes | {EXISTING} | {OURS} | {AGAIN} | {FLOOR} "
        )?;
        variants
            .iter()
            .try_for_each(|name| write!(text, "| {name} "))?;
        write!(
            text,
            "| {OURS} / {EXISTING} | {OURS} / {FLOOR} | {AGAIN} / {OURS} "
        )?;
        variants
            .iter()
            .try_for_each(|name| write!(text, "| {name} / {EXISTING} "))?;
        writeln!(text, "|\n|{}", "---|".repeat(10 + 2 * variants.len()))?;
        for point in at_place(results, place) {
            write!(text, "| {} ", row_name(&point))?;
            for name in [EXISTING, OURS, AGAIN, FLOOR] {
                write!(text, "| {} ", micros(results.value(&point, name, metric)))?;
            }
            for name in &variants {
                write!(text, "| {} ", micros(results.value(&point, name, metric)))?;
            }
            for (name, to) in [(OURS, EXISTING), (OURS, FLOOR), (AGAIN, OURS)] {
                write!(
                    text,
                    "| {} ",
                    plain(results.ratio(&point, name, to, metric))
                )?;
            }
            for name in &variants {
                write!(
                    text,
                    "| {} ",
                    plain(results.ratio(&point, name, EXISTING, metric))
                )?;
            }
            writeln!(text, "|")?;
        }
        writeln!(text)?;
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
