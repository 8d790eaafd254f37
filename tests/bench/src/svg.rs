// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every picture has.

use std::fmt::{self, Write};

pub const COLOURS: [&str; 5] = ["#9aa5b1", "#1f6fb2", "#2e9e5b", "#d9822b", "#8e5ab5"];

/// An empty white picture; its end is `</svg>`.
pub fn begin(width: f64, height: f64) -> Result<String, fmt::Error> {
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">"
    )?;
    writeln!(svg, "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>")?;
    Ok(svg)
}

pub fn text(
    svg: &mut String,
    x: f64,
    y: f64,
    anchor: &str,
    size: u32,
    content: &str,
) -> fmt::Result {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{content}</text>"
    )
}
