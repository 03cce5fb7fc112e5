//! Reads a cubin: the kernels in it and the size of each of their parameters.
//!
//! A cubin is a 64-bit ELF file. Each kernel has a section `.nv.info.<kernel>`, a list of attributes; those numbered
//! 0x17 describe one parameter each (`EIATTR_KPARAM_INFO` in `cuobjdump -elf`).

use std::collections::BTreeMap;

use super::fatbin::{u16_at, u32_at, u64_at};

const INFO_PREFIX: &str = ".nv.info.";
/// Formats of an attribute: nothing, one byte or two bytes in the size field, or that many bytes after it.
const FORMAT_SIZED: u8 = 4;
const PARAMETER: u8 = 0x17;

/// The parameters of every kernel in a cubin: the bytes of each, in order.
pub(super) type Kernels = BTreeMap<String, Vec<usize>>;

/// The kernels of `cubin`. The error says what was wrong.
pub(super) fn kernels(cubin: &[u8]) -> Result<Kernels, String> {
    if cubin.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("the machine code is no little-endian 64-bit ELF file".to_owned());
    }
    let mut kernels = Kernels::new();
    for section in sections(cubin).ok_or("a section of the machine code reaches past its end")? {
        if let Some(kernel) = section.name.strip_prefix(INFO_PREFIX) {
            let parameters =
                parameters(section.bytes).ok_or_else(|| format!("{kernel}: its parameters are cut off"))?;
            kernels.insert(kernel.to_owned(), parameters);
        }
    }
    Ok(kernels)
}

struct Section<'a> {
    name: &'a str,
    bytes: &'a [u8],
}

/// ELF-64: the section headers' place, size and number, and the index of the section of names, are in the file's
/// header; a section header starts with the offset of its name.
fn sections(elf: &[u8]) -> Option<Vec<Section<'_>>> {
    const NO_BITS: u32 = 8; // takes room when loaded, none in the file
    let table = usize::try_from(u64_at(elf, 40)?).ok()?;
    let size = usize::from(u16_at(elf, 58)?);
    let count = usize::from(u16_at(elf, 60)?);
    let names = usize::from(u16_at(elf, 62)?);
    let header = |index: usize| elf.get(table.checked_add(index.checked_mul(size)?)?..);
    let bytes = |header: &[u8]| -> Option<&[u8]> {
        if u32_at(header, 4)? == NO_BITS {
            return Some(&[]);
        }
        let start = usize::try_from(u64_at(header, 24)?).ok()?;
        elf.get(start..start.checked_add(usize::try_from(u64_at(header, 32)?).ok()?)?)
    };
    let names = bytes(header(names)?)?;
    let section = |index| {
        let header = header(index)?;
        let name = names.get(u32_at(header, 0)? as usize..)?.split(|byte| *byte == 0).next()?;
        Some(Section { name: std::str::from_utf8(name).ok()?, bytes: bytes(header)? })
    };
    (0..count).map(section).collect()
}

/// An attribute: format, number, then two bytes of value or size. A parameter's 12 bytes: index (4), ordinal (2),
/// offset (2), and a word whose upper 14 bits are its size.
fn parameters(mut info: &[u8]) -> Option<Vec<usize>> {
    let mut sizes = BTreeMap::new();
    while !info.is_empty() {
        let (format, number) = (*info.first()?, *info.get(1)?);
        let sized = format == FORMAT_SIZED;
        let end = 4 + if sized { usize::from(u16_at(info, 2)?) } else { 0 };
        let value = info.get(4..end)?;
        if sized && number == PARAMETER {
            sizes.insert(u16_at(value, 4)?, (u32_at(value, 8)? >> 18) as usize);
        }
        info = &info[end..];
    }
    // Ordinals count from 0 without a gap.
    let whole = sizes.keys().enumerate().all(|(index, ordinal)| usize::from(*ordinal) == index);
    whole.then(|| sizes.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attributes of a kernel `(float*, int, TensorMap of 128 bytes)`, listed last parameter first as ptxas does.
    fn info() -> Vec<u8> {
        let mut info = vec![4, 0x37, 4, 0, 0x82, 0, 0, 0, 3, 0x50, 0, 0];
        for (ordinal, offset, size) in [(2u16, 64u16, 128u32), (1, 8, 4), (0, 0, 8)] {
            info.extend([4, PARAMETER, 12, 0, 0, 0, 0, 0]);
            info.extend(ordinal.to_le_bytes());
            info.extend(offset.to_le_bytes());
            info.extend((size << 18 | 0x1f000).to_le_bytes());
        }
        info
    }

    #[test]
    fn parameters_come_in_order_with_their_sizes() {
        assert_eq!(parameters(&info()), Some(vec![8, 4, 128]));
        assert_eq!(parameters(&[]), Some(vec![]));
    }

    #[test]
    fn a_gap_or_a_cut_is_noticed() {
        let whole = info();
        assert_eq!(parameters(&whole[..whole.len() - 16]), None, "parameter 0 is missing");
        assert_eq!(parameters(&whole[..whole.len() - 1]), None);
        assert!(kernels(b"\x7fELF\x02\x01").is_err());
        assert!(kernels(b"no ELF").unwrap_err().contains("no little-endian 64-bit ELF"));
    }
}
