//! The results as a picture: bars for each size of request, in SVG.

use std::fmt::{self, Write};

use crate::point::{CPU, P50, Point};
use crate::report::PLACES;
use crate::results::{AGAIN, Results};

const WIDTH: f64 = 1180.0;
const HEIGHT: f64 = 900.0;
const PANEL_WIDTH: f64 = 340.0;
const PANEL_HEIGHT: f64 = 160.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 90.0;
const COLUMN: f64 = 380.0;
const ROW: f64 = 205.0;
const COLOURS: [&str; 5] = ["#9aa5b1", "#1f6fb2", "#2e9e5b", "#d9822b", "#8e5ab5"];

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
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">"
    )?;
    writeln!(svg, "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>")?;
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
        let rows = [
            (1, P50, "p50"),
            (1, CPU, "CPU a request"),
            (32, P50, "p50"),
            (32, CPU, "CPU a request"),
        ];
        for (row, (depth, metric, title)) in rows.into_iter().enumerate() {
            let points = results.points.iter().filter(|point| {
                let work = point.work;
                (point.two_cpus, work.wait) == (place.1, place.2)
                    && work.depth == depth
                    && work.event_idx
            });
            let panel = Panel {
                x,
                y: TOP + ROW * row as f64,
                title: format!("{title}, {depth} queued, µs"),
                points: points.collect(),
                metric,
            };
            panel.draw(&mut svg, results, &names)?;
        }
    }
    writeln!(svg, "</svg>")?;
    Ok(svg)
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

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, size: u32, content: &str) -> fmt::Result {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{content}</text>"
    )
}

impl Panel<'_> {
    fn draw(&self, svg: &mut String, results: &Results, names: &[&str]) -> fmt::Result {
        let bottom = self.y + PANEL_HEIGHT;
        text(svg, self.x, self.y - 4.0, "start", 11, &self.title)?;
        let values = |point: &Point| {
            let micros = |name: &&str| results.value(point, name, self.metric) / 1000.0;
            names.iter().map(micros).collect::<Vec<f64>>()
        };
        let all = self.points.iter().flat_map(|point| values(point));
        let highest = all.filter(|value| !value.is_nan()).fold(1.0, f64::max);
        let decades = highest.log10().ceil().max(1.0) + 1.0;
        // From a tenth of a microsecond on.
        let height = |value: f64| (value.log10() + 1.0).max(0.0) / decades * (PANEL_HEIGHT - 14.0);
        for decade in 0..=decades as i32 {
            let y = bottom - height(10f64.powi(decade - 1));
            let (from, to) = (self.x, self.x + PANEL_WIDTH);
            writeln!(svg, "<path d=\"M{from} {y:.1}H{to}\" stroke=\"#dddddd\"/>")?;
            let label = 10f64.powi(decade - 1).to_string();
            text(svg, from - 4.0, y + 4.0, "end", 10, &label)?;
        }
        let group = PANEL_WIDTH / self.points.len().max(1) as f64;
        let bar = group * 0.8 / names.len() as f64;
        for (number, point) in self.points.iter().enumerate() {
            let left = self.x + group * (number as f64 + 0.1);
            let star = if point.bufsiz > 4096 { "*" } else { "" };
            let label = format!("{}{star}", point.work.len);
            text(svg, left + group * 0.4, bottom + 13.0, "middle", 10, &label)?;
            for (index, value) in values(point).into_iter().enumerate() {
                let x = left + bar * index as f64;
                if value.is_nan() {
                    text(svg, x + bar / 2.0, bottom - 3.0, "middle", 11, "×")?;
                    continue;
                }
                let tall = height(value);
                let (y, colour) = (bottom - tall, COLOURS[index % COLOURS.len()]);
                writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" fill=\"{colour}\"/>",
                    bar - 1.0
                )?;
                text(svg, x + bar / 2.0, y - 2.0, "middle", 7, &short(value))?;
            }
        }
        Ok(())
    }
}

fn short(value: f64) -> String {
    match value {
        v if v >= 10.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
