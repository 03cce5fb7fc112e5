//! Sizes and numbers of things as people read them.

use std::fmt;

/// A number of bytes. Displays three significant digits and a binary unit: `29.7 GiB`, `193 MiB`, `54.8 KiB`, `512 B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let (mut value, mut unit) = (self.0 as f64, 0);
        // What rounds to 1024 of a unit is one of the next; u64 ends within EiB.
        while value >= 1023.5 {
            (value, unit) = (value / 1024.0, unit + 1);
        }
        let decimals = match value {
            _ if unit == 0 => 0,
            value if value >= 99.95 => 0,
            value if value >= 9.995 => 1,
            _ => 2,
        };
        f.pad(&format!("{value:.decimals$} {}", UNITS[unit]))
    }
}

/// `1 file`, `2 files`: a count with the name of what is counted, whose plural ends in an s.
pub fn counted(count: usize, one: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {one}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_thing_has_no_s() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "file")), ["0 files", "1 file", "2 files"]);
    }

    #[test]
    fn sizes_have_three_digits_and_a_binary_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (56_115, "54.8 KiB"),
            (202_375_168, "193 MiB"),
            ((1 << 30) - 1, "1.00 GiB"),
            (1023 << 20, "1023 MiB"),
            (31_915_778_048, "29.7 GiB"),
            (80 << 30, "80.0 GiB"),
            (1 << 40, "1.00 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>9}", Size(1 << 20)), " 1.00 MiB");
    }
}
