//! A timeline as a picture: a lane for each part of the network, time from left to right, colours for shares of limits;
//! the whole step, and its first layers enlarged.

use super::super::plot::{
    Anchor, BAND, GROUND, INK, MARK, MUTED, RULE, Svg, UNKNOWN, dark, escaped, share_colour, ticks,
};
use super::super::report::Limit;
use super::super::table::{digits, percent};
use super::timeline::{PartTotal, Span, Timeline};

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 120.0;
/// Where the totals of the lanes begin.
const RIGHT: f64 = 960.0;
/// Layers that are enlarged.
const ENLARGED_LAYERS: usize = 2;

/// All timelines in one picture, `caption` (device, commit, command) at its foot.
pub fn svg(timelines: &[Timeline], caption: &str) -> String {
    let heights: Vec<f64> = timelines.iter().map(height).collect();
    let label: Vec<String> = timelines.iter().map(|timeline| timeline.step.to_string()).collect();
    let total = heights.iter().sum::<f64>() + 96.0;
    let mut svg = Svg::new(WIDTH, total, &format!("Timeline: {}", label.join("; ")));
    let mut top = 0.0;
    for (timeline, height) in timelines.iter().zip(heights) {
        draw(&mut svg, timeline, top);
        top += height;
    }
    let sees_gaps = timelines.iter().all(|timeline| timeline.sees_gaps);
    legend(&mut svg, top + 20.0, sees_gaps);
    svg.text([16.0, top + 80.0], Anchor::Start, 11.0, MUTED, caption);
    svg.finish()
}

/// The picture and the tables as one page, which needs nothing beside it.
pub fn html(timelines: &[Timeline], caption: &str) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>rigel profile</title>\n<style>\n\
         body {{ font: 14px Helvetica, Arial, sans-serif; color: {INK}; margin: 24px; max-width: {WIDTH}px }}\n\
         svg {{ max-width: 100%; height: auto }}\n\
         table {{ border-collapse: collapse; margin: 8px 0 24px }}\n\
         td, th {{ padding: 3px 12px; border-bottom: 1px solid {RULE}; text-align: right }}\n\
         td:first-child, th:first-child {{ text-align: left }}\n\
         @media (prefers-color-scheme: dark) {{ body {{ color: {}; background: {} }} td, th {{ border-color: {} }} }}\n\
         </style>\n</head>\n<body>\n",
        dark(INK),
        dark(GROUND),
        dark(RULE)
    );
    page += &svg(timelines, caption);
    page += "<p>Rest a pointer on a launch to read its kernel, time, bytes and FLOPs.</p>\n";
    for timeline in timelines {
        let (step, summary) = (escaped(&timeline.step.to_string()), escaped(&timeline.summary()));
        page += &format!("<h2>{step}</h2>\n<p>{summary}</p>\n<table>\n");
        page += &timeline.table().to_html();
        page += "</table>\n";
    }
    page + "</body>\n</html>\n"
}

/// Where the panels of a timeline lie, from its own top.
struct Panels {
    parts: Vec<PartTotal>,
    lane: f64,
}

impl Panels {
    const WHOLE_TOP: f64 = 76.0;

    fn of(timeline: &Timeline) -> Panels {
        Panels { parts: timeline.parts(), lane: 17.0 }
    }

    fn lanes(&self) -> f64 {
        self.parts.len() as f64 * self.lane
    }

    /// Lanes, axis, and room for the next title.
    fn enlarged_top(&self) -> f64 {
        Panels::WHOLE_TOP + self.lanes() + 68.0
    }

    fn height(&self) -> f64 {
        self.enlarged_top() + self.lanes() + 64.0
    }
}

fn height(timeline: &Timeline) -> f64 {
    Panels::of(timeline).height()
}

fn draw(svg: &mut Svg, timeline: &Timeline, top: f64) {
    let panels = Panels::of(timeline);
    svg.text([16.0, top + 32.0], Anchor::Start, 18.0, INK, &timeline.step.to_string());
    svg.text([16.0, top + 52.0], Anchor::Start, 12.0, MUTED, &timeline.summary());
    let origin = timeline.spans.first().map_or(0.0, |span| span.start_us);
    let whole = Window { from: origin, until: origin + timeline.wall_us() };
    panel(svg, timeline, &panels, top + Panels::WHOLE_TOP, whole);
    totals(svg, timeline, &panels, top + Panels::WHOLE_TOP);

    let enlarged_top = top + panels.enlarged_top();
    let (title, until) = first_layers(timeline);
    svg.text([16.0, enlarged_top - 10.0], Anchor::Start, 13.0, INK, &title);
    let enlarged = Window { from: origin, until: until.max(origin) };
    panel(svg, timeline, &panels, enlarged_top, enlarged);
    // What of the whole is enlarged.
    let (whole_bottom, x) = (top + Panels::WHOLE_TOP + panels.lanes(), whole.place(enlarged.until));
    svg.dashed(&[[x, whole_bottom], [x, whole_bottom + 24.0], [RIGHT, enlarged_top]], UNKNOWN, 1.0);
    svg.dashed(&[[LEFT, whole_bottom], [LEFT, enlarged_top]], UNKNOWN, 1.0);
}

