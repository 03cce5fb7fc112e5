//! `embed` against plain copies.

use crate::common;
use crate::common::{Bench, Half, Random};
use half::{bf16, f16};
use rigel::backend::cuda::CudaError;
use rigel::backend::cuda::kernels::embed::{Embed, EmbedShape, SAMPLED};

/// Of a block of 128 threads, each with 8 elements: one thread, all but one, all, one more; and the model's.
const WIDTHS: [usize; 6] = [8, 1016, 1024, 1032, 2056, 4608];

fn gathers<T: Half>(bench: &Bench) {
    let embed = Embed::<T>::load(bench.device()).unwrap();
    let mut random = Random(7);
    for width in WIDTHS {
        for rows in [1, 2, 17] {
            let shape = EmbedShape { rows, vocabulary: 19, width };
            let table: Vec<T> = random.elements(shape.vocabulary * width, 0.0, 1.0);
            // Every id once, so that the bytes read are those declared.
            let ids: Vec<u32> = (0..rows as u32).map(|row| (row * 7 + 3) % 19).collect();
            let (device_table, device_ids) = (bench.upload(&table), bench.stream.upload(&ids).unwrap());
            let mut out = bench.poisoned::<T>(rows * width);
            bench.run(shape.work(), || {
                embed.gather(&bench.stream, shape, device_ids.view(), None, device_table.view(), out.view_mut())
            });
            let expected: Vec<T> = ids.iter().flat_map(|id| &table[*id as usize * width..][..width]).copied().collect();
            assert!(
                bytemuck::cast_slice::<T, u16>(&bench.download(out.view()))
                    == bytemuck::cast_slice::<T, u16>(&expected)
            );
        }
    }
}

device_test! {
    fn rows_are_gathered_bit_for_bit() {
        common::on_every_schedule(|bench| {
            gathers::<bf16>(bench);
            gathers::<f16>(bench);
        });
    }
}

device_test! {
    fn an_id_beyond_the_vocabulary_gives_a_row_of_nan_and_no_other() {
        common::on_every_schedule(|bench| {
            let embed = Embed::<bf16>::load(bench.device()).unwrap();
            let shape = EmbedShape { rows: 3, vocabulary: 4, width: 16 };
            let table = bench.upload(&[bf16::ONE; 4 * 16]);
            let ids = bench.stream.upload(&[3u32, 4, 0]).unwrap();
            let mut out = bench.stream.zeroed::<bf16>(3 * 16).unwrap();
            embed.gather(&bench.stream, shape, ids.view(), None, table.view(), out.view_mut()).unwrap();
            let out = bench.download(out.view());
            assert!(out[..16].iter().chain(&out[32..]).all(|value| *value == bf16::ONE));
            assert!(out[16..32].iter().all(|value| value.is_nan()));
        });
    }
}

device_test! {
    fn an_id_may_stand_for_a_drawn_token() {
        common::on_every_schedule(|bench| {
            let embed = Embed::<f16>::load(bench.device()).unwrap();
            let shape = EmbedShape { rows: 5, vocabulary: 4, width: 8 };
            let table: Vec<f16> = (0..4 * 8).map(|i| f16::from_f32((i / 8) as f32)).collect();
            let table = bench.upload(&table);
            // The last draw was none: its row had no finite logits.
            let draws = bench.stream.upload(&[2u32, 1, u32::MAX]).unwrap();
            let ids = bench.stream.upload(&[SAMPLED | 1, 3, SAMPLED, SAMPLED | 2, SAMPLED | 3]).unwrap();
            let mut out = bench.poisoned::<f16>(5 * 8);
            let (ids, draws) = (ids.view(), Some(draws.view()));
            embed.gather(&bench.stream, shape, ids, draws, table.view(), out.view_mut()).unwrap();
            let out: Vec<f32> = bench.download(out.view()).chunks(8).map(|row| row[7].to_f32()).collect();
            assert_eq!(out[..3], [1.0, 3.0, 2.0]);
            assert!(out[3].is_nan() && out[4].is_nan(), "no token was drawn there: {out:?}");
        });
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        common::on_every_schedule(|bench| {
            let embed = Embed::<bf16>::load(bench.device()).unwrap();
            let ids = bench.stream.zeroed::<u32>(2).unwrap();
            let table = bench.stream.zeroed::<bf16>(4 * 16 + 1).unwrap();
            let mut out = bench.stream.zeroed::<bf16>(2 * 16 + 1).unwrap();
            let shape = EmbedShape { rows: 2, vocabulary: 4, width: 16 };
            let mut refused = |shape, table_start: usize, out_range: std::ops::Range<usize>| {
                let table = table.slice(table_start..table_start + 4 * 16).unwrap();
                let out = out.slice_mut(out_range).unwrap();
                let error = embed.gather(&bench.stream, shape, ids.view(), None, table, out).unwrap_err();
                assert!(matches!(error, CudaError::Operand { .. }));
                error.to_string()
            };
            assert_eq!(refused(shape, 0, 0..31), "embed_gather: out is 31, expected 2 x 16 elements");
            assert_eq!(refused(shape, 1, 0..32), "embed_gather: table is aligned to 2 bytes, expected aligned to 16");
            assert_eq!(refused(shape, 0, 1..33), "embed_gather: out is aligned to 2 bytes, expected aligned to 16");
            let wrong = EmbedShape { width: 12, ..shape };
            assert_eq!(refused(wrong, 0, 0..32), "embed_gather: width is 12, expected a multiple of 8");
            let wrong = EmbedShape { rows: 0, ..shape };
            assert_eq!(refused(wrong, 0, 0..32), "embed_gather: rows is 0, expected 1 to 2147483647");
            let wrong = EmbedShape { rows: 3, ..shape };
            assert_eq!(refused(wrong, 0, 0..32), "embed_gather: ids is 2, expected 3 elements");
        });
    }
}
