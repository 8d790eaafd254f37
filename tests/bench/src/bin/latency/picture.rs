// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The distributions as a picture: which share of the requests took longer than a time.

use std::fmt::{self, Write};

use bench::svg::{self, COLOURS, text};

use crate::bound::bound_ns;
use crate::cases::{CASES, Case};
use crate::report::Table;

const WIDTH: f64 = 1180.0;
const HEIGHT: f64 = 960.0;
const PANEL_WIDTH: f64 = 480.0;
const PANEL_HEIGHT: f64 = 170.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 90.0;
const COLUMN: f64 = 570.0;
const ROW: f64 = 220.0;
/// From 10 us to 10 s.
const DECADES: std::ops::RangeInclusive<i32> = 1..=7;
/// From all requests to one of 100,000.
const SHARES: i32 = 5;

/// Draws a panel for each case, with a line for each way to share the machine.
pub fn draw(tables: &[Table]) -> Result<String, fmt::Error> {
    let mut svg = svg::begin(WIDTH, HEIGHT)?;
    let about =
        "share of the requests that took longer, by time; both logarithmic; dashed: the bound";
    text(&mut svg, LEFT, 22.0, "start", 13, about)?;
    let names = tables.iter().map(|table| table.sharing.to_string());
    let names = names.chain(["0.1.0, SCHED_FIFO, no load".to_owned()]);
    for ((name, colour), number) in names.zip(COLOURS).zip(0..) {
        let x = LEFT + 225.0 * f64::from(number);
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"34\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        )?;
        text(&mut svg, x + 17.0, 44.0, "start", 11, &name)?;
    }
    for (case, number) in CASES.iter().zip(0..) {
        let (column, row) = (f64::from(number % 2), f64::from(number / 2));
        panel(
            &mut svg,
            LEFT + COLUMN * column,
            TOP + ROW * row,
            case,
            tables,
        )?;
    }
    writeln!(svg, "</svg>")?;
    Ok(svg)
}

/// Where a time is, from the left of a panel.
fn across(ns: f64) -> f64 {
    let (first, last) = (f64::from(*DECADES.start()), f64::from(*DECADES.end()));
    let decade = (ns.max(1.0) / 1000.0).log10().clamp(first, last);
    (decade - first) / (last - first) * PANEL_WIDTH
}

/// Where a share is, from the top of a panel.
fn down(share: f64) -> f64 {
    -share.log10().clamp(-f64::from(SHARES), 0.0) / f64::from(SHARES) * PANEL_HEIGHT
}

fn panel(svg: &mut String, x: f64, y: f64, case: &Case, tables: &[Table]) -> fmt::Result {
    text(svg, x, y - 6.0, "start", 12, case.name)?;
    for decade in DECADES {
        let at = x + across(10f64.powi(decade + 3));
        let bottom = y + PANEL_HEIGHT;
        writeln!(
            svg,
            "<path d=\"M{at:.1} {y}V{bottom}\" stroke=\"#dddddd\"/>"
        )?;
        let label = match decade {
            ..3 => format!("{} µs", 10i32.pow(decade as u32)),
            3..6 => format!("{} ms", 10i32.pow(decade as u32 - 3)),
            _ => format!("{} s", 10i32.pow(decade as u32 - 6)),
        };
        text(svg, at, bottom + 13.0, "middle", 10, &label)?;
    }
    for decade in 0..=SHARES {
        let (share, to) = (10f64.powi(-decade), x + PANEL_WIDTH);
        let at = y + down(share);
        writeln!(svg, "<path d=\"M{x} {at:.1}H{to}\" stroke=\"#dddddd\"/>")?;
        text(svg, x - 4.0, at + 4.0, "end", 10, &share.to_string())?;
    }
    let bound = x + across(bound_ns(case) as f64);
    let bottom = y + PANEL_HEIGHT;
    writeln!(
        svg,
        "<path d=\"M{bound:.1} {y}V{bottom}\" stroke=\"black\" stroke-dasharray=\"5 4\"/>"
    )?;
    for (table, colour) in tables.iter().zip(COLOURS) {
        let rows = table.rows.iter().filter(|row| std::ptr::eq(row.case, case));
        for row in rows {
            let colour = if row.is_ours { colour } else { COLOURS[4] };
            if let Ok(measured) = &row.measured {
                curve(svg, (x, y), &measured.all, colour)?;
            }
        }
    }
    Ok(())
}

/// A point for each step of the distribution that can be told apart.
fn curve(svg: &mut String, (x, y): (f64, f64), all: &[u32], colour: &str) -> fmt::Result {
    write!(
        svg,
        "<path fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" d=\"M"
    )?;
    let mut last = f64::NAN;
    for (index, &ns) in all.iter().enumerate() {
        let at = down((all.len() - index) as f64 / all.len() as f64);
        if (at - last).abs() < 0.5 && index + 1 < all.len() {
            continue;
        }
        last = at;
        write!(svg, "{:.1},{:.1} ", x + across(ns.into()), y + at)?;
    }
    writeln!(svg, "\"/>")
}
