//! `kernels/attention_prefill_sm90.cu`: how [`attention_prefill`](super::attention_prefill) is launched on Hopper.

use super::super::device::Properties;
use super::super::error::CudaError;
use super::super::image;
use super::super::launch::{Arguments, Launch};
use super::super::tensor_map::{Dimension, Swizzle, TensorMap};
use super::constants::attention_prefill_sm90 as constants;
use super::paged::{CacheView, Heads, Sizes};
use super::{Check, Element};

/// The name of the kernel's file, with which the names of its kernels begin.
pub(super) const FILE: &str = "attention_prefill_sm90";
const CHECK: Check = Check { kernel: FILE };
/// Queries of a tile, as in attention_prefill.
pub(super) const QUERIES: usize = constants::QUERIES as usize;
const THREADS: u32 = constants::THREADS;
const KEYS: usize = constants::KEYS as usize;
const STAGES: usize = constants::STAGES as usize;
/// Bytes of a stage's barriers, two for each of three rings, and of what the kernel keeps of an item.
const STAGE_BARRIERS: usize = 3 * 2 * 8;
const ITEM: usize = 20;
/// Elements of a row of 128 bytes, the widest box with a swizzle.
const PANEL: usize = 64;

/// Whether this binary has the kernels, and they run on the device.
pub(super) fn runs_on(device: &Properties) -> bool {
    image::runs_on(FILE, device.compute_capability)
}

/// At most `blocks` blocks, which share the items, a tile for one KV head each, and tensor maps of keys and values.
pub(super) fn launch<T: Element>(
    pointers: Arguments,
    sizes: &Sizes,
    rows: usize,
    heads: &Heads,
    tiles: u32,
    cache: &CacheView<'_, T>,
    blocks: u32,
) -> Result<(Launch, Arguments), CudaError> {
    // The kernel numbers a head's queries in 32 bits and items in 31, and TMA slots in 31.
    CHECK.size("rows", rows, (u32::MAX / sizes.group) as usize)?;
    let items = CHECK.size("the number of tiles", tiles as usize * heads.kv, i32::MAX as usize)?;
    let slots =
        CHECK.size("the number of slots of all pages", cache.pages * heads.kv * cache.page_size, i32::MAX as usize)?;
    let mut launch = Launch::linear(items.min(blocks), THREADS);
    launch.shared_bytes = (STAGES * ((QUERIES + 2 * KEYS) * heads.dim * 2 + STAGE_BARRIERS + ITEM)) as u32;
    // A box is what one page has of a tile.
    let in_box = [PANEL as u32, cache.page_size.min(KEYS) as u32];
    let dimensions = Dimension::of_matrix(heads.dim, slots as usize, in_box);
    let map = |of| TensorMap::input(of, &dimensions, Swizzle::Bytes128);
    let Sizes { kv_heads, group, page_shift, window } = *sizes;
    let numbers = pointers.scalar(tiles).scalar(kv_heads).scalar(group).scalar(page_shift).scalar(window);
    Ok((launch, numbers.tensor_map(&map(cache.keys)?).tensor_map(&map(cache.values)?)))
}
