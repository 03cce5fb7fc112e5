//! Pictures as SVG: small enough to write by hand, and no script is needed to read them.

mod axes;
mod bars;
mod palette;
mod svg;

pub use axes::{Axes, Scale};
pub use bars::{Bar, Bars};
pub use palette::{BAND, GROUND, INK, MARK, MUTED, RULE, SERIES, UNKNOWN, dark};
pub(crate) use svg::escaped;
pub use svg::{Anchor, Svg};

/// Shares of a limit from 0 to 1 as colours from red over yellow to blue, which also those tell apart who see no red or
/// no green (RdYlBu of ColorBrewer 2.0).
const SHARES: [[u8; 3]; 5] = [[215, 48, 39], [252, 141, 89], [254, 224, 144], [145, 191, 219], [69, 117, 180]];

/// The colour of a share of a limit; above 1 is as 1.
pub fn share_colour(share: Option<f64>) -> String {
    let Some(share) = share else { return UNKNOWN.to_owned() };
    let place = share.clamp(0.0, 1.0) * (SHARES.len() - 1) as f64;
    let (below, above) = (SHARES[place.floor() as usize], SHARES[place.ceil() as usize]);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * place.fract()).round() as u8;
    let [r, g, b] = [0, 1, 2].map(|index| mix(below[index], above[index]));
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Up to `most` round numbers from 0 to `end`, at even distances of 1, 2 or 5 times a power of ten.
pub fn ticks(end: f64, most: usize) -> Vec<f64> {
    if !(end > 0.0 && end.is_finite()) {
        return vec![0.0];
    }
    let rough = end / most.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    (0..=(end / step * 1.000_001) as usize).map(|index| index as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_colours() {
        assert_eq!([Some(0.0), Some(1.0), Some(7.0)].map(share_colour), ["#d73027", "#4575b4", "#4575b4"]);
        assert_eq!(share_colour(Some(0.125)), "#ea5f40");
        assert_eq!(share_colour(None), UNKNOWN);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(8123.0, 8), [0.0, 2000.0, 4000.0, 6000.0, 8000.0]);
        assert_eq!(ticks(0.75, 4), [0.0, 0.2, 0.4, 0.6000000000000001]);
        assert_eq!(ticks(0.0, 4), [0.0]);
    }
}
