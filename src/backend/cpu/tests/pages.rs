//! Pages as bytes: out of one backend and into another.

use super::*;

/// Logits of the rows at `positions` of one sequence.
fn step(backend: &mut CpuBackend, tables: &BlockTables, ids: &[TokenId], positions: Range<usize>) -> Vec<Vec<f32>> {
    let sequence = SequenceRows { rows: 0..positions.len(), start: positions.start as u32, tables: tables.as_slice() };
    let rows: Vec<usize> = (0..positions.len()).collect();
    let tokens = Token::known(&ids[positions]);
    backend.forward(&Batch { tokens: &tokens, sequences: &[sequence], logits_rows: &rows }).unwrap();
    rows.iter().map(|row| backend.logits(*row).unwrap().to_vec()).collect()
}

#[test]
fn pages_that_were_exported_go_on_in_another_backend() {
    for sizes in [SMALL, TWO_WINDOWS] {
        let model = Model::new(sizes, 3);
        let ids = ids(&mut Random(14), 60, sizes.vocab);
        let (mut here, mut there) = (model.backend(best()), model.backend(best()));
        let mut caches = [(); 2].map(|()| PageCache::new(here.cache(), PrefixCache::Off));
        // The first pages there are somebody else's.
        let mut other = BlockTables::new(&caches[1]);
        other.reserve(9, &mut caches[1]).unwrap();
        let mut tables = [BlockTables::new(&caches[0]), BlockTables::new(&caches[1])];
        for positions in [0..30, 30..50] {
            for (tables, cache) in tables.iter_mut().zip(&mut caches) {
                tables.evict(positions.start as u32, cache);
                tables.reserve(positions.end as u32, cache).unwrap();
            }
            step(&mut here, &tables[0], &ids, positions);
        }
        poison_all(&mut there);
        for (group, (from, to)) in tables[0].as_slice().iter().zip(tables[1].as_slice()).enumerate() {
            assert!(from.pages().len() == to.pages().len() && from.pages() != to.pages(), "{from:?} {to:?}");
            for (from, to) in from.pages().iter().zip(to.pages()) {
                let bytes = here.export_page(group, *from).unwrap();
                assert_eq!(bytes.len() as u64, here.cache().groups[group].page_bytes);
                there.import_page(group, *to, &bytes).unwrap();
            }
        }
        for (tables, cache) in tables.iter_mut().zip(&mut caches) {
            tables.reserve(60, cache).unwrap();
        }
        let expected = step(&mut here, &tables[0], &ids, 50..60);
        assert_same_bits(&step(&mut there, &tables[1], &ids, 50..60), &expected, "behind imported pages");
    }
}

#[test]
fn pages_that_are_not_there_are_refused() {
    let model = Model::new(SMALL, 1);
    let mut backend = model.backend(best());
    let bytes = backend.export_page(0, PageId(199)).unwrap();
    backend.import_page(0, PageId(0), &bytes).unwrap();
    let why = |result: Result<(), BackendError>| result.unwrap_err().to_string();
    assert_eq!(why(backend.export_page(0, PageId(200)).map(drop)), "invalid batch: page 200 of 200");
    assert_eq!(why(backend.export_page(1, PageId(0)).map(drop)), "invalid batch: a page of group 1 of 1");
    assert_eq!(why(backend.import_page(0, PageId(200), &bytes)), "invalid batch: page 200 of 200");
    assert_eq!(why(backend.poison(0, &[PageId(0), PageId(200)])), "invalid batch: page 200 of 200");
    let (short, page) = (&bytes[1..], bytes.len());
    let expected = format!("invalid batch: {} bytes for a page of {page}", page - 1);
    assert_eq!(why(backend.import_page(0, PageId(0), short)), expected);
}
