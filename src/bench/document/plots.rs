//! The plots: roofline, tokens a second by batch, ours beside peers.

use std::collections::BTreeMap;

use super::super::plot::{Anchor, Axes, INK, Scale, Svg, UNKNOWN};
use super::super::report::{Report, Row, Suite};
use super::super::table::digits;
use super::super::times::Times;
use super::tables::largest;
use super::{measured, median, peers, size};

/// Colours that most people tell apart (Okabe and Ito 2008).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
const FRAME: [f64; 4] = [80.0, 48.0, 660.0, 420.0];
const LEGEND_X: f64 = 684.0;

/// Each plot, where there is something to draw.
pub(super) fn all(report: &Report) -> [Option<String>; 3] {
    let rows = measured(report);
    [roofline(report, &rows), tokens(report, &rows), beside_peers(report, &rows)]
}

fn title(svg: &mut Svg, text: &str, report: &Report) {
    svg.text([16.0, 26.0], Anchor::Start, 16.0, INK, text);
    let origin = format!("{}, {}, commit {}", report.device.name, report.date, report.commit);
    svg.text([WIDTH - 16.0, 26.0], Anchor::End, 11.0, "#64748b", &origin);
}

/// A disc or a dash and a name, row by row at the right.
fn legend(svg: &mut Svg, index: usize, colour: &str, name: &str) {
    let y = FRAME[1] + 10.0 + index as f64 * 20.0;
    svg.disc([LEGEND_X, y], 5.0, colour, None);
    svg.text([LEGEND_X + 14.0, y + 4.0], Anchor::Start, 12.0, INK, name);
}

fn legend_line(svg: &mut Svg, index: usize, colour: &str, name: &str) {
    let y = FRAME[1] + 10.0 + index as f64 * 20.0;
    svg.dashed(&[[LEGEND_X - 8.0, y], [LEGEND_X + 8.0, y]], colour, 2.0);
    svg.text([LEGEND_X + 14.0, y + 4.0], Anchor::Start, 12.0, INK, name);
}

/// Kernels by FLOPs a byte and FLOPs a second, under both ceilings.
fn roofline(report: &Report, rows: &[&Row]) -> Option<String> {
    let ceilings = report.ceilings();
    let (bytes, flops) = (ceilings.bytes?, ceilings.flops?);
    let kernels: Vec<&Row> =
        rows.iter().filter(|row| row.suite == Suite::Kernels && row.by == "rigel").copied().collect();
    let model = largest(&kernels);
    let mut points = Vec::new();
    for row in kernels.iter().filter(|row| row.model.as_deref() == model && row.bytes > 0) {
        let Some(rate) = row.flops_per_second() else { continue };
        let family = row.name.split(' ').next().unwrap_or_default();
        points.push((family, row.flops as f64 / row.bytes as f64, rate / 1e12, row));
    }
    if points.is_empty() {
        return None;
    }
    let ridge = flops / bytes;
    let x = Scale::logarithmic(points.iter().map(|(_, x, ..)| *x).chain([ridge / 4.0, ridge * 4.0]));
    let y = Scale::logarithmic(points.iter().map(|(_, _, y, _)| *y).chain([flops / 1e12]));
    let axes = Axes { frame: FRAME, x, y };
    let mut svg = Svg::new(WIDTH, HEIGHT, "Roofline: kernels by FLOPs a byte and TFLOP/s");
    title(&mut svg, &format!("Kernels under their ceilings, {}", model.unwrap_or("all models")), report);
    axes.draw(&mut svg, "FLOPs a byte", "TFLOP/s");
    let roof = |x: f64| (x * bytes).min(flops) / 1e12;
    // The slanted ceiling begins where it enters the frame.
    let ((first, last), (lowest, _)) = (axes.x.range(), axes.y.range());
    let first = first.max(lowest * 1e12 / bytes);
    let corner = ridge.clamp(first, last);
    let corners = [first, corner, last].map(|x| axes.point(x, roof(x)));
    svg.line(&corners, INK, 2.0);
    let families: Vec<&str> = distinct(points.iter().map(|(family, ..)| *family));
    for (family, x, y, row) in &points {
        let index = families.iter().position(|other| other == family).unwrap_or(0);
        let share = row.of_limit.map_or(String::new(), |share| format!(", {:.0} % of the limit", share * 100.0));
        let text = format!("{} {}: {} TFLOP/s{share}", row.name, row.sizes(), digits(*y));
        svg.disc(axes.point(*x, *y), 4.0, COLOURS[index % COLOURS.len()], Some(&text));
    }
    for (index, family) in families.iter().enumerate() {
        legend(&mut svg, index, COLOURS[index % COLOURS.len()], family);
    }
    let foot = families.len() as f64 * 20.0 + FRAME[1] + 24.0;
    let lines = [format!("ceilings: {} TB/s,", digits(bytes / 1e12)), format!("{} TFLOP/s", digits(flops / 1e12))];
    for (index, line) in lines.iter().enumerate() {
        svg.text([LEGEND_X - 5.0, foot + index as f64 * 16.0], Anchor::Start, 12.0, INK, line);
    }
    Some(svg.finish())
}

