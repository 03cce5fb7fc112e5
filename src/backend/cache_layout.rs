//! Layout of the cache: which layers share a group, and the pages of each group. Shared by the backends and independent
//! of them.

use std::num::NonZeroU32;

use crate::kv::{CacheGeometry, CacheGroup, KvFormat};
use crate::model::ModelSpec;

/// Location of a layer's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerPlace {
    /// The cache group.
    pub(crate) group: usize,
    /// Index within the group.
    pub(crate) index: usize,
}

/// The location of each layer.
pub(crate) fn layer_places(spec: &ModelSpec) -> Vec<LayerPlace> {
    let windows = spec.windows();
    let mut layers = vec![0; windows.len()];
    let mut place = |window| {
        // Every layer's window is in the list.
        let group = windows.iter().position(|of_group| *of_group == window).unwrap_or(0);
        layers[group] += 1;
        LayerPlace { group, index: layers[group] - 1 }
    };
    spec.layers.iter().map(|layer| place(layer.attention.window)).collect()
}

/// Parameters of a cache for `spec`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheSizes {
    /// Positions per page.
    pub(crate) page_size: NonZeroU32,
    /// Most rows in a step.
    pub(crate) max_rows: usize,
    /// Format of keys and values.
    pub(crate) format: KvFormat,
}

impl CacheSizes {
    /// The cache whose widest group has `pages` pages. The other groups get pages for as many sequences.
    pub(crate) fn geometry(&self, spec: &ModelSpec, pages: u32) -> CacheGeometry {
        let positions = u32::try_from(spec.max_positions).unwrap_or(u32::MAX);
        let of_sequence =
            |window, rows| CacheGeometry::pages_for_sequence(self.page_size.get(), positions, window, rows).max(1);
        let rows = u32::try_from(self.max_rows).unwrap_or(u32::MAX);
        let widest = u64::from(of_sequence(spec.window(), rows));
        let group = |window: Option<NonZeroU32>| {
            // No window needs more pages than the widest.
            let share = (u64::from(pages) * u64::from(of_sequence(window, rows))).div_ceil(widest) as u32;
            // If the widest group holds one sequence, so must the others, despite rounding.
            let pages = share.max(of_sequence(window, 1).min(pages));
            CacheGroup { window, pages, format: self.format, page_bytes: self.page_bytes(spec, window) }
        };
        CacheGeometry { page_size: self.page_size, groups: spec.windows().into_iter().map(group).collect() }
    }

    /// Most pages of the widest group within `bytes` bytes.
    pub(crate) fn max_pages(&self, spec: &ModelSpec, bytes: u64) -> u32 {
        largest(u32::MAX, |pages| Ok::<_, std::convert::Infallible>(self.geometry(spec, pages).bytes() <= bytes))
            .unwrap_or_else(|never| match never {})
    }

    /// Bytes of a page of the layers with a window.
    fn page_bytes(&self, spec: &ModelSpec, window: Option<NonZeroU32>) -> u64 {
        let layers = spec.layers.iter().filter(|layer| layer.attention.window == window).count();
        let vectors = 2 * (layers * spec.kv_heads) as u64 * u64::from(self.page_size.get());
        self.format.bytes(vectors, spec.head_dim)
    }
}

/// Binary search: the largest of `0..=most` that fits; 0 fits.
pub(crate) fn largest<E>(most: u32, mut fits: impl FnMut(u32) -> Result<bool, E>) -> Result<u32, E> {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle)? {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Config, Dtype};
    use proptest::prelude::*;

    /// A network of two KV heads of 16 elements.
    fn spec(positions: usize, windows: &[Option<u32>]) -> ModelSpec {
        let json = serde_json::json!({
            "model_type": "starcoder2", "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": windows.len(),
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions,
        });
        let config = Config::parse(json.to_string().as_bytes(), "config.json").unwrap();
        let mut spec = ModelSpec::from_config(&config).unwrap();
        for (layer, window) in spec.layers.iter_mut().zip(windows) {
            layer.attention.window = window.and_then(NonZeroU32::new);
        }
        spec
    }

    fn sizes(page_size: u32, max_rows: usize) -> CacheSizes {
        CacheSizes { page_size: NonZeroU32::new(page_size).unwrap(), max_rows, format: KvFormat::Dense(Dtype::F32) }
    }

    #[test]
    fn the_largest_that_fits() {
        let found = |most, limit| largest(most, |n| Ok::<_, ()>(n <= limit));
        for (most, limit) in [(0, 0), (1, 0), (1, 1), (10, 0), (10, 9), (10, 10), (10, 99), (u32::MAX, u32::MAX - 1)] {
            assert_eq!(found(most, limit), Ok(most.min(limit)), "{most} {limit}");
        }
        assert_eq!(largest(5, |_| Err(7)), Err(7));
    }

    #[test]
    fn layers_of_one_window_share_pages() {
        let spec = spec(256, &[Some(24), None, Some(24), None, None]);
        let place = |group, index| LayerPlace { group, index };
        assert_eq!(layer_places(&spec), [place(0, 0), place(1, 0), place(0, 1), place(1, 1), place(1, 2)]);
        // A sequence has 16 pages where every position is seen, and 3 of a window: 23 positions before one row.
        let CacheGeometry { page_size, groups } = sizes(16, 1).geometry(&spec, 32);
        assert_eq!(page_size.get(), 16);
        let expected = |window, pages, layers: u64| CacheGroup {
            window: NonZeroU32::new(window),
            pages,
            format: KvFormat::Dense(Dtype::F32),
            page_bytes: 2 * layers * 2 * 16 * 16 * 4,
        };
        assert_eq!(groups, [expected(24, 6, 2), expected(0, 32, 3)]);
    }

    proptest! {
        #[test]
        fn pages_of_groups_grow_together(
            windows in prop::collection::vec(prop::option::of(1u32..300), 1..5),
            page_size in 1u32..40,
            rows in 1usize..100,
            positions in 1usize..400,
            pages in 0u32..200,
            bytes in 0u64..100_000_000,
        ) {
            let (spec, sizes) = (spec(positions, &windows), sizes(page_size, rows));
            let geometry = sizes.geometry(&spec, pages);
            let needs = |window, rows| CacheGeometry::pages_for_sequence(page_size, positions as u32, window, rows);
            for group in &geometry.groups {
                prop_assert!(group.pages <= pages);
                prop_assert!(group.window != spec.window() || group.pages == pages);
                // As many whole sequences as in the widest group, and one by the row where there is one there.
                let sequences = pages / needs(spec.window(), rows as u32);
                prop_assert!(group.pages >= sequences * needs(group.window, rows as u32));
                prop_assert!(pages < needs(spec.window(), 1) || group.pages >= needs(group.window, 1));
            }
            let most = sizes.max_pages(&spec, bytes);
            prop_assert!(sizes.geometry(&spec, most).bytes() <= bytes);
            prop_assert!(sizes.geometry(&spec, most + 1).bytes() > bytes);
            if geometry.groups.len() == 1 {
                prop_assert_eq!(u64::from(most), bytes / geometry.groups[0].page_bytes);
            }
        }
    }
}