/// The end of the first layers, and what to call them.
fn first_layers(timeline: &Timeline) -> (String, f64) {
    let layers = timeline.spans.iter().filter_map(|span| span.layer).max().map_or(0, |last| last + 1);
    let shown = layers.min(ENLARGED_LAYERS);
    let last = timeline.spans.iter().rfind(|span| span.layer.is_some_and(|layer| layer < shown));
    let title = match shown {
        0 => "enlarged".to_owned(),
        1 => format!("up to the end of the first layer of {layers}"),
        shown => format!("up to the end of layer {shown} of {layers}"),
    };
    (title, last.map_or(0.0, Span::end_us))
}

/// A stretch of time, in microseconds, as wide as a panel.
#[derive(Clone, Copy)]
struct Window {
    from: f64,
    until: f64,
}

impl Window {
    fn width(self) -> f64 {
        (self.until - self.from).max(f64::MIN_POSITIVE)
    }

    fn place(self, us: f64) -> f64 {
        LEFT + ((us - self.from) / self.width()).clamp(0.0, 1.0) * (RIGHT - LEFT)
    }
}

/// Lanes with their launches, gaps across all of them, and the axis of time.
fn panel(svg: &mut Svg, timeline: &Timeline, panels: &Panels, top: f64, window: Window) {
    let lane_top = |index: usize| top + index as f64 * panels.lane;
    for (index, total) in panels.parts.iter().enumerate() {
        if index % 2 == 0 {
            svg.rect([LEFT, lane_top(index), RIGHT - LEFT, panels.lane], BAND, None);
        }
        svg.text([LEFT - 8.0, lane_top(index) + 12.5], Anchor::End, 11.0, INK, total.name());
    }
    if timeline.sees_gaps {
        for (from, until) in timeline.gaps().into_iter().filter(|(from, _)| *from < window.until) {
            let (left, right) = (window.place(from), window.place(until));
            let title = format!("nothing runs for {} µs", digits(until - from));
            svg.rect([left, top, right - left, panels.lanes()], MARK, Some(&title));
        }
    }
    for span in timeline.spans.iter().filter(|span| span.start_us < window.until) {
        let Some(index) = panels.parts.iter().position(|total| total.part == span.part) else { continue };
        let (left, right) = (window.place(span.start_us), window.place(span.end_us()));
        // A launch of any length is seen; wide ones stand apart from their neighbours in time.
        let width = if right - left > 3.0 { right - left - 0.5 } else { (right - left).max(0.4) };
        let colour = share_colour(span.of_limit());
        svg.rect([left, lane_top(index) + 2.0, width, panels.lane - 4.0], &colour, Some(&title(span)));
    }
    axis(svg, top + panels.lanes(), window);
}

fn axis(svg: &mut Svg, y: f64, window: Window) {
    svg.line(&[[LEFT, y], [RIGHT, y]], INK, 1.0);
    for tick in ticks(window.width(), 8) {
        let x = window.place(window.from + tick);
        svg.line(&[[x, y], [x, y + 4.0]], INK, 1.0);
        let unit = if tick == 0.0 { " µs" } else { "" };
        let text = if tick < 10.0 && tick.fract() > 0.0 { format!("{tick:.1}") } else { format!("{tick:.0}") };
        svg.text([x, y + 16.0], Anchor::Middle, 10.0, MUTED, &(text + unit));
    }
}

/// The columns right of the lanes.
fn totals(svg: &mut Svg, timeline: &Timeline, panels: &Panels, top: f64) {
    let columns = [("µs", 70.0), ("of step", 130.0), ("of limit", 190.0)];
    for (name, x) in columns {
        svg.text([RIGHT + x, top - 6.0], Anchor::End, 10.0, MUTED, name);
    }
    for (index, total) in panels.parts.iter().enumerate() {
        let of_step = if timeline.wall_us() > 0.0 { total.us / timeline.wall_us() } else { 0.0 };
        let of_limit = total.of_limit().map_or("-".to_owned(), percent);
        let cells = [digits(total.us), percent(of_step), of_limit];
        let y = top + index as f64 * panels.lane + 12.5;
        for ((_, x), cell) in columns.into_iter().zip(cells) {
            svg.text([RIGHT + x, y], Anchor::End, 11.0, INK, &cell);
        }
        svg.rect([RIGHT + 198.0, y - 9.5, 10.0, 11.0], &share_colour(total.of_limit()), None);
    }
}

/// What a pointer that rests on a launch reads.
fn title(span: &Span) -> String {
    let mut title = span.kernel.clone();
    if let Some(layer) = span.layer {
        title += &format!(", layer {layer}");
    }
    title += &format!("\n{} µs from {} µs on", digits(span.us), digits(span.start_us));
    if span.bytes > 0 {
        title +=
            &format!("\n{} MB, {} GB/s", digits(span.bytes as f64 / 1e6), digits(span.bytes as f64 / span.us / 1e3));
    }
    if span.flops > 0 {
        let rate = span.flops as f64 / span.us / 1e6;
        title += &format!("\n{} GFLOP, {} TFLOP/s", digits(span.flops as f64 / 1e9), digits(rate));
    }
    if let (Some(share), Some((_, limit))) = (span.of_limit(), span.least) {
        let limit = if limit == Limit::Bytes { "bytes" } else { "FLOPs" };
        title += &format!("\n{} of what its {limit} allow", percent(share));
    }
    title
}