/// In the order of their first coming.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut all = Vec::new();
    for name in names {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

/// Tokens a second of decoding by batch size, beside the limit of bytes.
fn tokens(report: &Report, rows: &[&Row]) -> Option<String> {
    let decode: Vec<&Row> =
        rows.iter().filter(|row| row.suite == Suite::Model && row.name.starts_with("tg")).copied().collect();
    let model = largest(&decode)?;
    let of_model: Vec<&Row> = decode.into_iter().filter(|row| row.model.as_deref() == Some(model)).collect();
    // The test that we measured at the most batch sizes.
    let count = |test: &str| of_model.iter().filter(|row| row.by == "rigel" && row.name == test).count();
    let tests = distinct(of_model.iter().map(|row| row.name.as_str()));
    let test = tests.into_iter().rev().max_by_key(|test| count(test)).filter(|test| count(test) > 0)?;
    let mut series: BTreeMap<(bool, &str), Vec<(f64, f64)>> = BTreeMap::new();
    let mut limit = Vec::new();
    for row in of_model.iter().filter(|row| row.name == test) {
        let batch = size(row, "batch").unwrap_or(1) as f64;
        let Some(rate) = row.tokens_per_second() else { continue };
        series.entry((row.by != "rigel", &row.by)).or_default().push((batch, rate));
        if let Some(bytes) = report.ceilings().bytes.filter(|_| row.by == "rigel" && row.bytes > 0) {
            limit.push((batch, row.tokens as f64 / (row.bytes as f64 / bytes)));
        }
    }
    let all: Vec<(f64, f64)> = series.values().flatten().chain(&limit).copied().collect();
    let x = Scale::logarithmic(all.iter().map(|(x, _)| *x));
    let axes = Axes { frame: FRAME, x, y: Scale::logarithmic(all.iter().map(|(_, y)| *y)) };
    let mut svg = Svg::new(WIDTH, HEIGHT, "Tokens a second by batch");
    title(&mut svg, &format!("Tokens a second by batch, {model}, {test}"), report);
    axes.draw(&mut svg, "sequences", "tokens a second");
    let places = |points: &mut Vec<(f64, f64)>| -> Vec<[f64; 2]> {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.iter().map(|(x, y)| axes.point(*x, *y)).collect()
    };
    if !limit.is_empty() {
        svg.dashed(&places(&mut limit), UNKNOWN, 2.0);
    }
    let count = series.len();
    for (index, ((_, by), mut points)) in series.into_iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let places = places(&mut points);
        svg.line(&places, colour, 2.0);
        for (place, (batch, rate)) in places.iter().zip(&points) {
            svg.disc(*place, 4.0, colour, Some(&format!("{by}, {batch} sequences: {} tokens/s", digits(*rate))));
        }
        legend(&mut svg, index, colour, by);
    }
    if !limit.is_empty() {
        legend_line(&mut svg, count, UNKNOWN, "the limit of bytes");
    }
    Some(svg.finish())
}

/// How many times as fast as each peer we are: the median of all sizes, and the range.
fn beside_peers(report: &Report, rows: &[&Row]) -> Option<String> {
    let mut bars: Vec<(String, Vec<f64>)> = Vec::new();
    for ours in rows.iter().filter(|row| row.by == "rigel") {
        for peer in peers(rows, ours) {
            let name = format!("{} : {}", ours.name, peer.by);
            let ratio = median(peer) / median(ours);
            match bars.iter_mut().find(|(other, _)| *other == name) {
                Some((_, ratios)) => ratios.push(ratio),
                None => bars.push((name, vec![ratio])),
            }
        }
    }
    if bars.is_empty() {
        return None;
    }
    bars.iter_mut().for_each(|(_, ratios)| ratios.sort_by(f64::total_cmp));
    let (left, bar) = (330.0, 20.0);
    let height = 100.0 + bars.len() as f64 * bar;
    let bottom = height - 48.0;
    let x = Scale::linear(bars.iter().flat_map(|(_, ratios)| ratios.iter().copied()).chain([1.0]));
    let axes = Axes { frame: [left, 48.0, WIDTH - 40.0, bottom], x, y: Scale::linear([1.0]) };
    let mut svg = Svg::new(WIDTH, height, "Times as fast as peers");
    title(&mut svg, "Times as fast as peers", report);
    for (index, (name, ratios)) in bars.iter().enumerate() {
        let y = 48.0 + index as f64 * bar;
        let place = |ratio: f64| axes.point(ratio, 0.0)[0];
        let middle = Times::of(ratios.clone()).map_or(0.0, |ratios| ratios.median_us);
        let colour = if middle >= 1.0 { COLOURS[0] } else { COLOURS[1] };
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        let text =
            format!("{name}: {} x, {} sizes, {} to {}", digits(middle), ratios.len(), digits(least), digits(most));
        svg.rect([left, y + 3.0, place(middle) - left, bar - 6.0], colour, Some(&text));
        svg.line(&[[place(least), y + bar / 2.0], [place(most), y + bar / 2.0]], INK, 1.5);
        svg.text([left - 8.0, y + 14.0], Anchor::End, 11.0, INK, name);
        svg.text([place(most.max(middle)) + 5.0, y + 14.0], Anchor::Start, 11.0, INK, &digits(middle));
    }
    let one = axes.point(1.0, 0.0)[0];
    svg.dashed(&[[one, 44.0], [one, bottom]], INK, 1.5);
    svg.text([one, bottom + 16.0], Anchor::Middle, 11.0, INK, "1 x: as fast");
    svg.text(
        [left, bottom + 34.0],
        Anchor::Start,
        11.0,
        "#64748b",
        "bars: median over all sizes; lines: least to most",
    );
    Some(svg.finish())
}
