//! Numbers as people write them: `8k` tokens, `1.5GiB` of memory. The parsers of options that count something.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

/// An integer type that an option can have.
pub trait Count: Sized {
    /// The smallest value of the type.
    const MIN: u64;
    /// The largest value of the type.
    const MAX: u64;

    /// `None` if `value` is outside the type's range.
    fn from_u64(value: u64) -> Option<Self>;
}

macro_rules! count {
    ($($plain:ty, $non_zero:ty;)*) => {$(
        impl Count for $plain {
            const MIN: u64 = 0;
            const MAX: u64 = <$plain>::MAX as u64;

            fn from_u64(value: u64) -> Option<Self> {
                value.try_into().ok()
            }
        }
        impl Count for $non_zero {
            const MIN: u64 = 1;
            const MAX: u64 = <$plain>::MAX as u64;

            fn from_u64(value: u64) -> Option<Self> {
                <$plain>::from_u64(value).and_then(<$non_zero>::new)
            }
        }
    )*};
}

count! {
    u32, NonZeroU32;
    u64, NonZeroU64;
    usize, NonZeroUsize;
}

/// Parses a count: digits, and `k`, `m` or `g` for 1024, 1024² or 1024³ of them. `8k` is 8192.
pub fn count<T: Count>(text: &str) -> Result<T, String> {
    let (digits, unit) = split_unit(text);
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" => Some(1),
        "k" => Some(1 << 10),
        "m" => Some(1 << 20),
        "g" => Some(1 << 30),
        _ => None,
    };
    let is_whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let (true, Some(unit)) = (is_whole, unit) else {
        return Err(format!("expected a whole number of at least {}, such as 512 or 8k", T::MIN));
    };
    let value = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
    match value.map(T::from_u64) {
        Some(Some(count)) => Ok(count),
        Some(None) if value == Some(0) => Err(format!("expected a whole number of at least {}", T::MIN)),
        _ => Err(format!("expected a whole number of at most {}", T::MAX)),
    }
}

/// Parses a size in bytes: a decimal number and a unit. `k m g t`, alone or as `KiB MiB GiB TiB`, are powers of 1024,
/// as GPUs' memory is counted; `kB MB GB TB` are powers of 1000. No unit is bytes.
pub fn bytes(text: &str) -> Result<NonZeroU64, String> {
    let (digits, unit) = split_unit(text);
    parse_bytes(digits, unit)
        .and_then(NonZeroU64::new)
        .ok_or_else(|| "expected a size above 0, such as 20GiB, 1.5g or 800MB".to_owned())
}

fn parse_bytes(digits: &str, unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let exponent = match unit.chars().next() {
        None | Some('b') => 0,
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some(_) => return None,
    };
    let base: u64 = match unit.get(1..).unwrap_or_default() {
        "b" if exponent > 0 => 1000,
        "" => 1024,
        "ib" if exponent > 0 => 1024,
        _ => return None,
    };
    let unit = base.pow(exponent);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    // The fraction of a byte is dropped; twelve digits are finer than a byte of a TiB.
    let kept = &fraction[..fraction.len().min(12)];
    let fraction = if kept.is_empty() {
        0
    } else {
        u128::from(kept.parse::<u64>().ok()?) * u128::from(unit) / 10u128.pow(kept.len() as u32)
    };
    whole.checked_add(fraction as u64)
}

/// The number, and the letters that follow it.
fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    (text[..end].trim_end(), &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_letters() {
        let tokens = |text| count::<NonZeroU32>(text).map(NonZeroU32::get);
        assert_eq!(tokens("17"), Ok(17));
        assert_eq!(tokens("8k"), Ok(8192));
        assert_eq!(tokens("16K"), Ok(16384));
        assert_eq!(tokens("1m"), Ok(1 << 20));
        assert_eq!(count::<u32>("0"), Ok(0));
        assert_eq!(count::<u64>("18446744073709551615"), Ok(u64::MAX));
        for (wrong, expected) in [
            ("0", "expected a whole number of at least 1"),
            ("0k", "expected a whole number of at least 1"),
            ("-1", "expected a whole number of at least 1, such as 512 or 8k"),
            ("1.5k", "expected a whole number of at least 1, such as 512 or 8k"),
            ("", "expected a whole number of at least 1, such as 512 or 8k"),
            ("k", "expected a whole number of at least 1, such as 512 or 8k"),
            ("8kb", "expected a whole number of at least 1, such as 512 or 8k"),
            ("4294967296", "expected a whole number of at most 4294967295"),
            ("4g", "expected a whole number of at most 4294967295"),
            ("99999999999999999999g", "expected a whole number of at most 4294967295"),
        ] {
            assert_eq!(tokens(wrong), Err(expected.to_owned()), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units() {
        let size = |text| bytes(text).map(NonZeroU64::get);
        assert_eq!(size("17"), Ok(17));
        assert_eq!(size("20GiB"), Ok(20 << 30));
        assert_eq!(size("20g"), Ok(20 << 30));
        assert_eq!(size("20G"), Ok(20 << 30));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("0.5k"), Ok(512));
        assert_eq!(size("800 MB"), Ok(800_000_000));
        assert_eq!(size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(size("5B"), Ok(5));
        assert_eq!(size("2tib"), Ok(2 << 40));
        for wrong in ["", "0GiB", "0.0001", "-1", "1.5.2g", "GiB", ".5g", "99999999999TiB", "5 parsecs", "5bib", "1e9"]
        {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
