//! [`Svg`]: a picture under way.

use std::fmt::Write;

use super::palette::{GROUND, dark_style};

/// Where a text stands to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Begins there.
    Start,
    /// Has its middle there.
    Middle,
    /// Ends there.
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

/// A picture of a given size, in pixels, with its origin at the top left. Later shapes lie above earlier ones.
#[derive(Debug, Clone)]
pub struct Svg {
    width: f64,
    height: f64,
    label: String,
    body: String,
}

impl Svg {
    /// An empty one, on a ground of its own, light or dark as the reader prefers; `label` says what it shows to those
    /// who cannot see it.
    pub fn new(width: f64, height: f64, label: &str) -> Svg {
        let mut svg = Svg { width, height, label: escaped(label), body: String::new() };
        svg.rect([0.0, 0.0, width, height], GROUND, None);
        svg
    }

    /// A filled rectangle `[x, y, width, height]`; `title` appears where a pointer rests on it.
    pub fn rect(&mut self, [x, y, width, height]: [f64; 4], fill: &str, title: Option<&str>) {
        let [x, y, width, height] = [x, y, width, height].map(number);
        let shape = format!(r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}""#);
        self.titled(&shape, "rect", title);
    }

    /// A filled disc.
    pub fn disc(&mut self, [x, y]: [f64; 2], radius: f64, fill: &str, title: Option<&str>) {
        let [x, y, radius] = [x, y, radius].map(number);
        let shape = format!(r#"<circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}" stroke="{GROUND}""#);
        self.titled(&shape, "circle", title);
    }

    /// Straight lines from point to point.
    pub fn line(&mut self, points: &[[f64; 2]], stroke: &str, width: f64) {
        self.stroked(points, stroke, width, "");
    }

    /// The same in dashes.
    pub fn dashed(&mut self, points: &[[f64; 2]], stroke: &str, width: f64) {
        self.stroked(points, stroke, width, r#" stroke-dasharray="6 4""#);
    }

    /// A line of text whose baseline is at the point.
    pub fn text(&mut self, [x, y]: [f64; 2], anchor: Anchor, size: f64, fill: &str, text: &str) {
        let ([x, y, size], anchor) = ([x, y, size].map(number), anchor.name());
        let text = escaped(text);
        self.push(&format!(
            r#"<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{text}</text>"#
        ));
    }

    /// A line of text that reads upwards, its middle at the point.
    pub fn upright(&mut self, [x, y]: [f64; 2], size: f64, fill: &str, text: &str) {
        let [x, y, size] = [x, y, size].map(number);
        let text = escaped(text);
        self.push(&format!(
            r#"<text transform="translate({x} {y}) rotate(-90)" text-anchor="middle" font-size="{size}" fill="{fill}">{text}</text>"#
        ));
    }

    /// The whole, as a file of its own or inside of HTML.
    pub fn finish(self) -> String {
        let ([width, height], label) = ([self.width, self.height].map(number), self.label);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"Helvetica, Arial, sans-serif\" role=\"img\" aria-label=\"{label}\">\n\
             {}{}</svg>\n",
            dark_style(),
            self.body
        )
    }

    fn stroked(&mut self, points: &[[f64; 2]], stroke: &str, width: f64, dashes: &str) {
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{},{}", number(*x), number(*y))).collect();
        let (points, width) = (points.join(" "), number(width));
        self.push(&format!(
            r#"<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="{width}"{dashes}/>"#
        ));
    }

    fn titled(&mut self, shape: &str, element: &str, title: Option<&str>) {
        match title {
            None => self.push(&format!("{shape}/>")),
            Some(title) => self.push(&format!("{shape}><title>{}</title></{element}>", escaped(title))),
        }
    }

    fn push(&mut self, element: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.body, "  {element}");
    }
}

/// Hundredths of a pixel, without zeros at the end.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text as XML and HTML take it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_elements_and_text_is_escaped() {
        let mut svg = Svg::new(100.0, 50.5, "a \"b\"");
        svg.rect([1.0, 2.25, 3.0, 4.001], "#123456", Some("1 < 2 & 3"));
        svg.text([0.0, 10.0], Anchor::End, 12.0, "#000", "µs");
        svg.line(&[[0.0, 0.0], [1.5, 2.0]], "#000", 1.0);
        let text = svg.finish();
        for part in [
            r#"viewBox="0 0 100 50.5""#,
            r#"aria-label="a &quot;b&quot;""#,
            r##"<rect x="1" y="2.25" width="3" height="4" fill="#123456"><title>1 &lt; 2 &amp; 3</title></rect>"##,
            r##"<text x="0" y="10" text-anchor="end" font-size="12" fill="#000">µs</text>"##,
            r##"<polyline points="0,0 1.5,2" fill="none" stroke="#000" stroke-width="1"/>"##,
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    }
}
