// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results as a picture: bars for each size of request, in SVG.

use std::fmt::{self, Write};

use crate::guest::Wait;
use crate::point::{CPU, P50, Point, SMALL_BUFSIZ};
use crate::report::PLACES;
use crate::results::{AGAIN, Results};
use crate::svg::{self, COLOURS, text};

const WIDTH: f64 = 1180.0;
const HEIGHT: f64 = 900.0;
const PANEL_WIDTH: f64 = 340.0;
const PANEL_HEIGHT: f64 = 160.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 90.0;
const COLUMN: f64 = 380.0;
const ROW: f64 = 205.0;

/// Depth, metric and title of each row of panels.
const ROWS: [(u16, usize, &str); 4] = [
    (1, P50, "p50"),
    (1, CPU, "CPU a request"),
    (32, P50, "p50"),
    (32, CPU, "CPU a request"),
];

/// One panel: a metric at a place, for one number of queued requests.
struct Panel<'a> {
    x: f64,
    y: f64,
    title: String,
    points: Vec<&'a Point>,
    metric: usize,
}

/// Draws times and CPU of all places, with EVENT_IDX.
pub fn draw(results: &Results) -> Result<String, fmt::Error> {
    let mut svg = svg::begin(WIDTH, HEIGHT)?;
    let names: Vec<&str> = results
        .names
        .iter()
        .map(String::as_str)
        .filter(|n| *n != AGAIN)
        .collect();
    legend(&mut svg, &names)?;
    for (column, place) in PLACES.iter().enumerate() {
        let x = LEFT + COLUMN * column as f64;
        text(&mut svg, x, TOP - 25.0, "start", 13, place.0)?;
        for (row, (depth, metric, title)) in ROWS.into_iter().enumerate() {
            let panel = Panel {
                x,
                y: TOP + ROW * row as f64,
                title: format!("{title}, {depth} queued, µs"),
                points: shown(results, *place, depth),
                metric,
            };
            panel.draw(&mut svg, results, &names)?;
        }
    }
    writeln!(svg, "</svg>")?;
    Ok(svg)
}

/// The points of a panel.
fn shown<'a>(results: &'a Results, place: (&str, bool, Wait), depth: u16) -> Vec<&'a Point> {
    let (_, two_cpus, wait) = place;
    let points = results.points.iter();
    let place = points.filter(|p| p.two_cpus == two_cpus && p.work.wait == wait);
    place
        .filter(|p| p.work.depth == depth && p.work.event_idx)
        .collect()
}

fn legend(svg: &mut String, names: &[&str]) -> fmt::Result {
    let about = "by bytes of a request, full duplex, EVENT_IDX; logarithmic; *: with a large bufsiz; \
                 ×: answers with errors, or not at all";
    text(svg, LEFT, 22.0, "start", 13, about)?;
    for (number, (name, colour)) in names.iter().zip(COLOURS).enumerate() {
        let x = LEFT + 190.0 * number as f64;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"34\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        )?;
        text(svg, x + 17.0, 44.0, "start", 12, name)?;
    }
    Ok(())
}

impl Panel<'_> {
    /// The values of all contenders at a point, in microseconds.
    fn values(&self, results: &Results, names: &[&str], point: &Point) -> Vec<f64> {
        let micros = |name: &&str| results.value(point, name, self.metric) / 1000.0;
        names.iter().map(micros).collect()
    }

    fn draw(&self, svg: &mut String, results: &Results, names: &[&str]) -> fmt::Result {
        text(svg, self.x, self.y - 4.0, "start", 11, &self.title)?;
        let all = self.points.iter();
        let all = all.flat_map(|point| self.values(results, names, point));
        let highest = all.filter(|value| !value.is_nan()).fold(1.0, f64::max);
        let scale = Scale {
            bottom: self.y + PANEL_HEIGHT,
            decades: highest.log10().ceil().max(1.0) + 1.0,
        };
        scale.draw(svg, self.x)?;
        let width = PANEL_WIDTH / self.points.len().max(1) as f64;
        for (number, point) in self.points.iter().enumerate() {
            let left = self.x + width * (number as f64 + 0.1);
            let star = if point.bufsiz > SMALL_BUFSIZ { "*" } else { "" };
            let label = format!("{}{star}", point.work.len);
            let middle = left + width * 0.4;
            text(svg, middle, scale.bottom + 13.0, "middle", 10, &label)?;
            let values = self.values(results, names, point);
            bars(svg, &scale, left, width * 0.8, &values)?;
        }
        Ok(())
    }
}

/// The logarithmic axis of a panel, from a tenth of a microsecond on.
struct Scale {
    bottom: f64,
    decades: f64,
}

impl Scale {
    fn height(&self, micros: f64) -> f64 {
        (micros.log10() + 1.0).max(0.0) / self.decades * (PANEL_HEIGHT - 14.0)
    }

    fn draw(&self, svg: &mut String, from: f64) -> fmt::Result {
        for decade in 0..=self.decades as i32 {
            let value = 10f64.powi(decade - 1);
            let y = self.bottom - self.height(value);
            let to = from + PANEL_WIDTH;
            writeln!(svg, "<path d=\"M{from} {y:.1}H{to}\" stroke=\"#dddddd\"/>")?;
            text(svg, from - 4.0, y + 4.0, "end", 10, &value.to_string())?;
        }
        Ok(())
    }
}

/// A bar for each contender, with its value on top; a cross where there is none.
fn bars(svg: &mut String, scale: &Scale, left: f64, width: f64, values: &[f64]) -> fmt::Result {
    let bar = width / values.len() as f64;
    for (index, &value) in values.iter().enumerate() {
        let x = left + bar * index as f64;
        if value.is_nan() {
            text(svg, x + bar / 2.0, scale.bottom - 3.0, "middle", 11, "×")?;
            continue;
        }
        let tall = scale.height(value);
        let (y, colour) = (scale.bottom - tall, COLOURS[index % COLOURS.len()]);
        let wide = bar - 1.0;
        writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{tall:.1}\" fill=\"{colour}\"/>"
        )?;
        text(svg, x + bar / 2.0, y - 2.0, "middle", 7, &short(value))?;
    }
    Ok(())
}

fn short(value: f64) -> String {
    match value {
        v if v >= 10.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
