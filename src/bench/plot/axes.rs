//! [`Axes`]: two scales around a frame.

use super::{Anchor, INK, MUTED, RULE, Svg, ticks};

/// Numbers along an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    /// From 0 to a little beyond the largest value.
    pub fn linear(values: impl IntoIterator<Item = f64>) -> Scale {
        let high = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max);
        Scale { low: 0.0, high: if high > 0.0 { high * 1.08 } else { 1.0 }, logarithmic: false }
    }

    /// By factors, a little beyond the smallest and the largest of the values above 0.
    pub fn logarithmic(values: impl IntoIterator<Item = f64>) -> Scale {
        let values = values.into_iter().filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) = values.fold((f64::INFINITY, 0.0), |(low, high), value| (low.min(value), value.max(high)));
        if high == 0.0 {
            return Scale { low: 1.0, high: 10.0, logarithmic: true };
        }
        Scale { low: low / 1.4, high: high * 1.4, logarithmic: true }
    }

    /// The smallest and the largest number.
    pub fn range(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// From 0 at the smallest to 1 at the largest.
    pub fn place(&self, value: f64) -> f64 {
        if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            return ticks(self.high, 6);
        }
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = if decades > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        all.filter(|tick| (self.low..=self.high).contains(tick)).collect()
    }
}

/// A frame `[left, top, right, bottom]` with two scales.
#[derive(Debug, Clone, Copy)]
pub struct Axes {
    /// Where it lies.
    pub frame: [f64; 4],
    /// To the right.
    pub x: Scale,
    /// Upwards.
    pub y: Scale,
}

impl Axes {
    /// Where a pair of values lies.
    pub fn point(&self, x: f64, y: f64) -> [f64; 2] {
        let [left, top, right, bottom] = self.frame;
        [left + self.x.place(x) * (right - left), bottom - self.y.place(y) * (bottom - top)]
    }

    /// Draws rules, numbers and names.
    pub fn draw(&self, svg: &mut Svg, x_name: &str, y_name: &str) {
        let [left, top, right, bottom] = self.frame;
        for tick in self.x.ticks() {
            let [x, _] = self.point(tick, self.y.low);
            svg.line(&[[x, top], [x, bottom]], RULE, 1.0);
            svg.text([x, bottom + 16.0], Anchor::Middle, 11.0, MUTED, &plain(tick));
        }
        for tick in self.y.ticks() {
            let [_, y] = self.point(self.x.low, tick);
            svg.line(&[[left, y], [right, y]], RULE, 1.0);
            svg.text([left - 6.0, y + 4.0], Anchor::End, 11.0, MUTED, &plain(tick));
        }
        svg.line(&[[left, top], [left, bottom], [right, bottom]], INK, 1.0);
        svg.text([(left + right) / 2.0, bottom + 36.0], Anchor::Middle, 12.0, INK, x_name);
        svg.upright([left - 48.0, (top + bottom) / 2.0], 12.0, INK, y_name);
    }
}

/// A tick as short as it can be: `0.02`, `5`, `10000`.
fn plain(value: f64) -> String {
    if value >= 1.0 || value == 0.0 { format!("{value:.0}") } else { format!("{}", (value * 1e6).round() / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_places() {
        let scale = Scale::logarithmic([10.0, 1000.0, f64::NAN, 0.0]);
        assert!((scale.place(100.0) - 0.5).abs() < 1e-12);
        assert_eq!(scale.ticks(), [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        let axes = Axes { frame: [100.0, 0.0, 200.0, 50.0], x: Scale::linear([100.0]), y: scale };
        let [x, y] = axes.point(54.0, 100.0);
        assert!((x - 150.0).abs() < 1e-9 && (y - 25.0).abs() < 1e-9, "{x} {y}");
        assert_eq!([0.0, 0.002, 0.5, 5.0, 1e4].map(plain), ["0", "0.002", "0.5", "5", "10000"]);
    }
}
