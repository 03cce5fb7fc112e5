//! [`Bars`]: amounts beside each other, from the left, a name before and a number behind each.

use super::{Anchor, INK, Scale, Svg};

/// Pixels from one bar to the next.
const PITCH: f64 = 20.0;

/// One amount.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Stands before it.
    pub name: String,
    /// How long it is, in the unit of all.
    pub value: f64,
    /// Stands behind it.
    pub number: String,
    /// Appears where a pointer rests on it.
    pub title: String,
    /// Its filling.
    pub colour: &'static str,
    /// The smallest and the largest of the values it stands for, a line across its end.
    pub range: Option<[f64; 2]>,
    /// What it could be at the most, a tick.
    pub limit: Option<f64>,
}

/// Bars between `left` and `right`, from `top` down.
#[derive(Debug, Clone)]
pub struct Bars {
    /// From the top down.
    pub bars: Vec<Bar>,
    /// Where they begin; names end before it.
    pub left: f64,
    /// Where the largest value ends.
    pub right: f64,
    /// Where the first begins.
    pub top: f64,
    /// A value that the scale reaches, however small the bars are.
    pub reaches: f64,
}

impl Bars {
    /// The lower end of the last one.
    pub fn bottom(&self) -> f64 {
        self.top + self.bars.len() as f64 * PITCH
    }

    /// Where a value lies, in pixels from the left.
    pub fn place(&self, value: f64) -> f64 {
        let ends = self.bars.iter().flat_map(|bar| {
            let largest = bar.range.map(|[_, largest]| largest);
            [Some(bar.value), largest, bar.limit].into_iter().flatten()
        });
        self.left + Scale::linear(ends.chain([self.reaches])).place(value) * (self.right - self.left)
    }

    /// Draws them.
    pub fn draw(&self, svg: &mut Svg) {
        let place = |value: f64| self.place(value);
        for (index, bar) in self.bars.iter().enumerate() {
            let y = self.top + index as f64 * PITCH;
            svg.rect([self.left, y + 3.0, place(bar.value) - self.left, PITCH - 6.0], bar.colour, Some(&bar.title));
            let mut end = bar.value;
            if let Some([smallest, largest]) = bar.range {
                svg.line(&[[place(smallest), y + PITCH / 2.0], [place(largest), y + PITCH / 2.0]], INK, 1.5);
                end = end.max(largest);
            }
            if let Some(limit) = bar.limit {
                svg.line(&[[place(limit), y + 1.0], [place(limit), y + PITCH - 1.0]], INK, 2.0);
            }
            svg.text([self.left - 8.0, y + 14.0], Anchor::End, 11.0, INK, &bar.name);
            svg.text([place(end) + 5.0, y + 14.0], Anchor::Start, 11.0, INK, &bar.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SERIES;
    use super::*;

    #[test]
    fn a_bar_has_its_name_number_and_limit() {
        let bar = Bar {
            name: "ours".to_owned(),
            value: 50.0,
            number: "50.0".to_owned(),
            title: "ours: 50".to_owned(),
            colour: SERIES[0],
            range: None,
            limit: Some(100.0 / 1.08),
        };
        let bars = vec![bar.clone(), Bar { range: Some([40.0, 60.0]), ..bar }];
        let bars = Bars { bars, left: 100.0, right: 200.0, top: 10.0, reaches: 1.0 };
        assert_eq!(bars.bottom(), 50.0);
        // The scale ends a little beyond the limit, at 100.
        assert!((bars.place(50.0) - 150.0).abs() < 1e-9);
        let mut svg = Svg::new(300.0, 60.0, "bars");
        bars.draw(&mut svg);
        let text = svg.finish();
        for part in [
            r##"<rect x="100" y="13" width="50" height="14" fill="#0072b2"><title>ours: 50</title></rect>"##,
            r#"points="192.59,11 192.59,29""#,
            r#"points="140,40 160,40""#,
            ">50.0</text>",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}
