//! The plots: roofline, tokens a second by batch, ours beside peers.

use std::collections::BTreeMap;

use super::super::plot::{Anchor, Axes, Bar, Bars, INK, MUTED, SERIES, Scale, Svg, UNKNOWN};
use super::super::report::{Report, Row, Suite};
use super::super::table::digits;
use super::super::times::Times;
use super::tables::largest;
use super::{measured, median, peers, size};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
/// Where a plot begins, below its title.
const TOP: f64 = 60.0;
const FRAME: [f64; 4] = [80.0, TOP, 660.0, 420.0];
const LEGEND_X: f64 = 684.0;

/// Each plot, where there is something to draw.
pub(super) fn all(report: &Report) -> [Option<String>; 3] {
    let rows = measured(report);
    [roofline(report, &rows), tokens(report, &rows), beside_peers(report, &rows)]
}

fn title(svg: &mut Svg, text: &str, report: &Report) {
    svg.text([16.0, 24.0], Anchor::Start, 16.0, INK, text);
    let origin = format!("{}, {}, commit {}", report.device.name, report.date, report.commit);
    svg.text([16.0, 42.0], Anchor::Start, 11.0, MUTED, &origin);
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
        svg.disc(axes.point(*x, *y), 4.0, SERIES[index % SERIES.len()], Some(&text));
    }
    for (index, family) in families.iter().enumerate() {
        legend(&mut svg, index, SERIES[index % SERIES.len()], family);
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

/// A test in llama-bench's terms as a reader says it: `prompt of 512` for `pp512`, `32 new tokens` for `tg32`, with how
/// many tokens stood before them. Other names stay.
fn spelled(test: &str) -> String {
    let (name, depth) = test.split_once(" @ d").map_or((test, None), |(name, depth)| (name, Some(depth)));
    let number = |start: &str| name.strip_prefix(start).filter(|rest| rest.parse::<u64>().is_ok());
    let spelled = match (number("pp"), number("tg")) {
        (Some(tokens), _) => format!("prompt of {tokens}"),
        (_, Some(tokens)) => format!("{tokens} new tokens"),
        _ => return test.to_owned(),
    };
    depth.map_or(spelled.clone(), |depth| format!("{spelled} after {depth}"))
}

/// `1 sequence`, `8 sequences`.
fn counted(count: f64, one: &str) -> String {
    let more = if count == 1.0 { "" } else { "s" };
    format!("{count} {one}{more}")
}

/// What was measured of decoding: for each program its batch sizes with tokens a second, ours first.
struct Decoding<'a> {
    model: &'a str,
    test: &'a str,
    series: BTreeMap<(bool, &'a str), Vec<(f64, f64)>>,
    /// What reading the bytes alone allows, at our batch sizes.
    limit: Vec<(f64, f64)>,
}

impl<'a> Decoding<'a> {
    /// Of the largest model, the test that we measured at the most batch sizes.
    fn of(report: &Report, rows: &[&'a Row]) -> Option<Decoding<'a>> {
        let decode: Vec<&Row> =
            rows.iter().filter(|row| row.suite == Suite::Model && row.name.starts_with("tg")).copied().collect();
        let model = largest(&decode)?;
        let of_model: Vec<&Row> = decode.into_iter().filter(|row| row.model.as_deref() == Some(model)).collect();
        let count = |test: &str| of_model.iter().filter(|row| row.by == "rigel" && row.name == test).count();
        let tests = distinct(of_model.iter().map(|row| row.name.as_str()));
        let test = tests.into_iter().rev().max_by_key(|test| count(test)).filter(|test| count(test) > 0)?;
        let mut decoding = Decoding { model, test, series: BTreeMap::new(), limit: Vec::new() };
        for row in of_model.iter().filter(|row| row.name == test) {
            let batch = size(row, "batch").unwrap_or(1) as f64;
            let Some(rate) = row.tokens_per_second() else { continue };
            decoding.series.entry((row.by != "rigel", &row.by)).or_default().push((batch, rate));
            if let Some(bytes) = report.ceilings().bytes.filter(|_| row.by == "rigel" && row.bytes > 0) {
                decoding.limit.push((batch, row.tokens as f64 / (row.bytes as f64 / bytes)));
            }
        }
        decoding.series.values_mut().chain([&mut decoding.limit]).for_each(|points| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
        });
        Some(decoding)
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.series.values().flatten().chain(&self.limit)
    }

    /// The batch size, where there is one alone.
    fn only_batch(&self) -> Option<f64> {
        let (first, _) = self.points().next()?;
        self.points().all(|(batch, _)| batch == first).then_some(*first)
    }
}

/// Tokens a second of decoding beside the limit of bytes: by batch size, or as bars where there is one size.
fn tokens(report: &Report, rows: &[&Row]) -> Option<String> {
    let decoding = Decoding::of(report, rows)?;
    Some(match decoding.only_batch() {
        Some(batch) => tokens_of_one_batch(report, &decoding, batch),
        None => tokens_by_batch(report, &decoding),
    })
}

fn tokens_of_one_batch(report: &Report, decoding: &Decoding<'_>, batch: f64) -> String {
    let limit = decoding.limit.first().map(|(_, rate)| *rate);
    let mut bars = Vec::new();
    for (index, ((other, by), points)) in decoding.series.iter().enumerate() {
        let rate = points[0].1;
        bars.push(Bar {
            name: (*by).to_owned(),
            value: rate,
            number: digits(rate),
            title: format!("{by}, {}: {} tokens/s", counted(batch, "sequence"), digits(rate)),
            colour: SERIES[index % SERIES.len()],
            range: None,
            limit: limit.filter(|_| !other),
        });
    }
    let bars = Bars { bars, left: 130.0, right: WIDTH - 80.0, top: TOP, reaches: 0.0 };
    let foot = if limit.is_some() { 36.0 } else { 16.0 };
    let mut svg = Svg::new(WIDTH, bars.bottom() + foot, "Tokens a second");
    let what = format!("{}, {}, {}", decoding.model, spelled(decoding.test), counted(batch, "sequence"));
    title(&mut svg, &format!("Tokens a second: {what}"), report);
    bars.draw(&mut svg);
    if let Some(limit) = limit {
        let at = [bars.place(limit) + 5.0, bars.top + 14.0];
        svg.text(at, Anchor::Start, 11.0, INK, &format!("limit {}", digits(limit)));
        let text = "limit: reading the same bytes at the memory bandwidth of the same run";
        svg.text([bars.left, bars.bottom() + 18.0], Anchor::Start, 11.0, MUTED, text);
    }
    svg.finish()
}

fn tokens_by_batch(report: &Report, decoding: &Decoding<'_>) -> String {
    let x = Scale::logarithmic(decoding.points().map(|(x, _)| *x));
    let axes = Axes { frame: FRAME, x, y: Scale::logarithmic(decoding.points().map(|(_, y)| *y)) };
    let mut svg = Svg::new(WIDTH, HEIGHT, "Tokens a second by batch");
    title(&mut svg, &format!("Tokens a second by batch, {}, {}", decoding.model, spelled(decoding.test)), report);
    axes.draw(&mut svg, "sequences", "tokens a second");
    let places = |points: &[(f64, f64)]| -> Vec<[f64; 2]> { points.iter().map(|(x, y)| axes.point(*x, *y)).collect() };
    // One point makes no line.
    let has_line = |points: &[(f64, f64)]| points.len() > 1;
    if has_line(&decoding.limit) {
        svg.dashed(&places(&decoding.limit), UNKNOWN, 2.0);
        legend_line(&mut svg, decoding.series.len(), UNKNOWN, "the limit of bytes");
    }
    for (index, ((_, by), points)) in decoding.series.iter().enumerate() {
        let colour = SERIES[index % SERIES.len()];
        let places = places(points);
        if has_line(points) {
            svg.line(&places, colour, 2.0);
        }
        for (place, (batch, rate)) in places.iter().zip(points) {
            let text = format!("{by}, {}: {} tokens/s", counted(*batch, "sequence"), digits(*rate));
            svg.disc(*place, 4.0, colour, Some(&text));
        }
        legend(&mut svg, index, colour, by);
    }
    svg.finish()
}

/// How many times as fast as each peer we are: the median of all sizes, and the range.
fn beside_peers(report: &Report, rows: &[&Row]) -> Option<String> {
    let mut ratios: Vec<(String, Vec<f64>)> = Vec::new();
    for ours in rows.iter().filter(|row| row.by == "rigel") {
        for peer in peers(rows, ours) {
            let name = format!("{}, beside {}", spelled(&ours.name), peer.by);
            let ratio = median(peer) / median(ours);
            match ratios.iter_mut().find(|(other, _)| *other == name) {
                Some((_, ratios)) => ratios.push(ratio),
                None => ratios.push((name, vec![ratio])),
            }
        }
    }
    if ratios.is_empty() {
        return None;
    }
    let has_ranges = ratios.iter().any(|(_, ratios)| ratios.len() > 1);
    let bars = ratios.into_iter().map(|(name, ratios)| of_ratios(name, ratios)).collect();
    let bars = Bars { bars, left: 330.0, right: WIDTH - 40.0, top: TOP, reaches: 1.0 };
    let bottom = bars.bottom();
    let mut svg = Svg::new(WIDTH, bottom + if has_ranges { 44.0 } else { 26.0 }, "Times as fast as peers");
    title(&mut svg, "Times as fast as peers", report);
    bars.draw(&mut svg);
    let one = bars.place(1.0);
    svg.dashed(&[[one, TOP - 4.0], [one, bottom]], INK, 1.5);
    svg.text([one, bottom + 16.0], Anchor::Middle, 11.0, INK, "1 x: as fast");
    if has_ranges {
        let text = "bars: median over all sizes; lines: smallest to largest";
        svg.text([bars.left, bottom + 34.0], Anchor::Start, 11.0, MUTED, text);
    }
    Some(svg.finish())
}

/// A bar for the ratios of one thing at its sizes.
fn of_ratios(name: String, mut ratios: Vec<f64>) -> Bar {
    ratios.sort_by(f64::total_cmp);
    let middle = Times::of(ratios.clone()).map_or(0.0, |ratios| ratios.median_us);
    let (smallest, largest) = (ratios[0], ratios[ratios.len() - 1]);
    let mut title = format!("{name}: {} x", digits(middle));
    let range = (ratios.len() > 1).then_some([smallest, largest]);
    if range.is_some() {
        title += &format!(", {} sizes, {} to {}", ratios.len(), digits(smallest), digits(largest));
    }
    let colour = if middle >= 1.0 { SERIES[0] } else { SERIES[1] };
    Bar { name, value: middle, number: digits(middle), title, colour, range, limit: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_numbers_are_spelled_out() {
        let names = ["pp512", "tg32", "tg128 @ d1024", "gemm up_proj", "tgx"].map(spelled);
        assert_eq!(names, ["prompt of 512", "32 new tokens", "128 new tokens after 1024", "gemm up_proj", "tgx"]);
        assert_eq!([1.0, 8.0].map(|count| counted(count, "sequence")), ["1 sequence", "8 sequences"]);
    }
}
