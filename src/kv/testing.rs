//! Helpers of this module's tests.

use std::num::NonZeroU32;

use super::{CacheGeometry, CacheGroup, KvFormat};
use crate::checkpoint::Dtype;

pub(super) fn non_zero(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

/// A geometry with these windows and page counts.
pub(super) fn geometry(page_size: u32, groups: &[(Option<u32>, u32)]) -> CacheGeometry {
    let group = |&(window, pages): &(Option<u32>, u32)| CacheGroup {
        window: window.map(non_zero),
        pages,
        format: KvFormat::Dense(Dtype::F32),
        page_bytes: 0,
    };
    CacheGeometry { page_size: non_zero(page_size), groups: groups.iter().map(group).collect() }
}
