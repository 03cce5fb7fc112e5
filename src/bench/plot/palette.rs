//! The colours of pictures, for light pages and for dark ones.

/// Text and axes.
pub const INK: &str = "#334155";
/// Text of less weight.
pub const MUTED: &str = "#64748b";
/// Rules and frames.
pub const RULE: &str = "#e2e8f0";
/// What nothing is known of.
pub const UNKNOWN: &str = "#94a3b8";
/// What a picture is drawn on.
pub const GROUND: &str = "#ffffff";
/// Every second row of a table, on the ground.
pub const BAND: &str = "#f8fafc";
/// A mark that is to be seen first.
pub const MARK: &str = "#0f172a";
/// Colours that most people tell apart (Okabe and Ito 2008).
pub const SERIES: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// What takes a colour's place on a dark page. The other colours are legible on both grounds.
const DARK: [(&str, &str); 9] = [
    (INK, "#cbd5e1"),
    (MUTED, "#94a3b8"),
    (RULE, "#2d3748"),
    (UNKNOWN, "#718096"),
    (GROUND, "#0d1117"),
    (BAND, "#161b22"),
    (MARK, "#f1f5f9"),
    (SERIES[0], "#3b9bd6"),
    (SERIES[6], "#ffffff"),
];

/// A style sheet that changes to the dark colours where the reader's system prefers them. Rules of a style sheet take
/// precedence over the colours that shapes have as attributes.
pub fn dark_style() -> String {
    let rule = |(light, dark): &(&str, &str)| {
        format!("    svg [fill=\"{light}\"] {{ fill: {dark} }} svg [stroke=\"{light}\"] {{ stroke: {dark} }}\n")
    };
    let rules: String = DARK.iter().map(rule).collect();
    format!("  <style>@media (prefers-color-scheme: dark) {{\n{rules}  }}</style>\n")
}

/// The colour of a dark page for this one of a light page.
pub fn dark(colour: &str) -> &str {
    DARK.iter().find(|(light, _)| *light == colour).map_or(colour, |(_, dark)| dark)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The luminance of a colour (WCAG 2.2, "relative luminance").
    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn colours_are_legible_on_both_grounds() {
        assert!((contrast("#000000", "#ffffff") - 21.0).abs() < 1e-9);
        // WCAG 2.2 asks for 4.5 of text and 3 of what is drawn; pale series have their names beside them.
        let least = [(INK, 4.5), (MUTED, 4.5), (MARK, 4.5), (UNKNOWN, 2.5)];
        for (colour, least) in least.into_iter().chain(SERIES.map(|colour| (colour, 2.0))) {
            for (colour, ground) in [(colour, GROUND), (dark(colour), dark(GROUND))] {
                assert!(contrast(colour, ground) >= least, "{colour} on {ground}: {}", contrast(colour, ground));
            }
        }
    }

    /// The drawings, which are made by hand, too.
    #[test]
    fn every_picture_of_the_documentation_has_both_palettes() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let files = std::fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().path());
        let pictures: Vec<_> = files.filter(|path| path.extension().is_some_and(|it| it == "svg")).collect();
        assert!(pictures.len() >= 2, "{pictures:?}");
        for path in pictures {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains("@media (prefers-color-scheme: dark)"), "{path:?}");
        }
    }

    #[test]
    fn each_dark_colour_is_a_rule() {
        let style = dark_style();
        assert!(style.contains("svg [fill=\"#ffffff\"] { fill: #0d1117 }"), "{style}");
        assert_eq!(style.matches("svg [stroke=").count(), DARK.len());
    }
}