fn legend(svg: &mut Svg, y: f64, sees_gaps: bool) {
    svg.text([16.0, y + 12.0], Anchor::Start, 12.0, INK, "share of a launch's own limit:");
    const STEPS: usize = 40;
    for step in 0..STEPS {
        let x = 230.0 + step as f64 * 5.0;
        svg.rect([x, y, 5.2, 14.0], &share_colour(Some((step as f64 + 0.5) / STEPS as f64)), None);
    }
    for (share, text) in [(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")] {
        svg.text([230.0 + share * 200.0, y + 28.0], Anchor::Middle, 10.0, MUTED, text);
    }
    svg.rect([470.0, y, 14.0, 14.0], UNKNOWN, None);
    svg.text([490.0, y + 12.0], Anchor::Start, 12.0, INK, "limit not known");
    svg.rect([620.0, y, 14.0, 14.0], MARK, None);
    let gaps = match sees_gaps {
        true => "nothing runs",
        false => "nothing runs (not seen here: an event behind each launch, gaps count to the launch behind them)",
    };
    svg.text([640.0, y + 12.0], Anchor::Start, 12.0, INK, gaps);
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::super::timeline::Step;
    use super::*;
    use crate::backend::Determinism;
    use crate::backend::cuda::model::CudaOptions;
    use crate::backend::cuda::model::cost_model::{SequenceStep, StepDescription, kernel_costs};
    use crate::backend::cuda::trace::TimedLaunch;
    use crate::backend::cuda::{Algorithms, ComputeCapability, Properties};
    use crate::bench::report::Ceilings;
    use crate::checkpoint::Config;
    use crate::model::ModelSpec;

    /// The 15B's step on a card whose every launch takes its least time, a little more for each part, and a gap.
    fn made_up(step: Step, sequences: &[SequenceStep]) -> Timeline {
        let json = include_str!("../../../models/configs/starcoder2-15b.json");
        let spec = ModelSpec::from_config(&Config::parse(json.as_bytes(), "config.json").unwrap()).unwrap();
        let options = CudaOptions {
            page_size: NonZeroU32::new(64).unwrap(),
            pages: 1,
            max_rows: 512,
            max_sequences: 8,
            determinism: Determinism::Fast,
        };
        let card = Properties {
            name: "a card".to_owned(),
            compute_capability: ComputeCapability { major: 9, minor: 0 },
            sm_count: 132,
            shared_bytes: 227 << 10,
            l2_bytes: 50 << 20,
            memory_bytes: 141 << 30,
            algorithms: Algorithms::default(),
        };
        let described = StepDescription { sequences, logits_rows: sequences.len(), sampled_rows: sequences.len() };
        let costs = kernel_costs::<half::bf16>(&spec, &options, &card, &described);
        let ceilings = Ceilings { bytes: Some(4e12), flops: Some(8e14) };
        let mut clock = 0.0;
        let mut ran = Vec::new();
        for launch in &costs {
            let (least, _) = ceilings.min_us(launch.work.bytes(), launch.work.flops).unwrap();
            let us = 1.5 + least * (1.05 + 0.15 * launch.part as usize as f64 / 4.0);
            ran.push(TimedLaunch { kernel: launch.kernel.clone(), start_us: clock, us });
            clock += us + if launch.family == "norm" { 0.2 } else { 1.0 };
        }
        Timeline::join(step, ("cupti", true), ran, &costs, &ceilings).unwrap()
    }

    #[test]
    fn every_launch_and_every_gap_is_drawn() {
        let timelines = [
            made_up(Step::Prefill { rows: 512 }, &[SequenceStep { rows: 512, start: 0 }]),
            made_up(Step::Decode { batch: 1, depth: 4095 }, &[SequenceStep { rows: 1, start: 4095 }]),
        ];
        let page = html(&timelines, "a caption");
        // To be looked at.
        if let Some(path) = std::env::var_os("RIGEL_PICTURE") {
            std::fs::write(path, svg(&timelines, "a caption")).unwrap();
        }
        for timeline in &timelines {
            let drawn = page.matches("<title>").count();
            assert!(drawn >= timelines.iter().map(|timeline| timeline.spans.len()).sum::<usize>(), "{drawn}");
            assert!(page.contains(&timeline.summary()) && page.contains(&timeline.step.to_string()));
        }
        let gaps: usize = timelines.iter().map(|timeline| timeline.gaps().len()).sum();
        assert!(page.matches("nothing runs for").count() >= gaps);
        for text in ["layer 39", "up to the end of layer 2 of 40", "of what its bytes allow", "a caption"] {
            assert!(page.contains(text), "no {text:?}");
        }
        assert!(!page.contains("<script") && !page.contains("NaN") && !page.contains("inf"), "no number is none");
    }
}
